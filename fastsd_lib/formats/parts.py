"""A Diffusers folder as live modules, one part at a time, in the precision that the work needs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import read_json
from fastsd_lib.core.model_files import ModelFiles


@dataclass
class Parts:
    """What a Stable Diffusion pipeline is made of; `scheduler` is the content of scheduler_config.json."""

    tokenizer: Any
    text_encoder: torch.nn.Module
    unet: torch.nn.Module
    vae: torch.nn.Module
    scheduler: dict[str, Any]

    @property
    def scaling_factor(self) -> float:
        return float(self.vae.config.scaling_factor)

    @property
    def native_px(self) -> int:
        """The picture size that the model was trained on."""
        return int(self.unet.config.sample_size) * self.vae_factor

    @property
    def vae_factor(self) -> int:
        """Pixels per latent, along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)


def load_parts(model: ModelFiles, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Parts:
    """Every part of an SD 1.x or 2.x folder, ready to run; raises UserError for a folder that lacks one."""
    if model.layout != "diffusers":
        raise UserError(f"{model.path} is a single file.", fix="convert it to a Diffusers folder first.")
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        if not (model.path / part).is_dir():
            raise UserError(f"{model.path} has no {part}/ folder.", fix="give the folder of a complete Stable Diffusion pipeline.")
    # Imported by module: `from diffusers import X` would load twice as much.
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    options = {"torch_dtype": dtype, "local_files_only": True}
    unet = UNet2DConditionModel.from_pretrained(model.path, subfolder="unet", **options)
    vae = AutoencoderKL.from_pretrained(model.path, subfolder="vae", **options)
    text_encoder = CLIPTextModel.from_pretrained(model.path, subfolder="text_encoder", dtype=dtype, local_files_only=True)
    tokenizer = CLIPTokenizer.from_pretrained(model.path / "tokenizer", local_files_only=True)
    for module in (unet, vae, text_encoder):
        module.to(device).eval().requires_grad_(False)
    return Parts(tokenizer, text_encoder, unet, vae, read_json(model.path / "scheduler" / "scheduler_config.json"))


def encode_prompts(parts: Parts, prompts: list[str]) -> torch.Tensor:
    """Last hidden states (len(prompts), tokens, width) of prompts cut to the tokenizer's length."""
    ids = parts.tokenizer(
        prompts, padding="max_length", truncation=True, max_length=parts.tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    return parts.text_encoder(input_ids=ids.to(parts.text_encoder.device)).last_hidden_state


def save_module(module: torch.nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Weights and config of one part, as Diffusers and transformers read them."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    name = "model.safetensors" if hasattr(module.config, "hidden_size") else "diffusion_pytorch_model.safetensors"
    weights = {key: (value.to(dtype) if value.is_floating_point() else value).contiguous() for key, value in module.state_dict().items()}
    save_file(weights, folder / name, metadata={"format": "pt"})
    config = json.loads(module.to_json_string() if hasattr(module, "to_json_string") else module.config.to_json_string())
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
