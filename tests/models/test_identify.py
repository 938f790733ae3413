"""Models told apart by what is in them, from headers alone."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.formats.single_file import export_single_file
from fastsd_lib.models.identify import describe, identify
from fastsd_lib.models.kinds import Kind

FIRST = "model.diffusion_model.input_blocks.0.0.weight"
SD1 = {FIRST: [320, 4, 3, 3], "cond_stage_model.transformer.text_model.final_layer_norm.bias": [768]}
SD2 = {FIRST: [320, 4, 3, 3], "cond_stage_model.model.ln_final.bias": [1024]}
PART = {"conv_in.weight": [320, 4, 3, 3], "time_embedding.linear_1.weight": [1280, 320],
        "down_blocks.0.resnets.0.conv1.weight": [320, 320, 3, 3]}  # fmt: skip
SDXL = {FIRST: [320, 4, 3, 3], "conditioner.embedders.1.model.ln_final.bias": [1280]}


def header_only(path: Path, shapes: dict[str, list[int]], dtype: str = "F16") -> Path:
    """A file with true headers whose weights are a hole on the disk: gigabytes that take no room."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return path


@pytest.mark.parametrize(
    ("shapes", "family", "use"),
    [
        (SD1, "sd1", "text to image"),
        (SD1 | {FIRST: [320, 9, 3, 3]}, "sd1", "inpainting"),
        (SD1 | {FIRST: [320, 8, 3, 3]}, "sd1", "instruct-pix2pix"),
        (SD2, "sd2", "text to image"),
        (SDXL, "sdxl", "text to image"),
        ({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": [4, 4]}, "sd3", "text to image"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": [128]}, "flux", "text to image"),
    ],
)
def test_families_and_uses_by_their_tensors(tmp_path, shapes, family, use):
    found = identify(header_only(tmp_path / "sdxl-flux-vae.safetensors", shapes))
    assert (found.family, found.use, found.layout, found.dtype) == (family, use, "single_file", "F16")


def test_seven_gigabytes_are_identified_without_reading_them(tmp_path):
    path = header_only(tmp_path / "big.safetensors", SDXL | {"model.diffusion_model.rest": [3_500_000_000]})
    assert identify(path).size_bytes > 7_000_000_000


def test_our_own_folder_and_file_are_recognised(tiny_pipeline, tmp_path):
    assert identify(tiny_pipeline.path).model_files == tiny_pipeline
    file = export_single_file(tiny_pipeline, tmp_path / "my-cat.safetensors", dtype="bf16")
    found = identify(file.path)
    assert (found.model_files, found.title, found.dtype) == (file, "my-cat", "BF16")


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"lora_unet_down_blocks_0.lora_down.weight": [4, 320]}, "is a LoRA, not a whole model"),
        ({"control_model.input_hint_block.0.weight": [16, 3]}, "is a ControlNet"),
        ({"emb_params": [2, 768]}, "is a textual-inversion embedding"),
        ({"encoder.conv_in.weight": [128, 3, 3, 3]}, "is a VAE"),
        (PART, "is a U-Net alone, not a whole model"),
        (
            {
                "double_blocks.0.img_attn.norm.key_norm.scale": [128],
                "distilled_guidance_layer.in_proj.bias": [5120],
            },
            "is a Chroma model, which is not known here",
        ),
        ({"layers.0.q": [4], "layers.0.k": [4]}, "is no model known here: 2 tensors, such as layers.0.q"),
        ({FIRST: [320, 4, 3, 3]}, "a U-Net but no text encoder"),
        (SD1 | {FIRST: [320, 5, 3, 3]}, "a U-Net with 5 input channels"),
        ({}, "holds no tensors"),
    ],
)
def test_what_is_no_whole_model_is_called_what_it_is(tmp_path, shapes, said):
    with pytest.raises(UserError, match=said) as error:
        identify(header_only(tmp_path / "model.safetensors", shapes))
    assert error.value.fix


def test_folders_that_are_no_models_say_what_is_there(tiny_pipeline, tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(UserError, match=r"has no model_index.json \(there: photo.jpg\)"):
        identify(tmp_path)
    shutil.copytree(tiny_pipeline.path, tmp_path / "m")
    (tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no .safetensors weights in unet"):
        identify(tmp_path / "m")


def test_folder_families_by_their_pipeline(tiny_pipeline, tmp_path):
    shutil.copytree(tiny_pipeline.path, tmp_path / "m")
    index = tmp_path / "m" / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableDiffusionXLPipeline"))
    assert identify(tmp_path / "m").model_files == ModelFiles("sdxl", "diffusers", tmp_path / "m")


def test_what_any_file_is_can_be_asked_whole_or_not(tiny_pipeline, tmp_path):
    lora = {
        f"lora_unet_x_attn2_to_k.lora_{way}.weight": shape
        for way, shape in (("down", [4, 768]), ("up", [320, 4]))
    }
    found = describe(header_only(tmp_path / "model.ckpt.safetensors", lora))
    assert (found.kind, found.dtypes, found.tensors) == (
        Kind("lora", "sd1", "LoRA", "kohya"),
        {"F16": 2 * 4 * (768 + 320)},
        2,
    )
    folder = describe(tiny_pipeline.path)
    assert folder.kind == Kind("checkpoint", "sd1", "", "diffusers", whole=True)
    file = describe(export_single_file(tiny_pipeline, tmp_path / "my-cat.safetensors", dtype=None).path)
    assert file.kind == Kind("checkpoint", "sd1", "", "original", whole=True) and file.title == "my-cat"
    assert file.dtypes == folder.dtypes and file.tensors == folder.tensors
    with pytest.raises(UserError, match="is no model known here"):
        describe(header_only(tmp_path / "strange.safetensors", {"layers.0.q": [4]}))
