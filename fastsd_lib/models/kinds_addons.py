"""Rules for what is added to a base model: LoRA, embedding, ControlNet, adapters, upscaler."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fastsd_lib.models.kind import BASE_BY_TEXT_WIDTH, Kind, Seen, channels

_LORA_MARKS = (
    "lora_down", "lora_up", "lora_A", "lora_B", "lora.down", "lora.up", "hada_w", "lokr_w", "oft_blocks", "oft_diag",
    "_lora.",
)  # fmt: skip
_READS_TEXT = re.compile(
    r"(?:^|[._])attn2(?:[._]processor)?[._]to_[kv]\b|(?:^|_)attn2_to_[kv](?=\.)|attn2\S*to_[kv]_lora"
)
_FIRST_MATRIX = re.compile(r"lora_down|lora_A|lora\.down|hada_w1_b|hada_w2_b")
# A block of Flux or SD 3 as diffusers names it; a U-Net's stand inside of something.
_TRANSFORMER_BLOCK = re.compile(
    r"^(?:transformer\.|lora_transformer_|lora_unet_|diffusion_model\.|unet\.|base_model\.model\.)*"
    r"transformer_blocks[._](\d+)[._]"
)
# Layers of LoRAs for other transformers, whose blocks are called alike: Qwen-Image, Flux.2, AuraFlow, HunyuanVideo,
# LTX-Video.
_OTHER_TRANSFORMERS = (
    "img_mlp.net", "img_mlp_net", "img_mod.1", "img_mod_1", "txt_mlp.net", "txt_mlp_net",
    "to_qkv_mlp_proj", "ff.linear_in", "double_stream_modulation", "joint_transformer_blocks", ".img_attn_qkv",
    "attn1",
)  # fmt: skip
# What layers inside of the blocks take in: as wide as the model, or what their first half makes of that.
_FLUX_INPUTS, _SD3_INPUTS = {3072, 4 * 3072, 5 * 3072}, {1536, 2432}
_FLUX_DOUBLE_BLOCKS = 19  # Qwen-Image, as wide, has 60
# Inputs of a layer that only the text encoder of one family has.
_TEXT_WIDTHS = {1024: "sd2", 1280: "sdxl"}


def lora(seen: Seen) -> Kind | None:
    if "lora_controlnet" in seen.tensors:  # its layers are called .up and .down alone
        reads = seen.shape_at("attn2.to_k.down")  # (rank, width of the text)
        return Kind("control-lora", BASE_BY_TEXT_WIDTH.get(channels(reads), ""), naming="original")
    if not seen.some(*_LORA_MARKS) or seen.some("to_k_ip") or seen.starts("ip_adapter."):
        return None  # an IP-Adapter for faces brings a LoRA with it
    own = [name for name in seen.tensors if any(mark in name for mark in _LORA_MARKS)]
    if len(own) * 4 < len(seen.tensors):  # alphas and scales stand beside; a checkpoint would have much more
        return None
    return Kind("lora", _lora_base(seen, own), _lora_sort(seen, own), _lora_naming(seen))


def _lora_sort(seen: Seen, own: Iterable[str]) -> str:
    if seen.some("dora_scale", "lora_magnitude_vector"):
        return "DoRA"
    for mark, name in (("hada_w", "LoHa"), ("lokr_w", "LoKr"), ("oft_", "OFT")):
        if seen.some(mark):
            return name
    wide = (seen.tensors[name].shape[2:] for name in own if len(seen.tensors[name].shape) == 4)
    return "LoCon" if any(side != (1, 1) for side in wide) else "LoRA"


def _lora_naming(seen: Seen) -> str:
    if seen.starts("lora_unet_", "lora_te", "lora_transformer_", "lycoris_"):
        return "kohya"
    return "peft" if seen.some("lora_A", "lora_B") else "diffusers"


def _lora_base(seen: Seen, own: list[str]) -> str:
    if seen.some("joint_blocks"):
        return "sd3"
    flux = seen.some("double_blocks", "single_transformer_blocks", "single_blocks")
    if flux or any(_TRANSFORMER_BLOCK.match(name) for name in own):
        return _transformer_base(seen, own, flux)
    for name in own:
        # What reads the text: the first matrix is (rank, width of the text); LoKr's are products, so it says nothing.
        if _READS_TEXT.search(name) and _FIRST_MATRIX.search(name):
            return BASE_BY_TEXT_WIDTH.get(seen.tensors[name].shape[-1], "")
    if seen.some("lora_te2_", "text_encoder_2."):
        return "sdxl"
    return _said_base(seen) or _base_by_text_encoder(seen, own)


def _transformer_base(seen: Seen, own: list[str], flux: bool) -> str:
    """Flux or SD 3, by how wide their blocks are; `flux`: some are of a sort that SD 3 has not."""
    if seen.some(*_OTHER_TRANSFORMERS):
        return ""
    inputs = [seen.tensors[name].shape for name in own if "blocks" in name and _FIRST_MATRIX.search(name)]
    width = min((shape[-1] for shape in inputs if shape), default=0)  # 0: LoKr's products do not say
    if flux:
        return "flux" if width == 0 or width in _FLUX_INPUTS else ""
    if width == 0:
        return _said_base(seen)
    blocks = 1 + max(int(found[1]) for name in own if (found := _TRANSFORMER_BLOCK.match(name)))
    if width in _FLUX_INPUTS and blocks <= _FLUX_DOUBLE_BLOCKS:
        return "flux"
    return "sd3" if width in _SD3_INPUTS else ""


def _said_base(seen: Seen) -> str:
    keys = ("ss_base_model_version", "modelspec.architecture", "sd version")
    said = " ".join(seen.metadata.get(key, "") for key in keys).lower()
    for word, family in (("flux", "flux"), ("sd3", "sd3"), ("stable-diffusion-3", "sd3"), ("xl", "sdxl"),
                         ("sd_v2", "sd2"), ("diffusion-v2", "sd2"), ("sd_v1", "sd1"), ("diffusion-v1", "sd1")):  # fmt: skip
        if word in said:
            return family
    return ""


def _base_by_text_encoder(seen: Seen, own: list[str]) -> str:
    """By the width of the text encoder; 768 is that of SD 1.x and of the first of SDXL's and Flux's alike."""
    inputs = ("self_attn_q_proj", "self_attn.q_proj", "mlp_fc1", "mlp.fc1")
    for name in own:
        if _FIRST_MATRIX.search(name) and any(layer in name for layer in inputs):
            return _TEXT_WIDTHS.get(seen.tensors[name].shape[-1], "")
    return ""


def embedding(seen: Seen) -> Kind | None:
    names = set(seen.tensors)
    if {"clip_l", "clip_g"} <= names:
        return Kind("embedding", "sdxl", naming="original")
    small = len(names) <= 3 and all(len(one.shape) <= 2 for one in seen.tensors.values())
    named = "emb_params" in names or seen.starts("string_to_param.")
    held = [name for name in names if name.startswith("string_to_param.")]  # its tokens may be tensors too
    vectors = seen.shape("emb_params", *held) or next((one.shape for one in seen.tensors.values()), ())
    if not small or not vectors or not (named or len(names) == 1):
        return None
    family = {768: "sd1", 1024: "sd2", 1280: "sdxl"}.get(vectors[-1], "")
    one_word = len(names) == 1 and "." not in next(iter(names))  # diffusers: {"<word>": vectors}
    if not (named or (family and one_word)):
        return None
    return Kind("embedding", family, naming="original" if named else "diffusers")


def controlnet(seen: Seen) -> Kind | None:
    return _control_transformer(seen) or _control_unet(seen)


def _control_transformer(seen: Seen) -> Kind | None:
    """Flux and SD 3: a copy of some of the transformer's blocks, and layers of zeros behind each."""
    if not seen.starts(
        "controlnet_blocks.", "controlnet_x_embedder", "controlnet_single_blocks.", "pos_embed_input."
    ):
        return None
    naming = "original" if seen.starts("double_blocks.", "joint_blocks.") else "diffusers"
    union = "union" if seen.starts("controlnet_mode_embedder") else ""
    if seen.starts("pos_embed.", "joint_blocks.", "pos_embed_input.proj."):
        return Kind("controlnet", "sd3", union or _sd3_control_build(seen), naming)
    flux = seen.starts("double_blocks.", "single_transformer_blocks.", "x_embedder.", "context_embedder.")
    return Kind("controlnet", "flux" if flux else "", union, naming)


def _sd3_control_build(seen: Seen) -> str:
    """Which SD 3 it copies: large ones are wider, and 3.5 norms its keys and may look at the picture twice."""
    width = next(iter(seen.shape("controlnet_blocks.0.weight", "pos_embed_input.proj.weight")), 0)
    if width >= 2432:
        return "3.5 large"
    newer = seen.some(".attn2.", "attn.norm_k.", "attn.ln_k.")
    return ("3.5 medium" if newer else "3 medium") if width == 1536 else ""


def _control_unet(seen: Seen) -> Kind | None:
    if seen.some("lllite_"):
        width = seen.shape_at("attn2_to_k.down.0.weight") or seen.shape_at("attn2_to_q.down.0.weight")
        return Kind(
            "controlnet", "sdxl" if not seen.some("input_blocks_1_1_") or not width else "", "LLLite", "kohya"
        )
    original = seen.some("control_model.") or seen.starts("zero_convs.0", "input_hint_block.0")
    if not (original or seen.some("controlnet_cond_embedding", "controlnet_down_blocks")):
        return None
    union = seen.some("task_embedding", "control_add_embedding", "control_type_proj")
    naming = "original" if original else "diffusers"
    return Kind("controlnet", seen.base_by_attention(), "union" if union else "", naming)


def adapter(seen: Seen) -> Kind | None:
    if seen.some("ip_adapter_double_stream"):
        return Kind("ip-adapter", "flux")
    if seen.starts("ip_adapter.", "image_proj.", "image_proj_model."):
        variant = "plus" if seen.some("image_proj.latents", "image_proj_model.latents") else ""
        return Kind(
            "ip-adapter", BASE_BY_TEXT_WIDTH.get(channels(seen.shape_at("to_k_ip.weight")), ""), variant
        )
    if seen.starts("redux_up.") and seen.starts("redux_down."):
        return Kind("redux", "flux", naming="original")
    if seen.starts("style_embedding") and seen.starts("transformer_layes."):  # spelt so
        return Kind("t2i-adapter", "sd1", "style", "original")
    if seen.some("body.0.in_conv", "adapter.body.", "body.0.resnets.0", "body.0.block1"):
        # The picture comes folded into channels, 8x8 of it for SD 1.x and 16x16 for SDXL; 1 or 3 colours each.
        first = seen.shape(
            "conv_in.weight",
            "adapter.conv_in.weight",
            "adapter.body.0.in_conv.weight",
            "body.0.in_conv.weight",
        )  # the adapter for colours has no layer before its body
        family = {256: "sdxl", 768: "sdxl", 64: "sd1", 192: "sd1"}.get(channels(first), "")
        return Kind("t2i-adapter", family, naming="diffusers" if seen.starts("adapter.") else "original")
    if seen.some("motion_modules."):
        return Kind("motion-module", "sd1" if seen.some("down_blocks.3.") else "sdxl")
    return None


_UPSCALERS = (
    ("ESRGAN", "model.1.sub.0.RDB1.conv1.0.weight", "model.0.weight"),
    ("RRDBNet", "body.0.rdb1.conv1.weight", "conv_first.weight"),
    ("RRDBNet", "RRDB_trunk.0.RDB1.conv1.weight", "conv_first.weight"),
    ("SwinIR", "layers.0.residual_group.blocks.0.attn.qkv.weight", "conv_first.weight"),
    ("HAT", "layers.0.residual_group.overlap_attn.relative_position_bias_table", "conv_first.weight"),
    ("DAT", "layers.0.blocks.0.attn.qkv.weight", "before_RG.1.weight"),
)


def upscaler(seen: Seen) -> Kind | None:
    names = {name.removeprefix("params_ema.").removeprefix("params.") for name in seen.tensors}
    for variant, *marks in _UPSCALERS:
        if set(marks) <= names:
            return Kind("upscaler", variant=variant)
    rows = all(name.startswith("body.") for name in names)
    compact = rows and {"body.0.weight", "body.1.weight"} <= names
    return Kind("upscaler", variant="compact") if compact else None


RULES = (lora, embedding, controlnet, adapter, upscaler)
