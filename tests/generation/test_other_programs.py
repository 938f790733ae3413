"""Pictures of ComfyUI, InvokeAI and NovelAI say how they were made; hostile ones say nothing."""

from __future__ import annotations

import io
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.infotext import read_infotext
from fastsd_lib.generation.other_programs import read_history
from fastsd_lib.generation.picture_text import picture_bytes


def a_png(**texts) -> bytes:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name.replace("_dash_", "-"), text if isinstance(text, str) else json.dumps(text))
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


# The graph that ComfyUI starts with, and what people put around it.
COMFY = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": 156680208700286, "steps": 20, "cfg": 8.0, "sampler_name": "euler_ancestral", "scheduler": "karras",
        "denoise": 1.0, "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5-pruned.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "beautiful scenery, 猫", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "text, watermark", "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
}  # fmt: skip
COMFY_TEXT = (
    "beautiful scenery, 猫\nNegative prompt: text, watermark\nSteps: 20, Sampler: Euler a, Schedule type: Karras, "
    "CFG scale: 8.0, Seed: 156680208700286, Size: 512x768, Model: v1-5-pruned.safetensors"
)


def test_comfyuis_first_graph_is_told_as_a1111_would():
    history = read_history(a_png(prompt=COMFY, workflow={"nodes": []}))
    assert (history.program, history.parameters) == ("comfyui", COMFY_TEXT)
    assert json.loads(history.texts["prompt"]) == COMFY
    assert read_infotext(history.parameters)["Sampler"] == "Euler a"


def test_comfyuis_loras_clip_skip_linked_values_and_second_pass_are_found():
    graph = json.loads(json.dumps(COMFY))
    graph["10"] = {"class_type": "LoraLoader", "inputs": {
        "lora_name": "styles/ink.safetensors", "strength_model": 0.8, "strength_clip": 0.5, "model": ["4", 0],
        "clip": ["4", 1]}}  # fmt: skip
    graph["11"] = {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": -2, "clip": ["10", 1]}}
    graph["12"] = {"class_type": "PrimitiveInt", "inputs": {"value": 77}}
    graph["13"] = {
        "class_type": "LatentUpscale",
        "inputs": {"samples": ["3", 0], "width": 1024, "height": 1536},
    }
    graph["2"] = {"class_type": "KSampler", "inputs": graph["3"]["inputs"] | {
        "latent_image": ["13", 0], "denoise": 0.5, "steps": 9}}  # fmt: skip
    graph["14"] = {"class_type": "CLIPTextEncode", "inputs": {"text": "in rain", "clip": ["11", 0]}}
    graph["15"] = {"class_type": "ConditioningCombine", "inputs": {
        "conditioning_1": ["6", 0], "conditioning_2": ["14", 0]}}  # fmt: skip
    graph["3"]["inputs"] |= {"model": ["10", 0], "seed": ["12", 0], "positive": ["15", 0]}
    found = read_infotext(read_history(a_png(prompt={"2": graph.pop("2"), **graph})).parameters)
    assert found["Prompt"] == "beautiful scenery, 猫 AND in rain <lora:ink:0.5:0.8>"
    assert (found["Seed"], found["Clip skip"], found["Size-1"], found["Steps"]) == ("77", "2", "512", "20")
    assert (found["Denoising strength"], found["Hires steps"]) == ("0.5", "9")


def test_comfyuis_loras_stand_in_the_order_in_which_they_are_applied():
    graph = json.loads(json.dumps(COMFY))
    for key, name, model in (("10", "one.safetensors", "4"), ("11", "two.safetensors", "10")):
        graph[key] = {"class_type": "LoraLoaderModelOnly", "inputs": {
            "lora_name": name, "strength_model": 0.5, "model": [model, 0]}}  # fmt: skip
    graph["3"]["inputs"]["model"] = ["11", 0]
    parameters = read_history(a_png(prompt=graph)).parameters
    assert parameters.startswith("beautiful scenery, 猫 <lora:one:0.5> <lora:two:0.5>\n")


def test_comfyuis_values_that_are_no_numbers_are_left_out():
    graph = json.loads(json.dumps(COMFY))
    graph["3"]["inputs"] |= {"seed": True, "steps": 1e30, "cfg": "8"}
    assert read_history(a_png(prompt=graph)).parameters.splitlines()[-1] == (
        "Sampler: Euler a, Schedule type: Karras, Size: 512x768, Model: v1-5-pruned.safetensors"
    )


def test_comfyuis_custom_samplers_for_flux_are_read():
    graph = {
        "1": {"class_type": "SamplerCustomAdvanced", "inputs": {
            "noise": ["2", 0], "guider": ["3", 0], "sampler": ["4", 0], "sigmas": ["5", 0], "latent_image": ["6", 0]}},
        "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 5}},
        "3": {"class_type": "BasicGuider", "inputs": {"model": ["7", 0], "conditioning": ["8", 0]}},
        "4": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "5": {"class_type": "BasicScheduler", "inputs": {"scheduler": "simple", "steps": 4, "denoise": 1,
              "model": ["7", 0]}},
        "6": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 32}},
        "7": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux1-dev.safetensors"}},
        "8": {"class_type": "FluxGuidance", "inputs": {"guidance": 3.5, "conditioning": ["9", 0]}},
        "9": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}},
    }  # fmt: skip
    assert read_history(a_png(prompt=graph)).parameters == (
        "a cat\nSteps: 4, Sampler: Euler, Schedule type: Simple, Distilled CFG Scale: 3.5, Seed: 5, Size: 64x32, "
        "Model: flux1-dev.safetensors"
    )


def test_a_comfyui_workflow_alone_is_enough():
    workflow = {
        "nodes": [
            {"id": 3, "type": "KSampler", "widgets_values": [156680208700286, "randomize", 20, 8.0, "euler_ancestral",
             "karras", 1], "inputs": [{"name": "model", "link": 1}, {"name": "positive", "link": 4},
             {"name": "negative", "link": 6}, {"name": "latent_image", "link": 2}]},
            {"id": 4, "type": "CheckpointLoaderSimple", "widgets_values": ["v1-5-pruned.safetensors"]},
            {"id": 5, "type": "EmptyLatentImage", "widgets_values": [512, 768, 1]},
            {"id": 6, "type": "CLIPTextEncode", "widgets_values": ["beautiful scenery, 猫"]},
            {"id": 7, "type": "CLIPTextEncode", "widgets_values": ["text, watermark"]},
        ],
        "links": [[1, 4, 0, 3, 0, "MODEL"], [2, 5, 0, 3, 3, "LATENT"], [4, 6, 0, 3, 1, "C"], [6, 7, 0, 3, 2, "C"]],
    }  # fmt: skip
    history = read_history(a_png(workflow=workflow))
    assert (history.program, history.parameters) == ("comfyui", COMFY_TEXT)


def test_comfyuis_webp_keeps_its_graph_in_exif():
    exif = Image.Exif()
    exif[0x0110] = "prompt:" + json.dumps(COMFY)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "WEBP", exif=exif)
    assert read_history(file.getvalue()).parameters == COMFY_TEXT


def test_invokeai_of_today_is_told_as_a1111_would():
    metadata = {
        "app_version": "5.0", "generation_mode": "txt2img", "positive_prompt": "a cat", "negative_prompt": "dog",
        "width": 768, "height": 432, "seed": 356120443, "cfg_scale": 7.5, "steps": 50, "scheduler": "dpmpp_2m_k",
        "clip_skip": 1, "model": {"key": "k", "name": "m", "hash": "blake3:0123456789abcdef", "base": "sd-1"},
        "loras": [{"model": {"name": "ink"}, "weight": 0.5}], "vae": {"model_name": "mse"}, "strength": 0.7,
    }  # fmt: skip
    history = read_history(a_png(invokeai_metadata=metadata))
    assert (history.program, history.parameters) == (
        "invokeai",
        "a cat <lora:ink:0.5>\nNegative prompt: dog\nSteps: 50, Sampler: DPM++ 2M, Schedule type: Karras, "
        "CFG scale: 7.5, Seed: 356120443, Size: 768x432, Model hash: 0123456789, Model: m, VAE: mse, "
        "Denoising strength: 0.7, Clip skip: 2",
    )


def test_invokeai_of_2022_is_told_as_a1111_would():
    image = {"prompt": [{"prompt": "a cat [dog]", "weight": 1.0}], "steps": 30, "cfg_scale": 7.5, "seed": 42,
             "width": 512, "height": 640, "sampler": "k_euler_a"}  # fmt: skip
    metadata = {"model_weights": "sd-1.5", "model_hash": "cc6cb27103417325ff94", "image": image}
    expected = (
        "a cat\nNegative prompt: dog\nSteps: 30, Sampler: Euler a, CFG scale: 7.5, Seed: 42, Size: 512x640"
    )
    assert read_history(a_png(sd_dash_metadata=metadata)).parameters == (
        expected + ", Model hash: cc6cb27103, Model: sd-1.5"
    )
    dream = '"a cat [dog]" -s 30 -S 42 -W 512 -H 640 -C 7.5 -A k_euler_a'
    assert read_history(a_png(Dream=dream)).parameters == expected
    assert read_history(a_png(dream=dream.replace("-s 30", "-s30"))).parameters == expected
    assert read_history(a_png(dream='"it never ends -s 30 -S 42')).program == "invokeai"
    assert read_history(a_png(dream="I had a dream")).program == ""
    image["prompt"] = [{"prompt": "a", "weight": 1.5}, {"prompt": "b", "weight": 1}]
    assert read_history(a_png(sd_dash_metadata=metadata)).parameters.startswith("a :1.5 AND b\n")


def test_novelai_is_told_as_a1111_would():
    comment = {"steps": 28, "sampler": "k_dpmpp_2s_ancestral", "seed": 7, "strength": 0.69, "noise": 0.2, "scale": 11.0,
               "uc": "lowres", "width": 512, "height": 768, "noise_schedule": "native"}  # fmt: skip
    history = read_history(a_png(Software="NovelAI", Source="SD", Description="a {cat}", Comment=comment))
    assert (history.program, history.parameters) == (
        "novelai",
        "a {cat}\nNegative prompt: lowres\nSteps: 28, Sampler: DPM++ 2S a, Schedule type: native, CFG scale: 11.0, "
        "Seed: 7, Size: 512x768, Denoising strength: 0.69, Clip skip: 2, ENSD: 31337",
    )
    assert read_history(a_png(Software="Paint", Comment=comment)).program == ""


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_ours_and_a1111s_come_first_and_a_picture_that_says_nothing_is_no_error(kind):
    image = Image.new("RGB", (8, 8))
    ours = read_history(picture_bytes(image, kind, "a cat\nSteps: 1", {"seed": 1}))
    assert (ours.program, ours.parameters) == ("fastsd", "a cat\nSteps: 1")
    theirs = read_history(picture_bytes(image, kind, "a cat\nSteps: 1"))
    assert (theirs.program, theirs.parameters) == ("a1111", "a cat\nSteps: 1")
    nothing = read_history(picture_bytes(image, kind))
    assert (nothing.program, nothing.parameters) == ("", "")
    assert read_history(a_png(parameters="a", prompt=COMFY)).program == "a1111"
    with pytest.raises(UserError, match="no picture that can be read"):
        read_history(b"hello")


def test_a_graph_of_thousands_of_nodes_ends_quickly():
    graph = {str(n): {"class_type": "X", "inputs": {"a": [str(n + 1), 0]}} for n in range(2500)}
    graph["2499"]["inputs"]["a"] = ["3000", 0]  # each sampler goes on with another one's picture, far away
    for n in range(2500, 4900):
        graph[str(n)] = {
            "class_type": "KSampler",
            "inputs": {"steps": 1, "latent_image": ["0", 0], "model": ["0", 0]},
        }
    began = time.process_time()
    assert read_history(a_png(prompt=graph)).parameters == "Steps: 1, Hires steps: 1"
    assert time.process_time() - began < 5


RING = {
    "1": {"class_type": "KSampler", "inputs": {
        "steps": ["1", 0], "seed": ["2", 0], "model": ["2", 0], "positive": ["1", 0], "latent_image": ["1", 0]}},
    "2": {"class_type": "X", "inputs": {"a": ["1", 0], "b": ["2", 0]}},
}  # fmt: skip


@pytest.mark.parametrize(
    "graph",
    [
        RING,
        {"1": {"class_type": ["KSampler"], "inputs": {"steps": 1}}},
        {"1": {"class_type": "KSampler", "inputs": []}, "2": 5, "3": None},
        {
            "1": {
                "class_type": "KSampler",
                "inputs": {"steps": {"a": 1}, "seed": True, "positive": ["9", 0, 0]},
            }
        },
        {
            str(n): {"class_type": "KSampler", "inputs": {"steps": 1, "latent_image": [str(n + 1), 0]}}
            for n in range(400)
        },
        {
            "1": {
                "class_type": "KSampler",
                "inputs": {"steps": 10**400, "cfg": 1e999, "sampler_name": "\ud800"},
            }
        },
    ],
)
def test_graphs_that_no_editor_made_end_quickly_and_quietly(graph):
    history = read_history(a_png(prompt=json.dumps(graph)))
    history.parameters.encode()


@pytest.mark.parametrize(
    "name", ["prompt", "workflow", "invokeai_metadata", "sd_dash_metadata", "dream", "Comment"]
)
@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"a":' * 50_000, "null", "[1]", '{"image": 3}', '"' * 999, "9" * 9_999,
             '{"positive_prompt": [], "loras": [1, {}], "model": "m", "seed": NaN}', '{"nodes": 3, "links": [[1]]}',
             '{"image": {"prompt": {"a": 1}, "steps": "x"}}'],
)  # fmt: skip
def test_text_that_no_program_wrote_is_no_error(name, text):
    read_history(a_png(**{name: text, "Software": "NovelAI"})).parameters.encode()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["1", "2"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["class_type", "inputs", "steps", "seed", "positive", "latent_image", "image", "prompt", "nodes", "links", "1"]
    ), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(
    VALUES,
    st.sampled_from(["prompt", "workflow", "invokeai_metadata", "sd_dash_metadata", "Comment", "parameters"]),
)
def test_any_json_in_any_place_is_no_error(value, name):
    read_history(a_png(**{name: json.dumps(value), "Software": "NovelAI"})).parameters.encode()
