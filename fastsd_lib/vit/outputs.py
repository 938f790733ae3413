"""What a model is asked for, as modules that take pixels and give one tensor: traced, exported and run alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.config import Features, Output

#: Model types with a class token -> how many tokens stand before the patches (DeiT's second is for distillation).
CLASS_TOKENS = {"vit": 1, "deit": 2, "dinov2": 1, "beit": 1, "vit_msn": 1}


class LogitsOf(nn.Module):
    """Pixels (B, 3, H, W) float32 -> logits (B, classes) float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        found = self.model(pixels.to(self.model.dtype), return_dict=True, **_other_size(self.model, pixels))
        return found.logits.float()


class FeaturesOf(nn.Module):
    """Pixels (B, 3, H, W) float32 -> features (B, N) float32."""

    def __init__(self, model: nn.Module, features: Features) -> None:
        super().__init__()
        self.model = getattr(model, "base_model", model)
        self.features = features
        self.skipped = tokens_before_patches(self.model.config)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        layer = self.features.layer
        found = self.model(
            pixels.to(self.model.dtype), output_hidden_states=layer != -1, return_dict=True,
            **_other_size(self.model, pixels),
        )  # fmt: skip
        if layer == -1 and self.model.config.model_type.startswith("convnext"):
            pooled = found.pooler_output.float()  # its final LayerNorm comes after the mean
        else:
            states = found.last_hidden_state if layer == -1 else found.hidden_states[layer]
            pooled = _pooled(states, self.features.pool, self.skipped).float()
        return functional.normalize(pooled, dim=-1) if self.features.normalize else pooled


def output_module(model: nn.Module, output: Output = "logits") -> nn.Module:
    """The module that computes `output`; UserError for a layer or a token that the model does not have."""
    for (
        part
    ) in model.modules():  # tracers read every property, and transformers warns of the loss that a part lacks
        if getattr(part, "loss_type", "") is None:
            part.loss_function = None
    if output == "logits":
        return LogitsOf(model).eval()
    check_features(getattr(model, "base_model", model).config, output)
    return FeaturesOf(model, output).eval()


def check_features(config: Any, features: Features) -> None:
    kind, layers = config.model_type, _layers(config)
    if features.pool == "cls" and not tokens_before_patches(config):
        raise UserError(
            f"A {kind} model has no class token to take features from.", fix='ask for pool "mean" instead.'
        )
    if not -1 <= features.layer <= layers:
        raise UserError(
            f"The model has {layers} layers: there is no layer {features.layer}.",
            fix=f"take 0 to {layers}, or -1 for what comes after the last LayerNorm.",
        )


def tokens_before_patches(config: Any) -> int:
    """Class, distillation and register tokens; 0 where a model has patches or pixels only."""
    if config.model_type == "dinov2_with_registers":
        return 1 + config.num_register_tokens
    return CLASS_TOKENS.get(config.model_type, 0)


def _layers(config: Any) -> int:
    count = getattr(config, "num_hidden_layers", None)
    return count if isinstance(count, int) else len(config.depths)


def _pooled(states: torch.Tensor, pool: str, skipped: int) -> torch.Tensor:
    """(B, tokens, N) or (B, N, h, w) -> (B, N)."""
    if states.dim() == 4:
        return states.mean(dim=(2, 3))
    return states[:, 0] if pool == "cls" else states[:, skipped:].mean(dim=1)


def _other_size(model: nn.Module, pixels: torch.Tensor) -> dict[str, bool]:
    """Position embeddings are brought to the size of the pixels where the model was trained at another."""
    trained = getattr(model.config, "image_size", None)
    if model.config.model_type not in ("vit", "deit") or trained is None:
        return {}
    height, width = trained if isinstance(trained, (list, tuple)) else (trained, trained)
    return {} if tuple(pixels.shape[-2:]) == (height, width) else {"interpolate_pos_encoding": True}
