"""Model files -> live modules: the same weights and names from a folder and from a single file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.formats.configs import read_configs, write_configs
from fastsd_lib.formats.single_file import open_single_file, single_file_configs
from fastsd_lib.formats.weights import Weights, folder_weights, single_file_weights

# The noise schedule of every SD 1.x model, for folders that lost theirs.
SD1_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@dataclass
class Parts:
    """Everything that draws: live modules, so that a training run can show what it has learned so far."""

    unet: torch.nn.Module
    vae: torch.nn.Module
    text_encoder: torch.nn.Module
    tokenizer: Any
    scheduler_config: Mapping[str, Any] = field(default_factory=lambda: SD1_SCHEDULE)
    name: str = "live"  # the model's name in records
    # fastsd.json of the model's folder: {"guidance_scale": 4.0}, what the model is best asked with
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent, 8 for SD 1.5."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def side_px(self) -> int:
        """The size the model was trained for."""
        return self.unet.config.sample_size * self.vae_factor


def load_parts(
    model: ModelFiles, device: torch.device, dtype: torch.dtype, config_from: Path | None = None
) -> Parts:
    """Load an SD 1.x model. `config_from`: a Diffusers folder that lends a bare single file its configs."""
    if model.family != "sd1":
        raise UserError(
            f"{model.path} is a {model.family} model; pictures are drawn with SD 1.x models so far.",
            fix="take an SD 1.x model, for example the embedded one.",
        )
    if model.layout == "single_file":
        file = open_single_file(model.path)
        configs = single_file_configs(file, config_from)
        weights = single_file_weights(file, configs)
    else:
        configs = read_configs(model.path)
        weights = folder_weights(model.path, configs)
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    config = {name: json.loads(text) for name, text in configs.items() if name.endswith(".json")}
    with torch.device("meta"):  # shapes only: the weights that follow are the only ones ever allocated
        unet = UNet2DConditionModel.from_config(config["unet/config.json"])
        vae = AutoencoderKL.from_config(config["vae/config.json"])
        text_encoder = CLIPTextModel(CLIPTextConfig.from_dict(config["text_encoder/config.json"]))
    return Parts(
        unet=_fill(unet, weights["unet"], device, dtype),
        vae=_fill(vae, weights["vae"], device, dtype),
        text_encoder=_fill(text_encoder, weights["text_encoder"], device, dtype),
        tokenizer=_tokenizer(configs, model.path),
        scheduler_config=config.get("scheduler/scheduler_config.json", SD1_SCHEDULE),
        name=model.path.stem if model.layout == "single_file" else model.path.name,
        defaults=config.get("fastsd.json", {}),
    )


def encode_prompts(parts: Parts, prompts: list[str]) -> torch.Tensor:
    """Last hidden states (len(prompts), tokens, width); prompts are cut to what the model reads."""
    limit = min(parts.tokenizer.model_max_length, parts.text_encoder.config.max_position_embeddings)
    tokens = parts.tokenizer(
        prompts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt", verbose=False
    )
    return parts.text_encoder(input_ids=tokens.input_ids.to(parts.text_encoder.device)).last_hidden_state


def _fill(
    module: torch.nn.Module, weights: Weights, device: torch.device, dtype: torch.dtype
) -> torch.nn.Module:
    wrapped = any(name.startswith("text_model.") for name in module.state_dict())
    state = {}
    for path in {weight.file.path for weight in weights.values()}:
        with safe_open(path, framework="pt") as file:
            for name, weight in weights.items():
                if weight.file.path == path:
                    ours = name if wrapped else name.removeprefix("text_model.")
                    state[ours] = file.get_tensor(weight.key).reshape(weight.shape).to(device, dtype)
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        origin = next(iter(weights.values())).file.path
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(
            f"The weights in {origin} do not fit their config: {reason}",
            fix="take the model's own config files.",
        ) from None
    for child in module.modules():  # the one buffer that is never stored: CLIP's 0, 1, 2 ...
        if isinstance(getattr(child, "position_ids", None), torch.Tensor):
            child.position_ids = torch.arange(child.position_ids.shape[-1], device=device)[None]
    return module.eval().requires_grad_(False)


def _tokenizer(configs: Mapping[str, str], origin: Path) -> Any:
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    if not any(name.startswith("tokenizer/") for name in configs):
        raise UserError(f"{origin} has no tokenizer.", fix="take the model's own tokenizer/ folder.")
    with tempfile.TemporaryDirectory() as folder:
        write_configs(configs, Path(folder))
        return CLIPTokenizer.from_pretrained(Path(folder) / "tokenizer")
