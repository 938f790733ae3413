"""Grad-CAM (Selvaraju et al. 2017) for tokens and for feature maps: which places speak for a class."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import nn

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.inside import Inside, Target
from fastsd_lib.vit.model import VitModel


def gradcam(model: VitModel | Inside, image: Image.Image, target: Target = None) -> np.ndarray:
    """(h, w) >= 0: the last features, weighted by how their mean moves the class's logit; what speaks against it is 0.

    In a ViT these are the patches as they enter the last block (after its first LayerNorm): behind that block only the
    class token is used, and the patches have no slope. In Swin and ConvNeXt it is the last stage's feature map.
    """
    inside = Inside.of(model)
    features, slopes = features_and_slopes(inside, inside.pixels(image), target)
    weights = slopes.mean(dim=(0, 1))
    return (features * weights).sum(dim=-1).clamp(min=0).numpy()


def features_and_slopes(
    inside: Inside, pixels: torch.Tensor, target: Target
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (h, w, D) of the layer that Grad-CAM looks at, and the slope of the class's logit by each of them."""
    held: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple, output: torch.Tensor | tuple) -> None:
        held.append(output[0] if isinstance(output, tuple) else output)

    hook = watched_layer(inside).register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = inside.logits(pixels.detach().requires_grad_())
            (slopes,) = torch.autograd.grad(logits[0, inside.class_index(target, logits)], held[:1])
    finally:
        hook.remove()
    return _placed(held[0].detach()[0], inside), _placed(slopes[0], inside)


def watched_layer(inside: Inside) -> nn.Module:
    last = inside.blocks[-1]
    if inside.hierarchical:
        return last
    for part in last.children():
        if isinstance(part, nn.LayerNorm):
            return part
    raise UserError(f"{inside.vit.name} has no LayerNorm to look at.", fix="ask for occlusion instead.")


def _placed(values: torch.Tensor, inside: Inside) -> torch.Tensor:
    """Tokens (T, D) or a map (D, h, w) -> (h, w, D), without the tokens that stand for no place."""
    if values.dim() == 3:
        return values.permute(1, 2, 0).double()
    values = values[inside.prefix :]
    height, width = inside.grid
    if inside.hierarchical:  # the same proportions, coarser by a power of two
        side = (height * width / len(values)) ** 0.5
        height, width = -int(-height // side), -int(-width // side)
    return values.reshape(height, width, -1).double()
