"""Every kind of model file told by the names and shapes of its tensors; rules in a row, the first that fits speaks.

No file name, no size, no weight is looked at. Names as in the files that go round: CompVis and Stability (whole
checkpoints), kohya and peft (LoRA), lllyasviel (ControlNet), TencentARC (T2I-Adapter), Black Forest Labs (Flux).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastsd_lib.models import kinds_addons, kinds_models
from fastsd_lib.models.kind import BASE_BY_TEXT_WIDTH, KIND_WORDS, USES, Kind, Seen, Tensors

__all__ = [
    "BASE_BY_TEXT_WIDTH", "KIND_WORDS", "RULES", "USES", "Kind", "foreign_model", "kind_of",
]  # fmt: skip

# Add-ons first: they look like parts of whole models.
RULES: tuple[Callable[[Seen], Kind | None], ...] = (*kinds_addons.RULES, *kinds_models.RULES)

# Tensors that only models of other families have -> their family. Some of them share names with Flux or SDXL.
_OTHER_FAMILIES = {
    "distilled_guidance_layer.": "Chroma",
    "double_stream_modulation_img": "Flux.2",
    "single_stream_modulation.lin": "Flux.2",
    "early_stream_modulations.": "Flux.3",
    "individual_token_refiner.": "HunyuanVideo",
    "img_attn_qkv.": "HunyuanVideo",
    "time_stack.": "Stable Video Diffusion",
    "temporal_transformer_blocks.": "Stable Video Diffusion",
    "time_pos_embed.": "Stable Video Diffusion",
    "temp_convs.": "ModelScope",
    "encoder_hid_proj.weight": "Kolors or DeepFloyd",
    "encoder_hid_proj.image_embeds": "Kandinsky",
    "effnet_mapper.": "Stable Cascade",
    "clip_txt_mapper.": "Stable Cascade",
    "cond_seq_linear.": "AuraFlow",
    "joint_transformer_blocks.": "AuraFlow",
    "patchify_proj.": "LTX-Video",
    "attn.qkv_x.": "Mochi",
    "cap_embedder.": "Lumina or Z-Image",
    "cross_attn.kv_linear.": "PixArt or Sana",
    "head.modulation": "Wan",
    "double_stream_blocks.": "HiDream",
    "vace_blocks.": "Wan VACE",
    "txtfusion.projector": "Krea",
    "txt_norm.weight": "Qwen-Image",
    "add_embedding.image_norm": "Kandinsky",
}


def kind_of(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Kind | None:
    """The kind of a file with these tensors; None when no rule knows them."""
    seen = Seen(tensors, metadata or {})
    if found := kinds_addons.lora(
        seen
    ):  # Flux' own are called like HunyuanVideo's tensors, with dots for lines
        return found
    if foreign_model(tensors):
        return None
    return next((found for rule in RULES if (found := rule(seen))), None)


def foreign_model(tensors: Tensors) -> str:
    """The name of a family that this program does not know how to draw with, when these are its tensors."""
    seen = Seen(tensors, {})
    return next((family for mark, family in _OTHER_FAMILIES.items() if seen.some(mark)), "")
