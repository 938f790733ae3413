"""For which model a LoRA file was made, from the names and shapes of its layers, and what its metadata says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats import lora_names
from fastsd_lib.formats.lora_layers import Family, Layer, Place
from fastsd_lib.formats.lora_settings import KEPT

# Widths of the two transformers, for files that name only layers which both have.
_FLUX_WIDTHS, _SD3_WIDTHS = {3072}, {1536, 2432}
_FLUX_ALONE = (
    "double_blocks.",
    "single_blocks.",
    "single_transformer_blocks.",
    "img_in",
    "txt_in",
    "guidance_in",
)
_BOTH_TRANSFORMERS = ("transformer_blocks.", "context_embedder", "time_text_embed.", "norm_out.")
_SAY_FAMILY = ("ss_base_model_version", "modelspec.architecture", KEPT)
_TEXT_WIDTHS = {768: "sd", 1024: "sd", 2048: "sdxl"}  # what the U-Net's cross-attention reads


def family_of(metadata: Mapping[str, str], layers: Mapping[Place, Layer], named: Path) -> Family:
    """UserError, naming the file as the user did, when its layers stand in two models alike."""
    body = [path for part, path in layers if part in ("unet", "transformer")]
    said = " ".join(str(metadata.get(key)) for key in _SAY_FAMILY).lower()
    if any(path.startswith(_FLUX_ALONE) for path in body) or (not body and "flux" in said):
        return "flux"
    if any(path.startswith("joint_blocks.") for path in body) or (not body and _says_sd3(said)):
        return "sd3"
    if any(path.startswith(_BOTH_TRANSFORMERS) for path in body):
        return _transformer_family(layers, said, named)
    parts = {part for part, _ in layers}
    if not body and "text_encoder_3" in parts:
        return "sd3"
    return "sdxl" if "text_encoder_2" in parts or _is_sdxl(layers, body, said) else "sd"


def _transformer_family(layers: Mapping[Place, Layer], said: str, named: Path) -> Family:
    """Which of the two whose blocks diffusers gives the same names."""
    if "flux" in said:
        return "flux"
    if _says_sd3(said) or any(".attn2." in path for _, path in layers):
        return "sd3"
    for (_, path), layer in layers.items():
        if path.endswith((".attn.to_q", ".attn.to_k", ".attn.to_v", ".attn.add_q_proj")) and layer.plain:
            width = layer.tensors["down"].shape[1]
            if width in _FLUX_WIDTHS | _SD3_WIDTHS:
                return "flux" if width in _FLUX_WIDTHS else "sd3"
    raise UserError(
        f"{named} is a LoRA for Flux or for SD 3: its layers have names and shapes that do not tell which.",
        fix="write the model into its metadata (modelspec.architecture), or take another copy of the file.",
    )


def _says_sd3(said: str) -> bool:
    return "sd3" in said or "stable-diffusion-3" in said


def _is_sdxl(layers: Mapping[Place, Layer], body: list[str], said: str) -> bool:
    for (_, path), layer in layers.items():
        if ".attn2.to_" in path and path.endswith(("_k", "_v")) and "down" in layer.tensors:
            width = layer.tensors["down"].shape[1]
            if width in _TEXT_WIDTHS:
                return _TEXT_WIDTHS[width] == "sdxl"
    if "xl" in said or any(re.search(r"\.\d\.transformer_blocks\.1\.", path) for path in body):
        return True  # the others have one transformer block at each place
    original = [path for path in body if lora_names.is_original(path)]
    return bool(original) and lora_names.unet_kind(original) == "sdxl"
