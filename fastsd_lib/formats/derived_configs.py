"""The configs of a bare single file, from the shapes of its tensors and what is known of its family.

Shapes tell channels, layers, depths and widths. They do not tell how many heads the attentions have, the scale of
the latents and what the output means: those are the family's (SD 2.x and SDXL have heads of 64 channels).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import Tensor, TensorFile
from fastsd_lib.formats.configs import TOKENIZER_FILES, family_of
from fastsd_lib.formats.key_maps import BODY_PREFIXES, TEXT_PREFIXES, single_file_kind
from fastsd_lib.formats.shapes import text_config, unet_config, vae_config

LATENT_SCALES = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025, "sdxl_refiner": 0.13025}
SIDES = {"sd2": 64, "sd2_v": 96, "sdxl": 128, "sdxl_refiner": 128}  # latents of the size trained for
SCHEDULE = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
# SD 2.x: the spread of these numbers is above 0.09 in models that predict velocity (a finding of ComfyUI's).
TELLING_BIAS = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
VELOCITY_SPREAD = 0.09


@dataclass(frozen=True)
class Prediction:
    """What the U-Net's output means, and who says so."""

    kind: str  # "epsilon" or "v_prediction"
    zero_snr: bool = False
    guessed: bool = False  # nothing in the file says it


def fit_configs(
    file: TensorFile, lent: Mapping[str, str], lender: Path, named: Path | None = None
) -> dict[str, str]:
    """Configs for a bare single file, with the help of another pipeline's.

    A lender of the same family lends them all; any other lends its vocabulary, and the shapes are read from the
    tensors. What the file says itself goes first: the U-Net's input channels (inpainting models have 9), and the
    prediction type. `named`: the file that the user named, when `file` is a copy of it. UserError when the shapes
    cannot be read or the vocabulary is another one.
    """
    kind = single_file_kind(file.tensors)
    family = "sdxl" if kind.startswith("sdxl") else kind
    prediction = said_prediction(file, named or file.path)
    text_part = next(iter(TEXT_PREFIXES[kind]))
    lends_all = family_of(lent) == family and f"{text_part}/config.json" in lent
    configs = (
        dict(lent) if lends_all else _derived(file, kind, lent, lender, prediction or _guessed(file, kind))
    )
    unet = json.loads(configs["unet/config.json"])
    first = file.tensors.get(BODY_PREFIXES["unet"] + "input_blocks.0.0.weight")
    if first and len(first.shape) == 4 and first.shape[1] != unet.get("in_channels", 4):
        configs["unet/config.json"] = json.dumps(unet | {"in_channels": first.shape[1]}, indent=2)
    if prediction and lends_all:
        scheduler = json.loads(configs.get("scheduler/scheduler_config.json", json.dumps(SCHEDULE)))
        configs["scheduler/scheduler_config.json"] = json.dumps(scheduler | _said(prediction), indent=2)
    return configs


def said_prediction(file: TensorFile, named: Path) -> Prediction | None:
    """What the file, or the .yaml of the name `named` beside it, says of its output."""
    if "v_pred" in file.tensors:  # the mark that SDXL models carry
        return Prediction("v_prediction", zero_snr="ztsnr" in file.tensors)
    said = file.metadata.get("modelspec.prediction_type", "").lower()
    if said in ("v", "v_prediction", "epsilon"):
        return Prediction("epsilon" if said == "epsilon" else "v_prediction")
    beside = named.with_suffix(".yaml")
    if beside.is_file() and beside.stat().st_size < 1 << 20:
        text = beside.read_text("utf-8", errors="replace")
        found = re.search(r"^\s*parameterization:\s*[\"']?(v|eps)\b", text, re.MULTILINE)
        if found:
            return Prediction("v_prediction" if found[1] == "v" else "epsilon")
    return None


def _guessed(file: TensorFile, kind: str) -> Prediction:
    """Only SD 2.x leaves a doubt: all other families predict noise unless they are marked."""
    if kind != "sd2":
        return Prediction("epsilon")
    bias = file.tensors.get(TELLING_BIAS)
    first = file.tensors.get(BODY_PREFIXES["unet"] + "input_blocks.0.0.weight")
    if bias and first and first.shape[1] == 4 and bias.dtype in ("F16", "F32"):
        numbers = np.frombuffer(b"".join(file.chunks(TELLING_BIAS)), "<f2" if bias.dtype == "F16" else "<f4")
        return Prediction(
            "v_prediction" if numbers.astype(np.float64).std() > VELOCITY_SPREAD else "epsilon", guessed=True
        )
    return Prediction("epsilon", guessed=True)


def _said(prediction: Prediction) -> dict[str, Any]:
    said: dict[str, Any] = {"prediction_type": prediction.kind}
    if prediction.zero_snr:
        said["rescale_betas_zero_snr"] = True
    return said | ({"fastsd_guessed": True} if prediction.guessed else {})


def _derived(
    file: TensorFile, kind: str, lent: Mapping[str, str], lender: Path, prediction: Prediction
) -> dict[str, str]:
    if kind == "sd1":
        raise UserError(
            f"{file.path} is an SD 1.x model, and {lender} lends the configs of another family.",
            fix="name a Diffusers folder of an SD 1.x model.",
        )
    side = SIDES["sd2_v" if kind == "sd2" and prediction.kind == "v_prediction" else kind]
    unet = unet_config(_inner(file, BODY_PREFIXES["unet"]), file.path)
    vae = vae_config(_inner(file, BODY_PREFIXES["vae"]), file.path) | {"scaling_factor": LATENT_SCALES[kind]}
    configs: dict[str, Any] = {
        "model_index.json": _model_index(kind),
        "unet/config.json": unet | {"sample_size": side},
        "vae/config.json": vae | ({"force_upcast": True} if kind.startswith("sdxl") else {}),
        "scheduler/scheduler_config.json": SCHEDULE | _said(prediction),
    }
    texts: dict[str, str] = {}
    for part, prefix in TEXT_PREFIXES[kind].items():
        config = text_config(_inner(file, prefix), file.path)
        if kind == "sd2" and config["num_hidden_layers"] == 24:
            config["num_hidden_layers"] = 23  # the last layer is never read
        configs[f"{part}/config.json"] = config
        texts |= _vocabulary(
            lent,
            lender,
            "tokenizer" + part.removeprefix("text_encoder"),
            config["hidden_act"] == "gelu",
            config,
        )
    return {name: json.dumps(value, indent=2) for name, value in configs.items()} | texts


def _vocabulary(
    lent: Mapping[str, str], lender: Path, folder: str, pads_with_zero: bool, config: Mapping[str, Any]
) -> dict[str, str]:
    """The lender's tokenizer as `folder`; all these families share CLIP's vocabulary, but OpenCLIP fills up with "!"."""
    words = json.loads(lent["tokenizer/vocab.json"]) if "tokenizer/vocab.json" in lent else None
    if words is not None and len(words) != config["vocab_size"]:
        raise UserError(
            f"The vocabulary of {lender} has {len(words):,} entries, the model's {config['vocab_size']:,}.",
            fix="name a Diffusers folder of the same kind, or of Stable Diffusion 1.5, to take the tokenizer from.",
        )
    texts = {}
    for name in TOKENIZER_FILES:
        text = lent.get(f"tokenizer/{name}")
        if text and pads_with_zero and name in ("tokenizer_config.json", "special_tokens_map.json"):
            text = json.dumps(json.loads(text) | {"pad_token": "!"}, indent=2)
        if text:
            texts[f"{folder}/{name}"] = text
    return texts


def _model_index(kind: str) -> dict[str, Any]:
    """The parts of the pipeline for diffusers, and SDXL's two choices."""
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if kind == "sd2":
        return index | {"feature_extractor": [None, None], "safety_checker": [None, None]}
    refines = kind == "sdxl_refiner"
    index |= {
        "_class_name": "StableDiffusionXLImg2ImgPipeline" if refines else "StableDiffusionXLPipeline",
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "force_zeros_for_empty_prompt": not refines,
    }
    if refines:
        index |= {"text_encoder": [None, None], "tokenizer": [None, None], "requires_aesthetics_score": True}
    return index


def _inner(file: TensorFile, prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: t for name, t in file.tensors.items() if name.startswith(prefix)}
