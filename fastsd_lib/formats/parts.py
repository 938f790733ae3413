"""Model files -> live modules: the same weights and names from a folder and from a single file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import Family, ModelFiles
from fastsd_lib.formats.configs import family_of, read_configs, write_configs
from fastsd_lib.formats.single_file import open_single_file, single_file_configs
from fastsd_lib.formats.weights import Weight, Weights, folder_weights, single_file_weights

# The noise schedule of every SD 1.x model, for folders that lost theirs; SD 2.x and SDXL share it.
SD1_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
DRAWN_FAMILIES = ("sd1", "sd2", "sdxl")


class TextPart(NamedTuple):
    """One text encoder with its tokenizer. `name`: as learned words call it, clip_l, clip_h or clip_g."""

    name: str
    encoder: torch.nn.Module
    tokenizer: Any


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
    family: Family = "sd1"
    text_encoder_2: torch.nn.Module | None = None  # SDXL's, whose pooled text the U-Net gets besides
    tokenizer_2: Any = None
    zero_empty_negative: bool = False  # SDXL: zeros stand for an empty negative prompt
    asks_for_score: bool = False  # the refiner of SDXL: how beautiful, in place of the size to draw
    notes: tuple[str, ...] = ()  # what had to be guessed about the model
    offloaded: bool = False  # text encoders and VAE wait in main memory and visit the U-Net's device to work
    fast_unet: Callable[..., Any] | None = None  # answers as `unet`, sooner; see generation/fast_unet.py

    def __post_init__(self) -> None:
        if getattr(self.fast_unet, "unet", self.unet) is not self.unet:
            self.fast_unet = None  # made by `dataclasses.replace`, with another U-Net

    @property
    def vae_factor(self) -> int:
        """Pixels per latent, 8 for SD 1.5."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def side_px(self) -> int:
        """The size the model was trained for."""
        return self.unet.config.sample_size * self.vae_factor

    @property
    def text_parts(self) -> list[TextPart]:
        """The text encoders, in the order in which the U-Net sees their hidden states side by side."""
        if self.family == "sdxl" and self.text_encoder_2 is None:  # the refiner
            return [TextPart("clip_g", self.text_encoder, self.tokenizer)]
        first = TextPart("clip_h" if self.family == "sd2" else "clip_l", self.text_encoder, self.tokenizer)
        second = [TextPart("clip_g", self.text_encoder_2, self.tokenizer_2)] if self.text_encoder_2 else []
        return [first, *second]

    @property
    def modules(self) -> list[torch.nn.Module]:
        """All that have weights."""
        return [self.unet, self.vae, *(part.encoder for part in self.text_parts)]

    @contextmanager
    def at_work(self, module: torch.nn.Module) -> Iterator[torch.nn.Module]:
        """A module on the U-Net's device while the block runs, wherever it waits otherwise."""
        device = next(self.unet.parameters()).device
        try:
            yield _moved(module, device) if self.offloaded else module
        finally:
            if self.offloaded:
                _moved(module, "cpu")

    def offload(self) -> None:
        """Keep text encoders and VAE in main memory from here on, except while they work."""
        self.offloaded = True
        for module in self.modules[1:]:
            _moved(module, "cpu")


def load_parts(
    model: ModelFiles, device: torch.device, dtype: torch.dtype, config_from: Path | None = None
) -> Parts:
    """Load a model of SD 1.x, SD 2.x or SDXL. `config_from`: a Diffusers folder that lends a bare single file
    its configs, or to SD 2.x and SDXL only its words. UserError for other families and for weights that do not fit.
    """
    if model.family not in DRAWN_FAMILIES:
        raise UserError(
            f"{model.path} is a {model.family} model; its parts are not loaded one by one.",
            fix="take an SD 1.x, SD 2.x or SDXL model, for example the embedded one.",
        )
    if model.layout == "single_file":
        file = open_single_file(model.path)
        configs = single_file_configs(file, config_from, model.path)
        weights = single_file_weights(file, configs)
    else:
        configs = read_configs(model.path)
        weights = folder_weights(model.path, configs)
    config = {name: json.loads(text) for name, text in configs.items() if name.endswith(".json")}
    modules = {
        part: module_of(part, config[f"{part}/config.json"], weights[part], device, dtype) for part in weights
    }
    tokenizers = {
        part: _tokenizer(configs, model.path, part.replace("text_encoder", "tokenizer"))
        for part in ("text_encoder", "text_encoder_2")
        if part in modules
    }
    first, *others = tokenizers
    index, schedule = (
        config.get("model_index.json", {}),
        config.get("scheduler/scheduler_config.json", SD1_SCHEDULE),
    )
    family = family_of(configs)
    return Parts(
        unet=modules["unet"],
        vae=modules["vae"],
        text_encoder=modules[first],
        tokenizer=tokenizers[first],
        scheduler_config=schedule,
        name=model.path.stem if model.layout == "single_file" else model.path.name,
        defaults=config.get("fastsd.json", {}),
        family=family,
        text_encoder_2=modules[others[0]] if others else None,
        tokenizer_2=tokenizers[others[0]] if others else None,
        zero_empty_negative=family == "sdxl" and index.get("force_zeros_for_empty_prompt", True),
        asks_for_score=bool(index.get("requires_aesthetics_score", False)),
        notes=_notes(schedule),
    )


def module_of(
    part: str, config: Mapping[str, Any], weights: Weights, device: torch.device, dtype: torch.dtype
) -> torch.nn.Module:
    """One part of a model ("unet", "vae", "text_encoder", "text_encoder_2"), ready to work, with frozen weights."""
    return _fill(_empty(part, config), weights, device, dtype)


def _notes(schedule: Mapping[str, Any]) -> tuple[str, ...]:
    if not schedule.get("fastsd_guessed"):
        return ()
    kind = schedule["prediction_type"]
    return (f"the file does not say what the model predicts: {kind} is taken, by the look of its weights",)


def _empty(part: str, config: Mapping[str, Any]) -> torch.nn.Module:
    """Shapes only: the weights that follow are the only ones ever allocated."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        if part == "unet":
            return UNet2DConditionModel.from_config(dict(config))
        if part == "vae":
            return AutoencoderKL.from_config(dict(config))
        kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
        return kind(CLIPTextConfig.from_dict(dict(config)))


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
                    state[ours] = _tensor(file, weight).to(device, dtype)
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


def _tensor(file: Any, weight: Weight) -> torch.Tensor:
    """The tensor as the module wants it, from an open safetensors file."""
    if weight.rows:
        return file.get_slice(weight.key)[weight.rows[0] : weight.rows[1]].contiguous()
    stored = file.get_tensor(weight.key)
    return stored.T.contiguous() if weight.transposed else stored.reshape(weight.shape)


def _tokenizer(configs: Mapping[str, str], origin: Path, name: str = "tokenizer") -> Any:
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    if not any(file.startswith(f"{name}/") for file in configs):
        raise UserError(f"{origin} has no {name}.", fix=f"take the model's own {name}/ folder.")
    with tempfile.TemporaryDirectory() as folder:
        write_configs(configs, Path(folder))
        return CLIPTokenizer.from_pretrained(Path(folder) / name)


def _moved(module: torch.nn.Module, device: torch.device | str) -> torch.nn.Module:
    """Moved as ordinary weights, even in inference mode, whose tensors could not be trained afterwards."""
    with torch.inference_mode(False), torch.no_grad():
        return module.to(device)
