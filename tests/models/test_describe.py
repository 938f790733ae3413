"""What a file says beside its shapes - prediction, words, what it needs - and folders, whole or one part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from model_layouts import read_layout, sparse_file
from safetensors.torch import load_file, save_file
from tiny_families import save_sd2, save_sdxl, save_single_file
from tiny_transformers import save_flux, save_sd3

from fastsd_lib.core.errors import UserError
from fastsd_lib.models.identify import describe, identify, measured_prediction
from fastsd_lib.models.kinds import Kind

UNKNOWN = "prediction: not in the header; a .yaml beside the file or its weights would tell"
LORA = {
    "lora_unet_x_attn2_to_k.lora_down.weight": (4, 768),
    "lora_unet_x_attn2_to_k.lora_up.weight": (320, 4),
}
BIAS = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


@pytest.fixture(scope="module")
def sd2_layout():
    return read_layout("sd2-base")


# ------------------------------------------------------------------ prediction


@pytest.mark.parametrize(
    ("metadata", "yaml", "said"),
    [
        ({}, None, ""),
        ({"modelspec.prediction_type": "v"}, None, "v_prediction"),
        ({"modelspec.prediction_type": "epsilon"}, None, "epsilon"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, None, "v_prediction"),
        ({"modelspec.architecture": "stable-diffusion-v2-512/lora"}, None, "epsilon"),
        ({}, 'model:\n  params:\n    parameterization: "v"\n', "v_prediction"),
        ({}, "model:\n  params:\n    parameterization: eps\n", "epsilon"),
        ({}, "model:\n  params: {}\n", ""),
        ({}, "x: " + "y" * 2_000_000 + "\n  parameterization: v\n", ""),
    ],
)
def test_what_an_sd2_model_predicts_is_told_by_what_is_written_never_guessed(
    tmp_path, sd2_layout, metadata, yaml, said
):
    path = sparse_file(tmp_path / "model.safetensors", sd2_layout, metadata)
    if yaml is not None:
        path.with_suffix(".yaml").write_text(yaml)
    found = describe(path)
    assert found.prediction == said
    assert (UNKNOWN in found.unknown) == (said == "")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("spread", "said"), [(0.02, "epsilon"), (0.2, "v_prediction")])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_one_small_weight_tells_the_rest_when_it_is_asked_for(tmp_path, dtype, spread, said, suffix):
    weights = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3),
        "cond_stage_model.model.ln_final.bias": torch.zeros(1024),
        "first_stage_model.decoder.conv_in.weight": torch.zeros(512, 4, 3, 3),
        BIAS: (torch.randn(320, generator=torch.Generator().manual_seed(1)) * spread).to(dtype),
    }
    path = tmp_path / f"model{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save({"state_dict": weights}, path)
    assert describe(path).prediction == ""
    assert measured_prediction(path) == said


def test_only_sd2_files_are_measured(tmp_path):
    assert measured_prediction(sparse_file(tmp_path / "a.safetensors", LORA)) == ""
    assert measured_prediction(sparse_file(tmp_path / "b.safetensors", read_layout("sd15"))) == ""


@pytest.mark.parametrize(
    ("marks", "said"),
    [({}, "epsilon"), ({"v_pred": (0,)}, "v_prediction"), ({"edm_mean": (1, 4, 1, 1), "edm_std": (1, 4, 1, 1)}, "edm"),
     ({"v_pred": (0,), "ztsnr": (0,)}, "v_prediction")],
)  # fmt: skip
def test_sdxl_models_that_predict_something_else_are_marked(tmp_path, marks, said):
    path = sparse_file(tmp_path / "model.safetensors", read_layout("sdxl-base") | marks)
    assert describe(path).prediction == said


# ------------------------------------------------------------------ needs and words


@pytest.mark.parametrize(
    ("kind", "needs"),
    [
        (Kind("checkpoint", "sd1", whole=True), ""),
        (Kind("unet", "sd1"), "the text encoder and the VAE of SD 1.x"),
        (Kind("unet", "sdxl"), "the text encoders and the VAE of SDXL"),
        (Kind("transformer", "flux", "dev"), "the text encoders and the VAE of Flux"),
        (Kind("unet"), "the text encoders and the VAE of its base model"),
        (Kind("transformer", "sd3", marks=("VAE inside",)), "the text encoders of SD 3"),
        (Kind("unet", "sd1", marks=("text encoders inside",)), "the VAE of SD 1.x"),
        (Kind("lora", "sdxl"), "SDXL as the base model"),
        (Kind("lora"), "a base model, which its tensors do not name"),
        (Kind("controlnet", "sd3"), "SD 3 as the base model"),
        (Kind("vae", variant="4 latent channels"), "SD 1.x or SD 2.x or SDXL as the base model"),
        (Kind("vae", variant="16 latent channels, decoder alone"), "SD 3 or Flux as the base model"),
        (Kind("vae", "sdxl", "4 latent channels"), "SDXL as the base model"),
        (Kind("upscaler", variant="ESRGAN"), ""),
    ],
)
def test_what_else_is_needed_is_said_in_words(kind, needs):
    assert kind.needs == needs


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, ()),
        ({"modelspec.trigger_phrase": "zwx, zwx person ,"}, ("zwx", "zwx person")),
        (
            {"ss_tag_frequency": json.dumps({"10_zwx person": {"hat": 3}, "5_style": {}})},
            ("zwx person", "style"),
        ),
        ({"ss_tag_frequency": "[" * 100_000}, ()),
        ({"ss_tag_frequency": "[1]"}, ()),
        ({"modelspec.trigger_phrase": "\x1b[2Jzwx"}, ("\\x1b[2Jzwx",)),
    ],
)
def test_the_words_that_call_a_lora_are_those_of_its_metadata(tmp_path, metadata, words):
    found = describe(sparse_file(tmp_path / "a.safetensors", LORA, metadata))
    assert found.trigger_words == words and found.metadata == metadata


def test_metadata_title_and_base_are_handed_on_as_they_stand(tmp_path):
    metadata = {"ss_base_model_version": "sd_v1", "ss_output_name": "my-cat", "ss_network_dim": "4"}
    found = describe(sparse_file(tmp_path / "a.safetensors", LORA, metadata))
    assert (found.metadata, found.title, found.kind.family) == (metadata, "my-cat", "sd1")
    assert describe(sparse_file(tmp_path / "a.safetensors", LORA, {"modelspec.title": "Cat"})).title == "Cat"


def test_what_an_add_on_does_not_say_is_said(tmp_path):
    lora = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 768)}
    assert describe(sparse_file(tmp_path / "a.safetensors", lora)).unknown == (
        "which base model it belongs to",
    )
    vae = {"decoder.conv_in.weight": (512, 4, 3, 3), "encoder.conv_in.weight": (128, 3, 3, 3)}
    (said,) = describe(sparse_file(tmp_path / "b.safetensors", vae)).unknown
    assert said == "for which of its families it was trained: they differ in numbers alone"


# ------------------------------------------------------------------ whole folders


@pytest.mark.parametrize(
    ("save", "kind", "prediction"),
    [
        (save_sd2, Kind("checkpoint", "sd2", "", "diffusers", whole=True), "epsilon"),
        (lambda folder: save_sd2(folder, "v_prediction"), Kind("checkpoint", "sd2", "", "diffusers", whole=True),
         "v_prediction"),
        (save_sdxl, Kind("checkpoint", "sdxl", "", "diffusers", whole=True), "epsilon"),
        (lambda folder: save_sdxl(folder, 9), Kind("checkpoint", "sdxl", "inpainting", "diffusers", whole=True), "epsilon"),
        (save_sd3, Kind("checkpoint", "sd3", "3 medium", "diffusers", whole=True), "flow"),
        (lambda folder: save_sd3(folder, "3.5 medium"), Kind("checkpoint", "sd3", "3.5 medium", "diffusers", whole=True),
         "flow"),
        (lambda folder: save_sd3(folder, "3.5 large"), Kind("checkpoint", "sd3", "3.5 large", "diffusers", whole=True),
         "flow"),
        (save_flux, Kind("checkpoint", "flux", "dev", "diffusers", whole=True), "flow"),
        (lambda folder: save_flux(folder, False), Kind("checkpoint", "flux", "schnell", "diffusers", whole=True), "flow"),
    ],
    ids=["sd2", "sd2 v", "sdxl", "sdxl inpainting", "sd3", "sd3.5 medium", "sd3.5 large", "flux dev", "flux schnell"],
)  # fmt: skip
def test_a_pipeline_folder_is_told_by_configs_and_headers(tmp_path, save, kind, prediction):
    save(tmp_path / "m")
    found = describe(tmp_path / "m")
    assert (found.kind, found.prediction, found.layout) == (kind, prediction, "diffusers")
    assert found.tensors == sum(len(load_file(file)) for file in (tmp_path / "m").glob("*/*.safetensors"))
    assert identify(tmp_path / "m").family == kind.family


def test_other_uses_of_flux_are_told_by_the_pipelines_name(tmp_path):
    save_flux(tmp_path / "m")
    index = tmp_path / "m" / "model_index.json"
    for name, variant in (("FluxKontextPipeline", "kontext"), ("FluxFillPipeline", "fill"),
                          ("FluxControlPipeline", "depth or canny"), ("FluxPipeline", "dev")):  # fmt: skip
        index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": name}))
        assert describe(tmp_path / "m").kind.variant == variant
    index.write_text(json.dumps({"_class_name": "Flux2Pipeline"}))
    with pytest.raises(UserError, match="holds a Flux2Pipeline, which is not known here"):
        describe(tmp_path / "m")


# ------------------------------------------------------------------ parts, shards, variants


def part(
    folder: Path, shapes: dict[str, tuple[int, ...]], config: dict, name: str = "diffusion_pytorch_model"
) -> Path:
    folder.mkdir()
    sparse_file(folder / f"{name}.safetensors", shapes)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


VAE = {"decoder.conv_in.weight": (512, 4, 3, 3), "encoder.conv_in.weight": (128, 3, 3, 3),
       "encoder.down_blocks.0.resnets.0.conv1.weight": (128, 128, 3, 3)}  # fmt: skip
CONTROL = {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), "conv_in.weight": (320, 4, 3, 3),
           "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, 768)}  # fmt: skip


@pytest.mark.parametrize(
    ("shapes", "config", "kind"),
    [
        (CONTROL, {"_class_name": "ControlNetModel"}, Kind("controlnet", "sd1", "", "diffusers")),
        (VAE, {"_class_name": "AutoencoderKL"}, Kind("vae", "", "4 latent channels", "diffusers")),
        (VAE, {"scaling_factor": 0.13025}, Kind("vae", "sdxl", "4 latent channels", "diffusers")),
        (VAE, {"scaling_factor": 0.18215}, Kind("vae", "", "4 latent channels", "diffusers")),
        ({"a": (1,)}, {"_class_name": "MotionAdapter"}, Kind("motion-module", naming="diffusers")),
        ({"a": (1,)}, {"architectures": ["CLIPTextModel"]}, Kind("text-encoder", naming="diffusers")),
    ],
)  # fmt: skip
def test_a_folder_with_one_part_is_that_part(tmp_path, shapes, config, kind):
    folder = part(tmp_path / "part", shapes, config)
    assert describe(folder).kind == kind
    with pytest.raises(UserError, match=r"it has no model_index\.json; it is a"):
        identify(folder)


def test_parts_of_a_real_folder_and_a_folder_of_lora_weights(tiny_pipeline, tmp_path):
    kinds = {name: describe(tiny_pipeline.path / name).kind.kind for name in ("unet", "vae", "text_encoder")}
    assert kinds == {"unet": "unet", "vae": "vae", "text_encoder": "text-encoder"}
    sparse_file(tmp_path / "pytorch_lora_weights.safetensors", LORA)
    assert describe(tmp_path).kind == Kind("lora", "sd1", "LoRA", "kohya")


@pytest.mark.parametrize(
    "config",
    [{"_class_name": "PixArtTransformer2DModel"}, {}, {"architectures": []}, {"architectures": 5}, [1], "x"],
)
def test_a_part_of_no_known_kind_is_refused_with_what_was_seen(tmp_path, config):
    folder = part(tmp_path / "part", {"blocks.0.x.weight": (3, 4)}, config)
    with pytest.raises(
        UserError, match=r"no model known here: 1 tensors, such as blocks.0.x.weight \[3, 4\]"
    ) as error:
        describe(folder)
    assert ("its config says PixArt" in error.value.message) == ("_class_name" in config)
    assert "a LoRA" in error.value.fix


def test_shards_are_one_part_and_so_is_a_lone_variant(tiny_pipeline, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(tiny_pipeline.path, folder)
    whole = describe(folder)
    place = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(place)
    names = sorted(weights)
    place.unlink()
    places = {}
    for number, keys in enumerate((names[::2], names[1::2]), 1):
        shard = f"diffusion_pytorch_model-{number:05}-of-00002.safetensors"
        save_file({key: weights[key] for key in keys}, place.with_name(shard))
        places |= dict.fromkeys(keys, shard)
    (folder / "unet" / f"{place.name}.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places})
    )
    sharded = describe(folder)
    assert (sharded.kind, sharded.tensors, sharded.dtypes) == (whole.kind, whole.tensors, whole.dtypes)
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    vae.rename(vae.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert describe(folder).tensors == whole.tensors
    (folder / "unet" / shard).unlink()
    with pytest.raises(UserError, match=rf"lacks {shard} \(1 of 2 files are there\)"):
        describe(folder)


def test_single_files_of_small_families_are_told_like_the_large(tmp_path):
    for save, family in ((save_sd2, "sd2"), (save_sdxl, "sdxl")):
        model = save(tmp_path / family)
        path = save_single_file(model, tmp_path / f"{family}.safetensors")
        assert describe(path).kind == Kind("checkpoint", family, "", "original", whole=True)
