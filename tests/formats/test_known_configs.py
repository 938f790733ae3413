"""The bundled configs against diffusers: it builds its models from them, and calls their files what we call them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import Tensor, TensorFile
from fastsd_lib.formats.derived_configs import fit_configs
from fastsd_lib.formats.known_configs import LIKE, NAMES, VELOCITY, bundled, is_stock, known_name
from fastsd_lib.formats.modelspec import Facts, file_facts, modelspec
from fastsd_lib.formats.plans import single_file_plan
from fastsd_lib.formats.stored_weight import Weight
from fastsd_lib.formats.vocabulary import missing_tokenizers

KINDS = {name: kind for (kind, _), name in NAMES.items()} | {"sd2-768-v": "sd2"}
# Folder of bundled/ -> what diffusers calls such a file (it knows nothing of velocity), our title for it, its size.
THEIRS = {
    "sd15": ("v1", "stable-diffusion-v1", 512),
    "sd15-inpainting": ("inpainting", "stable-diffusion-v1-inpainting", 512),
    "pix2pix": (None, "stable-diffusion-v1-edit", 512),
    "sd2-base": ("v2", "stable-diffusion-v2-512", 512),
    "sd2-768-v": ("v2", "stable-diffusion-v2-768-v", 768),
    "sd2-inpainting": ("inpainting_v2", "stable-diffusion-v2-inpainting", 512),
    "sd2-depth": (None, "stable-diffusion-v2-depth", 512),
    "sdxl-base": ("xl_base", "stable-diffusion-xl-v1-base", 1024),
    "sdxl-inpainting": ("xl_inpaint", "stable-diffusion-xl-v1-inpainting", 1024),
    "sdxl-refiner": ("xl_refiner", "stable-diffusion-xl-v1-refiner", 1024),
}


def modules(name: str) -> dict[str, torch.nn.Module]:
    """The parts of a model as its own libraries build them from the configs, without memory."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    configs, made = bundled(name), {}
    with torch.device("meta"):
        made["unet"] = UNet2DConditionModel.from_config(configs["unet/config.json"])
        made["vae"] = AutoencoderKL.from_config(configs["vae/config.json"])
        for part in ("text_encoder", "text_encoder_2"):
            if f"{part}/config.json" in configs:
                kind = CLIPTextModelWithProjection if part.endswith("2") else CLIPTextModel
                made[part] = kind(CLIPTextConfig.from_dict(configs[f"{part}/config.json"]))
    return made


@pytest.fixture(scope="module")
def full_size() -> dict[str, TensorFile]:
    """The header that each model's single file has, by our own plan."""
    made: dict[str, TensorFile] = {}
    for name in KINDS:
        if name in LIKE:
            continue
        tensors = {}
        for part, module in modules(name).items():
            for key, tensor in module.state_dict().items():
                prefixed = key.startswith(("text_model.", "text_projection")) or part in ("unet", "vae")
                key = key if prefixed else f"text_model.{key}"
                tensors[part, key] = Tensor("F16", tuple(tensor.shape), 0, 2 * tensor.numel())
        source = TensorFile(Path(name), {f"{part}/{key}": one for (part, key), one in tensors.items()}, {})
        parts: dict[str, dict[str, Weight]] = {}
        for (part, key), one in tensors.items():
            parts.setdefault(part, {})[key] = Weight(source, f"{part}/{key}", one.shape)
        configs = {path: json.dumps(value) for path, value in bundled(name).items()}
        planned = single_file_plan(KINDS[name], configs, parts, {}, None)
        said = {"modelspec.prediction_type": "epsilon"}  # there are no numbers that could tell
        shapes = {one.name: Tensor("F16", one.shape, 0, 0) for one in planned}
        made[name] = TensorFile(Path(f"{name}.safetensors"), shapes, said)
    for name, like in LIKE.items():
        first = "model.diffusion_model.input_blocks.0.0.weight"
        channels = bundled(name)["unet/config.json"]["in_channels"]
        shape = made[like].tensors[first].shape
        changed = {first: Tensor("F16", (shape[0], channels, *shape[2:]), 0, 0)}
        said = {"modelspec.prediction_type": "v"} if name in VELOCITY.values() else {}
        made[name] = TensorFile(Path(f"{name}.safetensors"), {**made[like].tensors, **changed}, said)
    return made


@pytest.mark.parametrize("name", THEIRS)
def test_diffusers_calls_our_files_what_they_are(full_size, name):
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    theirs, architecture, side_px = THEIRS[name]
    file = full_size[name]
    if theirs:
        shapes = {key: torch.empty(one.shape, device="meta") for key, one in file.tensors.items()}
        assert infer_diffusers_model_type(shapes) == theirs
    said = modelspec("m", file_facts(file, KINDS[name]))
    assert (said["modelspec.architecture"], said["modelspec.resolution"]) == (
        architecture,
        f"{side_px}x{side_px}",
    )


@pytest.mark.parametrize("name", THEIRS)
def test_a_bare_file_of_a_published_shape_needs_no_other_model(full_size, name):
    file, kind = full_size[name], KINDS[name]
    assert known_name(file, kind, velocity=name in VELOCITY.values()) == name
    configs = fit_configs(file, {}, None)
    published = bundled(name)
    for path in ("unet/config.json", "vae/config.json", "model_index.json"):
        assert json.loads(configs[path]) == published[path]
    assert is_stock(configs, kind) and Facts.of(kind, configs).side_px == THEIRS[name][2]
    index = published["model_index.json"]
    assert missing_tokenizers(configs) == [
        key for key in index if key.startswith("tokenizer") and index[key][0]
    ]


@pytest.mark.parametrize("name", THEIRS)
def test_diffusers_finds_every_part_and_the_schedule_that_the_index_names(name):
    import diffusers

    configs = bundled(name)
    index = configs["model_index.json"]
    pipeline = getattr(diffusers, index["_class_name"])
    expected, optional = (set(keys) for keys in pipeline._get_signature_keys(pipeline))
    named = {key for key in index if not key.startswith("_")}
    assert expected - set(pipeline._optional_components) <= named
    assert named <= expected | optional
    scheduler = getattr(diffusers, index["scheduler"][1]).from_config(
        configs["scheduler/scheduler_config.json"]
    )
    assert scheduler.config.beta_start == 0.00085 and scheduler.config.num_train_timesteps == 1000
    assert scheduler.config.prediction_type == ("v_prediction" if name == "sd2-768-v" else "epsilon")
    for part in ("text_encoder", "text_encoder_2"):
        assert (f"{part}/config.json" in configs) == bool((index.get(part) or [None])[0])


def test_a_pruned_model_is_no_stock_model_and_its_shapes_are_read(full_size):
    """SSD-1B and its like: SDXL with fewer transformer blocks, which the published config would not fit."""
    kept = {
        name: one
        for name, one in full_size["sdxl-base"].tensors.items()
        if ".transformer_blocks.9." not in name
    }
    file = TensorFile(Path("small.safetensors"), kept, {})
    assert known_name(file, "sdxl", velocity=False) is None
    configs = fit_configs(file, {}, None)
    assert json.loads(configs["unet/config.json"])["transformer_layers_per_block"] == [1, 2, 9]
    assert (
        not is_stock(configs, "sdxl") and json.loads(configs["vae/config.json"])["scaling_factor"] == 0.13025
    )


def test_an_sd1_model_of_another_shape_asks_for_its_configs(full_size):
    narrow = {
        name: Tensor("F16", tuple(96 if side == 320 else side for side in one.shape), 0, 0)
        for name, one in full_size["sd15"].tensors.items()
    }
    with pytest.raises(UserError, match=r"no published SD 1\.x model's shape") as error:
        fit_configs(TensorFile(Path("narrow.safetensors"), narrow, {}), {}, None)
    assert "--config-from" in error.value.fix
