"""What a single file says of itself: header entries that other programs show, and the .yaml that A1111 wants beside it.

The entries are those of https://github.com/Stability-AI/ModelSpec.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from fastsd_lib.core.tensor_file import TensorFile
from fastsd_lib.formats.configs import METADATA_KEY, unpack
from fastsd_lib.formats.derived_configs import (
    SCHEDULER,
    guessed_prediction,
    predicts_edm,
    said_prediction,
    unet_channels,
)
from fastsd_lib.formats.known_configs import bundled, known_name

PREFIX = "modelspec."
HASH_KEY = f"{PREFIX}hash_sha256"
# Entries that hold a hash over weights: false as soon as one of them is another.
HASHES = (HASH_KEY, "sshs_model_hash", "sshs_legacy_hash")
IMPLEMENTATIONS = {
    "sd1": "https://github.com/CompVis/stable-diffusion",
    "sd2": "https://github.com/Stability-AI/stablediffusion",
    "sdxl": "https://github.com/Stability-AI/generative-models",
    "sdxl_refiner": "https://github.com/Stability-AI/generative-models",
}
# Kind of file, what its U-Net is shown (input channels) -> architecture; SD 2.x has two for text to image.
ARCHITECTURES = {
    ("sd1", 4): "stable-diffusion-v1",
    ("sd1", 9): "stable-diffusion-v1-inpainting",
    ("sd1", 8): "stable-diffusion-v1-edit",
    ("sd2", 4): "stable-diffusion-v2-512",
    ("sd2", 9): "stable-diffusion-v2-inpainting",
    ("sd2", 5): "stable-diffusion-v2-depth",
    ("sdxl", 4): "stable-diffusion-xl-v1-base",
    ("sdxl", 9): "stable-diffusion-xl-v1-inpainting",
    ("sdxl", 8): "stable-diffusion-xl-v1-edit",
    ("sdxl_refiner", 4): "stable-diffusion-xl-v1-refiner",
}
SD2_VELOCITY = "stable-diffusion-v2-768-v"
SD2_UNKNOWN = "stable-diffusion-v2"  # the two above say what it predicts
# What the U-Net is shown besides latents -> how latent-diffusion's class is called and told so.
_YAML_MODELS = {
    4: ("ldm.models.diffusion.ddpm.LatentDiffusion", "crossattn"),
    9: ("ldm.models.diffusion.ddpm.LatentInpaintDiffusion", "hybrid"),
}
_YAML_TEXTS = {
    "sd1": "      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder",
    "sd2": "      target: ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder\n"
    "      params:\n        freeze: true\n        layer: penultimate",
}


@dataclass(frozen=True)
class Facts:
    """What a header says of a model's kind."""

    kind: str  # sd1, sd2, sdxl, sdxl_refiner
    channels: int = 4  # that the U-Net is shown
    prediction: str = "epsilon"  # "epsilon", "v_prediction", "edm"
    side_px: int = 0  # of the pictures it was trained with; 0: unknown
    guessed: bool = (
        False  # nobody said what it predicts: a guess that is written down would be a fact to the next
    )

    @classmethod
    def of(cls, kind: str, configs: Mapping[str, str]) -> Facts:
        """Of a pipeline with these configs (path in a Diffusers folder -> JSON text)."""
        unet, vae = json.loads(configs["unet/config.json"]), json.loads(configs["vae/config.json"])
        scheduler = json.loads(configs.get(SCHEDULER, "{}"))
        return cls(
            kind,
            unet.get("in_channels", 4),
            "edm" if is_edm(scheduler) else scheduler.get("prediction_type", "epsilon"),
            _latents(unet) * 2 ** (len(vae["block_out_channels"]) - 1),
            bool(scheduler.get("fastsd_guessed")),
        )


def is_edm(scheduler: Mapping[str, Any]) -> bool:
    """Whether a folder's schedule is one for EDM models: EDMEulerScheduler, EDMDPMSolverMultistepScheduler."""
    return str(scheduler.get("_class_name", "")).startswith("EDM")


def file_facts(file: TensorFile, kind: str) -> Facts:
    """Of a single file, as far as it says them or its shapes are those of a published model."""
    facts = _file_facts(file, kind)
    return replace(facts, prediction="edm", guessed=False) if predicts_edm(file) else facts


def _file_facts(file: TensorFile, kind: str) -> Facts:
    prediction = said_prediction(file, file.path) or guessed_prediction(file, kind)
    packed = file.metadata.get(METADATA_KEY)
    if packed:
        own = Facts.of(kind, unpack(packed, file.path))
        return replace(own, prediction=prediction.kind, guessed=prediction.guessed)
    name = known_name(file, kind, prediction.kind == "v_prediction")
    configs = {path: json.dumps(value) for path, value in bundled(name).items()} if name else {}
    side_px = Facts.of(kind, configs).side_px if configs else 0
    return Facts(kind, unet_channels(file), prediction.kind, side_px, prediction.guessed)


def modelspec(title: str, facts: Facts) -> dict[str, str]:
    """The header entries of a model."""
    velocity = facts.prediction == "v_prediction"
    architecture = ARCHITECTURES.get((facts.kind, facts.channels), ARCHITECTURES[facts.kind, 4])
    if architecture == ARCHITECTURES["sd2", 4] and (velocity or facts.guessed):
        architecture = SD2_UNKNOWN if facts.guessed else SD2_VELOCITY
    entries = {
        "sai_model_spec": "1.0.1",
        "architecture": architecture,
        "implementation": IMPLEMENTATIONS[facts.kind],
        "title": title,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    if facts.side_px:
        entries["resolution"] = f"{facts.side_px}x{facts.side_px}"
    if not facts.guessed and facts.prediction != "edm":  # ModelSpec has no word for it
        entries["prediction_type"] = "v" if velocity else facts.prediction
    return {"format": "pt"} | {PREFIX + name: value for name, value in entries.items()}


def as_text(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Header entries: values that are not text are stored as JSON (a recipe, for example)."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        for key, value in metadata.items()
    }


def needs_yaml(kind: str, channels: int, prediction: str) -> bool:
    """Whether A1111 may misread the model without a .yaml: it takes SD 1.x and 2.x to predict noise.

    (Of SD 2.x it runs the U-Net once to find out; a .yaml beside the file goes first.) SDXL files carry marks.
    """
    return prediction == "v_prediction" and kind in _YAML_TEXTS and channels in _YAML_MODELS


def velocity_yaml(kind: str, configs: Mapping[str, str]) -> str:
    """The whole config that A1111 builds the model from when it stands beside it, for one that predicts velocity."""
    unet, vae = json.loads(configs["unet/config.json"]), json.loads(configs["vae/config.json"])
    widths, vae_widths = unet["block_out_channels"], vae["block_out_channels"]
    attending = [
        2**level for level, block in reversed([*enumerate(unet["down_block_types"])]) if "CrossAttn" in block
    ]
    channels = unet.get("in_channels", 4)
    target, conditioning = _YAML_MODELS[channels]
    latents = _latents(unet) or 64
    heads = (
        "num_head_channels: 64" if kind == "sd2" else f"num_heads: {_one(unet.get('attention_head_dim', 8))}"
    )
    return f"""# Made by fastsd: this model predicts velocity, which its weights alone do not tell.
model:
  target: {target}
  params:
    parameterization: "v"
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: {latents}
    channels: 4
    cond_stage_trainable: false
    conditioning_key: {conditioning}
    monitor: val/loss_simple_ema
    scale_factor: {vae.get("scaling_factor", 0.18215)}
    use_ema: false
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 32
        in_channels: {channels}
        out_channels: {unet.get("out_channels", 4)}
        model_channels: {widths[0]}
        attention_resolutions: {attending}
        num_res_blocks: {unet.get("layers_per_block", 2)}
        channel_mult: {[width // widths[0] for width in widths]}
        {heads}
        use_spatial_transformer: true
        use_linear_in_transformer: {str(bool(unet.get("use_linear_projection"))).lower()}
        transformer_depth: 1
        context_dim: {unet.get("cross_attention_dim", 1280)}
        use_checkpoint: false
        use_fp16: {str(kind == "sd2").lower()}
        legacy: false
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: {vae.get("latent_channels", 4)}
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: {vae.get("latent_channels", 4)}
          resolution: {latents * 2 ** (len(vae_widths) - 1)}
          in_channels: 3
          out_ch: 3
          ch: {vae_widths[0]}
          ch_mult: {[width // vae_widths[0] for width in vae_widths]}
          num_res_blocks: {vae.get("layers_per_block", 2)}
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
{_YAML_TEXTS[kind]}
"""


def _latents(unet: Mapping[str, Any]) -> int:
    """The side of the latents that it was trained with; 0 where the config names none, or two."""
    size = unet.get("sample_size", 64)
    return size if isinstance(size, int) else 0


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value
