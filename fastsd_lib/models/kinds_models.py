"""Rules for base models and their parts: whole checkpoints, U-Net, transformer, VAE, text encoder."""

from __future__ import annotations

import re

from fastsd_lib.models.kind import TEXT_INSIDE, USES, VAE_INSIDE, Kind, Seen, channels

UNET = "model.diffusion_model."
#: Prefixes under which programs keep one model's tensors.
_WRAPPED = (UNET, "model.", "diffusion_model.", "transformer.", "unet.")
_VAES = ("first_stage_model.", "vae.")
_TEXTS = ("cond_stage_model.", "conditioner.embedders.", "text_encoders.")
_BLOCK = re.compile(r"joint_blocks\.(\d+)\.")
_MARKS = {
    "v_pred": "v_pred", "ztsnr": "ztsnr", "edm_mean": "edm", "edm_vpred.sigma_max": "edm", "scaled_fp8": "scaled fp8",
    f"{UNET}scaled_fp8": "scaled fp8",
}  # fmt: skip
# What Flux's first layer takes -> what it is for: 64 latents, and as many for a second picture; a mask takes 256.
_FLUX_USES = {384: "fill", 128: "depth or canny", 448: "fill"}


def _marks(seen: Seen, whole: bool = False) -> tuple[str, ...]:
    found = [mark for name, mark in _MARKS.items() if name in seen.tensors]
    if seen.ends(".scale_weight") and "scaled fp8" not in found:
        found.append("scaled fp8")
    if not whole:
        found += [VAE_INSIDE] if seen.starts(*_VAES) else []
        found += [TEXT_INSIDE] if seen.starts(*_TEXTS) else []
    return tuple(dict.fromkeys(found))


def flux(seen: Seen) -> Kind | None:
    original = seen.some("double_blocks.0.img_attn.")
    if not original and not seen.some("single_transformer_blocks.0."):
        return None
    dev = seen.some("guidance_in.", "time_text_embed.guidance_embedder")
    first = seen.shape(
        "img_in.weight", f"{UNET}img_in.weight", "x_embedder.weight", "transformer.x_embedder.weight"
    )
    variant = _FLUX_USES.get(channels(first), "dev" if dev else "schnell")
    whole = _is_whole(seen)
    naming = "original" if original else "diffusers"
    return Kind(
        "checkpoint" if whole else "transformer",
        "flux",
        variant,
        naming,
        whole=whole,
        marks=_marks(seen, whole),
    )


def _is_whole(seen: Seen) -> bool:
    return seen.starts("text_encoders.") and seen.starts(*_VAES)


def sd3(seen: Seen) -> Kind | None:
    if seen.some("joint_blocks."):
        blocks = 1 + max(int(found[1]) for name in seen.tensors if (found := _BLOCK.search(name)))
        whole = _is_whole(seen)
        variant = _sd3_variant(blocks >= 38, seen.some("x_block.attn2."), seen.some("attn.ln_k"))
        return Kind(
            "checkpoint" if whole else "transformer",
            "sd3",
            variant,
            "original",
            whole=whole,
            marks=_marks(seen, whole),
        )
    if seen.some("transformer_blocks.0.attn.add_k_proj") and seen.some("pos_embed.proj"):
        wide = channels(seen.shape_at("transformer_blocks.0.attn.add_k_proj.weight")) >= 38 * 64
        variant = _sd3_variant(wide, seen.some(".attn2."), seen.some("attn.norm_k."))
        return Kind("transformer", "sd3", variant, "diffusers", marks=_marks(seen))
    return None


def _sd3_variant(wide: bool, second_attention: bool, normed: bool) -> str:
    """3.5 norms queries and keys; its medium model looks at the picture a second time."""
    if second_attention:
        return "3.5 medium"
    return "3.5 large" if wide or normed else "3 medium"


def checkpoint(seen: Seen) -> Kind | None:
    first = seen.shape(f"{UNET}input_blocks.0.0.weight")
    if not first:
        return None
    by_text = _family_by_text_encoder(seen)
    use = USES.get(channels(first), f"{channels(first)} input channels")
    variant = "" if use == "text to image" else use
    if seen.starts("depth_model."):
        variant = "depth to image"
    if seen.starts("noise_augmentor.", "embedder."):
        variant = "unCLIP"
    whole = bool(by_text) and seen.starts("first_stage_model.")
    return Kind("checkpoint" if whole else "unet", by_text or seen.base_by_attention(), variant, "original",
                seen.starts("model_ema."), whole, _marks(seen, whole))  # fmt: skip


def _family_by_text_encoder(seen: Seen) -> str:
    for prefix, family in (
        ("conditioner.embedders.1.", "sdxl"),
        ("conditioner.embedders.0.model.", "sdxl_refiner"),
        ("conditioner.embedders.0.transformer.", "sdxl"),
        ("cond_stage_model.model.", "sd2"),
        ("cond_stage_model.transformer.", "sd1"),
    ):
        if seen.starts(prefix):
            return family
    return ""


def unet(seen: Seen) -> Kind | None:
    if not seen.some("conv_in.weight", "input_blocks.0.0.weight"):
        return None
    bare = seen.without(*_WRAPPED)
    first = bare.shape("conv_in.weight", "input_blocks.0.0.weight")
    if not first or not (bare.some("down_blocks.", "input_blocks.1.") and bare.some("time_embed")):
        return None
    use = USES.get(channels(first), f"{channels(first)} input channels")
    naming = "diffusers" if "conv_in.weight" in bare.tensors else "original"
    return Kind(
        "unet", bare.base_by_attention(), "" if use == "text to image" else use, naming, marks=_marks(bare)
    )


def vae(seen: Seen) -> Kind | None:
    bare = seen.without("first_stage_model.", "vae.")
    into = bare.shape("decoder.conv_in.weight")
    out_of = bare.shape("encoder.conv_out.weight")
    if len(into) == 4 or "encoder.conv_in.weight" in bare.tensors:
        naming = "diffusers" if bare.some("encoder.down_blocks.", "decoder.up_blocks.") else "original"
        latents = channels(into) or (out_of[0] // 2 if out_of else 0)  # the encoder gives means and variances
        only = "" if into and bare.starts("encoder.") else ", decoder alone" if into else ", encoder alone"
        return Kind("vae", variant=f"{latents} latent channels{only}" if latents else "", naming=naming)
    tiny = bare.starts("encoder.layers.0.", "decoder.layers.1.", "taesd_decoder.", "taesd_encoder.")
    attends = bare.some(".self_attn.")  # a text encoder as transformers 5 names it begins alike
    return Kind("vae", variant="tiny (TAESD)") if tiny and not attends else None


_TEXT_ENCODERS = (
    # What a name holds, width of the model -> its name. T5 comes in many sizes, the others in these.
    ("encoder.block.0.layer.0.SelfAttention.q.weight", {4096: "T5-XXL"}, "T5"),
    ("transformer.resblocks.0.ln_1.weight", {1024: "OpenCLIP-H", 1280: "OpenCLIP-bigG"}, "OpenCLIP"),
    ("encoder.layers.0.self_attn.q_proj.weight", {768: "CLIP-L", 1024: "CLIP-H", 1280: "CLIP-bigG"}, "CLIP"),
)


def text_encoder(seen: Seen) -> Kind | None:
    for end, by_width, other in _TEXT_ENCODERS:
        shape = seen.shape_at(end)
        if shape and seen.some("vision_model.", "visual."):
            return Kind("image-encoder", variant=other)
        if shape and (other != "CLIP" or seen.some("token_embedding")):
            return Kind("text-encoder", variant=by_width.get(shape[-1], other))
    return None


RULES = (flux, sd3, checkpoint, unet, vae, text_encoder)
