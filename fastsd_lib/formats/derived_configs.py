"""The configs of a bare single file, from the shapes of its tensors and what is known of its family.

Shapes tell channels, layers, depths and widths. They do not tell how many heads the attentions have, the scale of
the latents and what the output means: those are the family's (SD 2.x and SDXL have heads of 64 channels).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsd_lib.core import said_prediction as said
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import TensorFile
from fastsd_lib.formats.casting import to_float32
from fastsd_lib.formats.configs import TOKENIZER_FILES, family_of
from fastsd_lib.formats.key_maps import BODY_PREFIXES, TEXT_PREFIXES, single_file_kind
from fastsd_lib.formats.known_configs import NAMES, VELOCITY, bundled, inner_tensors, known_name, modern_names
from fastsd_lib.formats.shapes import text_config, unet_config, vae_config
from fastsd_lib.formats.vocabulary import NOT_LENT

FIRST = BODY_PREFIXES["unet"] + "input_blocks.0.0.weight"
SCHEDULER = "scheduler/scheduler_config.json"
_BIAS = BODY_PREFIXES["unet"] + said.TELLING_BIAS


@dataclass(frozen=True)
class Prediction:
    """What the U-Net's output means, and who says so."""

    kind: str  # "epsilon" or "v_prediction"
    zero_snr: bool = False
    guessed: bool = False  # nothing in the file says it


def fit_configs(
    file: TensorFile, lent: Mapping[str, str], lender: Path | None, named: Path | None = None
) -> dict[str, str]:
    """Configs for a bare single file, with the help of another pipeline's, or alone (`lent` empty: no tokenizer).

    A lender of the same family lends them all; any other lends its vocabulary. The rest is what was published with
    such a file, or follows from the shapes of its tensors. What the file says itself goes first: the U-Net's input
    channels (inpainting models have 9), and the prediction type. `named`: the file that the user named, when `file`
    is a copy of it. UserError when the shapes cannot be read or the vocabulary is another one.
    """
    kind = single_file_kind(file.tensors)
    family = "sdxl" if kind.startswith("sdxl") else kind
    prediction = said_prediction(file, named or file.path)
    text_part = next(iter(TEXT_PREFIXES[kind]))
    lends_all = f"{text_part}/config.json" in lent and family_of(lent) == family
    if not lends_all:
        return _derived(file, kind, lent, lender, prediction or guessed_prediction(file, kind))
    configs = dict(lent)
    unet = json.loads(configs["unet/config.json"])
    channels = unet_channels(file)
    if channels != unet.get("in_channels", 4):
        configs["unet/config.json"] = json.dumps(unet | {"in_channels": channels}, indent=2)
        index = json.loads(configs.get("model_index.json", "{}"))
        if (kind, channels) in NAMES:  # another pipeline draws with it, by the lender's schedule
            published = bundled(NAMES[kind, channels])["model_index.json"]
            kept = {key: index[key] for key in ("scheduler",) if key in index}
            configs["model_index.json"] = json.dumps(published | kept, indent=2)
    if prediction:
        scheduler = (
            json.loads(configs[SCHEDULER]) if SCHEDULER in configs else _base(kind, 4, False)[SCHEDULER]
        )
        configs[SCHEDULER] = json.dumps(scheduler | _said(prediction), indent=2)
    return configs


def said_prediction(file: TensorFile, named: Path) -> Prediction | None:
    """What the file, or the .yaml of the name `named` beside it, says of its output.

    None as well for an EDM model (`predicts_edm`): no scheduler config of these families expresses it.
    """
    kind = said.said_prediction(file.tensors, file.metadata, named)
    if kind in ("", "edm"):
        return None
    zero_snr = all(mark in file.tensors for mark in ("v_pred", "ztsnr"))  # the marks that SDXL models carry
    return Prediction(kind, zero_snr)


def predicts_edm(file: TensorFile) -> bool:
    """Whether it is drawn by the formulas of EDM (arXiv:2206.00364), as CosXL and Playground 2.5 are."""
    return said.said_prediction(file.tensors, file.metadata, file.path) == "edm"


def guessed_prediction(file: TensorFile, kind: str) -> Prediction:
    """Only SD 2.x leaves a doubt: all other families predict noise unless they are marked."""
    if kind != "sd2":
        return Prediction("epsilon")
    bias = file.tensors.get(_BIAS)
    if bias and unet_channels(file) == 4 and bias.dtype in ("F16", "BF16", "F32"):
        import numpy as np

        numbers = to_float32(np.frombuffer(b"".join(file.chunks(_BIAS)), np.uint8), bias.dtype)
        return Prediction(
            "v_prediction" if numbers.astype(np.float64).std() > said.VELOCITY_SPREAD else "epsilon",
            guessed=True,
        )
    return Prediction("epsilon", guessed=True)


def _said(prediction: Prediction) -> dict[str, Any]:
    entries: dict[str, Any] = {"prediction_type": prediction.kind}
    if prediction.zero_snr:
        entries["rescale_betas_zero_snr"] = True
    return entries | ({"fastsd_guessed": True} if prediction.guessed else {})


def _derived(
    file: TensorFile, kind: str, lent: Mapping[str, str], lender: Path | None, prediction: Prediction
) -> dict[str, str]:
    velocity = prediction.kind == "v_prediction"
    configs = _base(kind, unet_channels(file), velocity)
    if known_name(file, kind, velocity) is None:
        if kind == "sd1":
            raise UserError(
                f"{file.path} holds weights only, no configs, and they are of no published SD 1.x model's shape.",
                fix="name a Diffusers folder of the very same shape to take its configs from (--config-from).",
            )
        _reshape(configs, file, kind)
    configs[SCHEDULER] |= _said(prediction)
    texts = {name: json.dumps(value, indent=2) for name, value in configs.items()}
    for part in TEXT_PREFIXES[kind] if lender else ():
        config = configs[f"{part}/config.json"]
        folder = "tokenizer" + part.removeprefix("text_encoder")
        texts |= _vocabulary(lent, str(lender), folder, config["hidden_act"] == "gelu", config)
    return texts


def _base(kind: str, channels: int, velocity: bool) -> dict[str, Any]:
    """What was published with the nearest model."""
    name = NAMES.get((kind, channels), NAMES[kind, 4])
    return bundled(VELOCITY.get(name, name) if velocity else name)


def _reshape(configs: dict[str, Any], file: TensorFile, kind: str) -> None:
    """Replace what the shapes tell otherwise; the scale of the latents and the schedule stay the family's."""
    unet = unet_config(inner_tensors(file, BODY_PREFIXES["unet"]), file.path)
    vae = vae_config(inner_tensors(file, BODY_PREFIXES["vae"]), file.path)
    sizes = {part: {"sample_size": configs[f"{part}/config.json"]["sample_size"]} for part in ("unet", "vae")}
    kept = ("scaling_factor", "force_upcast")
    known_vae = {key: one for key, one in configs["vae/config.json"].items() if key in kept}
    configs["unet/config.json"] = unet | sizes["unet"]
    configs["vae/config.json"] = vae | known_vae | sizes["vae"]
    for part, prefix in TEXT_PREFIXES[kind].items():
        config = text_config(modern_names(inner_tensors(file, prefix)), file.path)
        if kind == "sd2" and config["num_hidden_layers"] == 24:
            config["num_hidden_layers"] = 23  # the last layer is never read
        configs[f"{part}/config.json"] = config


def unet_channels(file: TensorFile) -> int:
    """What the U-Net of a single file is shown: 4 latents, and what inpainting and editing add."""
    first = file.tensors.get(FIRST)
    return first.shape[1] if first and len(first.shape) == 4 else 4


def _vocabulary(
    lent: Mapping[str, str], lender: str, folder: str, pads_with_zero: bool, config: Mapping[str, Any]
) -> dict[str, str]:
    """The lender's tokenizer as `folder`; all these families share CLIP's vocabulary, but OpenCLIP fills up with "!"."""
    words = json.loads(lent["tokenizer/vocab.json"]) if "tokenizer/vocab.json" in lent else None
    if words is not None and len(words) != config["vocab_size"]:
        raise UserError(
            f"The vocabulary of {lender} has {len(words):,} entries, the model's {config['vocab_size']:,}.",
            fix="name a Diffusers folder of the same kind, or of Stable Diffusion 1.5, to take the tokenizer from.",
        )
    texts = {}
    for name in (one for one in TOKENIZER_FILES if one not in NOT_LENT):
        text = lent.get(f"tokenizer/{name}")
        if text and pads_with_zero and name in ("tokenizer_config.json", "special_tokens_map.json"):
            text = json.dumps(json.loads(text) | {"pad_token": "!"}, indent=2)
        if text:
            texts[f"{folder}/{name}"] = text
    return texts
