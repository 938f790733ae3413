"""Where a ViT looks: attention of each head and layer, rollout through the layers, relevance for one class.

Attention shows what is mixed into what, not what decides: compare with gradcam, and measure both (faithfulness.py).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.inside import Inside, Target
from fastsd_lib.vit.model import VitModel

Fusion = Literal["mean", "max", "min"]


def attention_maps(model: VitModel | Inside, image: Image.Image) -> np.ndarray:
    """(layers, heads, tokens, tokens) float32; every row sums to 1. UserError for Swin and ConvNeXt."""
    inside = Inside.of(model)
    with torch.no_grad():
        _, layers = inside.with_attention(inside.pixels(image))
    return torch.cat(layers).float().numpy()


def class_token_maps(maps: np.ndarray, inside: Inside) -> np.ndarray:
    """(layers, heads, h, w): what the class token looks at among the patches; without one, what all look at."""
    rows = maps[..., 0, inside.prefix :] if inside.prefix else maps.mean(axis=-2)
    return rows.reshape(*rows.shape[:-1], *inside.grid)


def rollout(maps: np.ndarray, *, fusion: Fusion = "mean", discard: float = 0.0) -> np.ndarray:
    """(tokens, tokens) float64: how much of each input token is in each output token; rows sum to 1.

    Attention rollout of Abnar and Zuidema 2020: with the residual each layer is (A + I) / 2, and layers multiply.
    `maps` (layers, heads, tokens, tokens); `fusion` joins the heads; `discard` in [0, 1) drops that share of each
    row, the weakest first, before rows are made to sum to 1 again.
    """
    if fusion not in ("mean", "max", "min"):
        raise UserError(f"There is no head fusion {fusion!r}.", fix="take mean, max or min.")
    if not 0 <= discard < 1:
        raise UserError(
            f"A share of {discard} cannot be discarded.", fix="take a number from 0 to below 1, such as 0.9."
        )
    tokens = maps.shape[-1]
    flow = np.eye(tokens)
    for heads in maps:
        joined = getattr(np.asarray(heads, np.float64), fusion)(axis=0)
        if dropped := int(discard * tokens):
            weakest = np.argsort(joined, axis=1, kind="stable")[:, :dropped]
            np.put_along_axis(joined, weakest, 0.0, axis=1)
        total = joined.sum(axis=1, keepdims=True)
        joined = np.divide(joined, total, out=np.eye(tokens), where=total > 0)
        flow = (joined + np.eye(tokens)) / 2 @ flow
    return flow


def rollout_map(
    model: VitModel | Inside, image: Image.Image, *, fusion: Fusion = "mean", discard: float = 0.0
) -> np.ndarray:
    """(h, w): how much of each patch reaches the class token, by rollout."""
    inside = Inside.of(model)
    flow = rollout(attention_maps(inside, image), fusion=fusion, discard=discard)
    return class_token_maps(flow[None, None], inside)[0, 0]


def relevance_map(model: VitModel | Inside, image: Image.Image, target: Target = None) -> np.ndarray:
    """(h, w): attention weighted by its gradient for one class (Chefer et al. 2021, "Generic attention-model
    explainability"): R <- R + mean over heads of max(0, dA * A) R, layer by layer.
    """
    inside = Inside.of(model)
    pixels = inside.pixels(image).requires_grad_()
    with torch.enable_grad():
        logits, layers = inside.with_attention(pixels)
        slopes = torch.autograd.grad(logits[0, inside.class_index(target, logits)], layers)
    flow = torch.eye(layers[0].shape[-1], dtype=torch.float64)
    for attention, slope in zip(layers, slopes, strict=True):
        wanted = (attention * slope)[0].detach().double().clamp(min=0).mean(dim=0)
        flow = flow + wanted @ flow
    return class_token_maps((flow - torch.eye(len(flow)))[None, None].numpy(), inside)[0, 0]
