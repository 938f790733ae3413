"""Every kind of model file told by the names and shapes of its tensors; rules in a row, the first that fits speaks.

No file name, no size, no weight is looked at. Names as in the files that go round: CompVis and Stability (whole
checkpoints), kohya and peft (LoRA), lllyasviel (ControlNet), TencentARC (T2I-Adapter), Black Forest Labs (Flux).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fastsd_lib.core.tensor_file import Tensor

Tensors = Mapping[str, Tensor]

# Width of the text that the U-Net's cross-attention reads -> base model.
BASE_BY_TEXT_WIDTH = {768: "sd1", 1024: "sd2", 1280: "sdxl_refiner", 2048: "sdxl"}
# Input channels of the U-Net -> what it is for. 4 are the latents; the rest is what else it is shown.
USES = {4: "text to image", 9: "inpainting", 8: "instruct-pix2pix", 5: "depth to image", 7: "upscaling"}
UNET = "model.diffusion_model."
#: Prefixes under which programs keep one model's tensors.
_WRAPPED = (UNET, "model.", "diffusion_model.", "transformer.", "unet.")
_READS_TEXT = re.compile(r"(?:^|[._])attn2[._]to_[kv]\b|(?:^|_)attn2_to_[kv](?=\.)")
_BLOCK = re.compile(r"joint_blocks\.(\d+)\.")


@dataclass(frozen=True)
class Kind:
    """What a file is. An empty text: it cannot be told from names and shapes."""

    kind: str  # "checkpoint", "unet", "transformer", "vae", "lora", "embedding", "controlnet" ...
    family: str = ""  # sd1, sd2, sdxl, sdxl_refiner, sd3, flux: the base model that it is or needs
    variant: str = ""  # "inpainting", "dev", "3.5 large", "LoHa", "union" ...
    naming: str = ""  # whose names: "kohya", "peft", "diffusers", "original"
    ema: bool = False  # averaged weights stand beside the others
    whole: bool = False  # can be drawn with as it is: nothing has to be taken from another file


def kind_of(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Kind | None:
    """The kind of a file with these tensors; None when no rule knows them."""
    for rule in RULES:
        found = rule(tensors, metadata or {})
        if found is not None:
            return found
    return None


# ------------------------------------------------------------------ small things first: they look like parts of large ones


def _lora(tensors: Tensors, metadata: Mapping[str, str]) -> Kind | None:
    marks = (
        "lora_down",
        "lora_up",
        "lora_A",
        "lora_B",
        "lora.down",
        "lora.up",
        "hada_w",
        "lokr_w",
        "oft_blocks",
    )
    own = [name for name in tensors if any(mark in name for mark in marks)]
    if not own or len(own) * 4 < len(
        tensors
    ):  # alphas and scales stand beside; a checkpoint would have much more
        return None
    if any(name.startswith("lora_controlnet") for name in tensors):
        return Kind("control-lora", _base_by_attention(tensors, 1), naming="original")
    return Kind("lora", _lora_base(tensors, own, metadata), _lora_kind(tensors, own), _lora_naming(tensors))


def _lora_kind(tensors: Tensors, own: Iterable[str]) -> str:
    if _some(tensors, "dora_scale", "lora_magnitude_vector"):
        return "DoRA"
    for mark, name in (("hada_w", "LoHa"), ("lokr_w", "LoKr"), ("oft_blocks", "OFT")):
        if _some(tensors, mark):
            return name
    wide = (tensors[name].shape[2:] for name in own if len(tensors[name].shape) == 4)
    return "LoCon" if any(side != (1, 1) for side in wide) else "LoRA"


def _lora_naming(tensors: Tensors) -> str:
    if _some(tensors, "lora_unet_", "lora_te", "lora_transformer_"):
        return "kohya"
    return "peft" if _some(tensors, "lora_A", "lora_B") else "diffusers"


def _lora_base(tensors: Tensors, own: list[str], metadata: Mapping[str, str]) -> str:
    if _some(tensors, "double_blocks", "single_transformer_blocks", "single_blocks"):
        return "flux"
    if _some(tensors, "joint_blocks", "add_k_proj") and not _some(tensors, "attn2"):
        return "sd3"
    for name in own:
        # What reads the text: the first matrix is (rank, width of the text); LoKr's are products, so it says nothing.
        if _READS_TEXT.search(name) and re.search(r"lora_down|lora_A|lora\.down|hada_w1_b|hada_w2_b", name):
            return BASE_BY_TEXT_WIDTH.get(tensors[name].shape[-1], "")
    if _some(tensors, "lora_te2_", "text_encoder_2."):
        return "sdxl"
    said = f"{metadata.get('ss_base_model_version', '')} {metadata.get('modelspec.architecture', '')}".lower()
    for word, family in (("flux", "flux"), ("sd3", "sd3"), ("stable-diffusion-3", "sd3"), ("xl", "sdxl"),
                         ("sd_v2", "sd2"), ("diffusion-v2", "sd2"), ("sd_v1", "sd1"), ("diffusion-v1", "sd1")):  # fmt: skip
        if word in said:
            return family
    return ""


def _embedding(tensors: Tensors, metadata: Mapping[str, str]) -> Kind | None:
    if {"clip_l", "clip_g"} <= set(tensors):
        return Kind("embedding", "sdxl", naming="original")
    small = len(tensors) <= 3 and all(len(one.shape) <= 2 for one in tensors.values())
    named = next((one for name, one in tensors.items() if name in ("emb_params", "string_to_param.*")), None)
    vectors = named or (next(iter(tensors.values())) if len(tensors) == 1 else None)
    if not small or vectors is None or not vectors.shape:
        return None
    family = {768: "sd1", 1024: "sd2", 1280: "sdxl"}.get(vectors.shape[-1], "")
    return Kind("embedding", family, naming="original") if family or named else None


def _control(tensors: Tensors, metadata: Mapping[str, str]) -> Kind | None:
    if _some(tensors, "controlnet_x_embedder") or (
        _some(tensors, "controlnet_blocks.") and _some(tensors, "transformer_blocks.")
    ):
        flux = _some(tensors, "single_transformer_blocks", "x_embedder.bias") and _some(
            tensors, "context_embedder"
        )
        sd3 = _some(tensors, "pos_embed")
        return Kind("controlnet", "sd3" if sd3 else "flux" if flux else "", naming="diffusers")
    original = _some(tensors, "control_model.", "zero_convs.0", "input_hint_block.0")
    if not (original or _some(tensors, "controlnet_cond_embedding", "controlnet_down_blocks")):
        return None
    union = _some(tensors, "task_embedding", "control_add_embedding", "control_type_proj")
    naming = "original" if original else "diffusers"
    return Kind("controlnet", _base_by_attention(tensors, 1), "union" if union else "", naming)


def _adapters(tensors: Tensors, metadata: Mapping[str, str]) -> Kind | None:
    if _some(tensors, "ip_adapter.", "image_proj.", "image_proj_model."):
        width = next((one.shape[1] for name, one in tensors.items() if "to_k_ip" in name), 0)
        return Kind("ip-adapter", BASE_BY_TEXT_WIDTH.get(width, ""))
    if _some(tensors, "body.0.in_conv", "adapter.body.", "body.0.resnets.0", "body.0.block1"):
        xl = any(
            one.shape[:2] == (320, 256) or one.shape[1:2] == (768,) for one in _convs(tensors, "conv_in")
        )
        return Kind(
            "t2i-adapter",
            "sdxl" if xl else "sd1",
            naming="diffusers" if _some(tensors, "adapter.") else "original",
        )
    if _some(tensors, "motion_modules."):
        return Kind("motion-module", "sdxl" if not _some(tensors, "down_blocks.3.") else "sd1")
    return None


def _upscaler(tensors: Tensors, metadata: Mapping[str, str]) -> Kind | None:
    for variant, *marks in (
        ("ESRGAN", "model.1.sub.0.RDB1.conv1.0.weight", "model.0.weight"),
        ("RRDBNet", "body.0.rdb1.conv1.weight", "conv_first.weight"),
        ("RRDBNet", "RRDB_trunk.0.RDB1.conv1.weight", "conv_first.weight"),
        ("SwinIR", "layers.0.residual_group.blocks.0.attn.qkv.weight", "conv_first.weight"),
        ("HAT", "layers.0.residual_group.overlap_attn.relative_position_bias_table", "conv_first.weight"),
        ("DAT", "layers.0.blocks.0.attn.qkv.weight", "before_RG.1.weight"),
    ):
        if any(
            set(marks) <= {name.removeprefix(wrapper) for name in tensors}
            for wrapper in ("", "params_ema.", "params.")
        ):
            return Kind("upscaler", variant=variant)
    rows = {name.partition(".")[2] for name in tensors if name.startswith("body.")}
    if (
        rows
        and set(name.split(".")[0] for name in tensors) == {"body"}
        and "0.weight" in rows
        and "1.weight" in rows
    ):
        return Kind("upscaler", variant="compact")
    return None


# ------------------------------------------------------------------ whole models and their parts


def _transformers(tensors: Tensors, metadata: Mapping[str, str]) -> Kind | None:
    if _some(tensors, "double_blocks.0.img_attn"):
        dev = _some(tensors, "guidance_in.")
        whole = _some(tensors, "text_encoders.", "vae.", "first_stage_model.")
        return Kind(
            "checkpoint" if whole else "transformer",
            "flux",
            "dev" if dev else "schnell",
            "original",
            whole=whole,
        )
    if _some(tensors, "single_transformer_blocks.0."):
        dev = _some(tensors, "time_text_embed.guidance_embedder")
        return Kind("transformer", "flux", "dev" if dev else "schnell", "diffusers")
    blocks = [int(found[1]) for name in tensors if (found := _BLOCK.search(name))]
    if blocks:
        whole = _some(tensors, "text_encoders.") and _some(tensors, "first_stage_model.")
        return Kind(
            "checkpoint" if whole else "transformer",
            "sd3",
            _sd3(tensors, max(blocks) + 1),
            "original",
            whole=whole,
        )
    if _some(tensors, "transformer_blocks.0.attn.add_k_proj") and _some(tensors, "pos_embed.proj"):
        return Kind("transformer", "sd3", naming="diffusers")
    return None


def _sd3(tensors: Tensors, blocks: int) -> str:
    if _some(tensors, "x_block.attn2."):
        return "3.5 medium"
    if _some(tensors, "attn.ln_k"):
        return "3.5 large" if blocks >= 38 else "3.5 medium"
    return "3 medium"


def _checkpoint(tensors: Tensors, metadata: Mapping[str, str]) -> Kind | None:
    first = tensors.get(f"{UNET}input_blocks.0.0.weight")
    if first is None:
        return None
    family = _base_by_text_encoder(tensors) or _base_by_attention(tensors, 1)
    use = USES.get(first.shape[1] if len(first.shape) == 4 else 0, f"{first.shape} first")
    variant = "" if use == "text to image" else use
    if family == "sd2" and _some(tensors, "depth_model."):
        variant = "depth to image"
    whole = bool(_base_by_text_encoder(tensors)) and _some(tensors, "first_stage_model.")
    return Kind(
        "checkpoint" if whole else "unet", family, variant, "original", _some(tensors, "model_ema."), whole
    )


def _base_by_text_encoder(tensors: Tensors) -> str:
    for prefix, family in (
        ("conditioner.embedders.1.", "sdxl"),
        ("conditioner.embedders.0.model.", "sdxl_refiner"),
        ("conditioner.embedders.0.transformer.", "sdxl"),
        ("cond_stage_model.model.", "sd2"),
        ("cond_stage_model.transformer.", "sd1"),
    ):
        if any(name.startswith(prefix) for name in tensors):
            return family
    return ""


def _unet(tensors: Tensors, metadata: Mapping[str, str]) -> Kind | None:
    bare = {_unwrapped(name): one for name, one in tensors.items()}
    first = bare.get("conv_in.weight") or bare.get("input_blocks.0.0.weight")
    if first is None or not (_some(bare, "down_blocks.", "input_blocks.1.") and _some(bare, "time_embed")):
        return None
    use = USES.get(first.shape[1] if len(first.shape) == 4 else 0, "")
    naming = "diffusers" if "conv_in.weight" in bare else "original"
    return Kind("unet", _base_by_attention(bare, 1), "" if use == "text to image" else use, naming)


def _vae(tensors: Tensors, metadata: Mapping[str, str]) -> Kind | None:
    bare = {
        name.removeprefix("first_stage_model.").removeprefix("vae."): one for name, one in tensors.items()
    }
    into = bare.get("decoder.conv_in.weight")
    if into is not None and "encoder.conv_in.weight" in bare:
        naming = "diffusers" if _some(bare, "encoder.down_blocks.") else "original"
        # 4 channels: SD 1, 2 and XL alike; their VAEs differ in numbers alone.
        channels = into.shape[1] if len(into.shape) == 4 else 0
        return Kind("vae", variant=f"{channels} latent channels", naming=naming)
    if {"encoder.layers.0.weight", "decoder.layers.1.weight"} & set(bare) or "taesd_decoder.1.weight" in bare:
        return Kind("vae", variant="tiny (TAESD)")
    return None


def _text_encoder(tensors: Tensors, metadata: Mapping[str, str]) -> Kind | None:
    if _some(tensors, "encoder.block.0.layer.0.SelfAttention"):
        return Kind("text-encoder", variant="T5")
    if _some(tensors, "transformer.resblocks.0."):
        return Kind("text-encoder", variant="OpenCLIP")
    if _some(tensors, "encoder.layers.0.self_attn.") and _some(tensors, "token_embedding"):
        return Kind("text-encoder", variant="CLIP")
    return None


RULES: tuple[Callable[[Tensors, Mapping[str, str]], Kind | None], ...] = (
    _lora, _embedding, _control, _adapters, _upscaler, _transformers, _checkpoint, _unet, _vae, _text_encoder,
)  # fmt: skip


# ------------------------------------------------------------------ what the rules ask


def _some(tensors: Iterable[str], *marks: str) -> bool:
    return any(mark in name for name in tensors for mark in marks)


def _convs(tensors: Tensors, mark: str) -> list[Tensor]:
    return [one for name, one in tensors.items() if mark in name and len(one.shape) == 4]


def _unwrapped(name: str) -> str:
    return next((name[len(start) :] for start in _WRAPPED if name.startswith(start)), name)


def _base_by_attention(tensors: Tensors, axis: int) -> str:
    """By what cross-attention reads: the keys' matrix is (width of the U-Net, width of the text)."""
    for name, one in tensors.items():
        if name.endswith("attn2.to_k.weight") and len(one.shape) > axis:
            return BASE_BY_TEXT_WIDTH.get(one.shape[axis], "")
    return ""
