"""Which layers suffer most from 8 bits, and what they are called in other libraries' graphs."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fastsd_lib.vit.model import VitModel, load_torch

PICTURES = 8  # the ranking of layers is the same with more


def worst_first(model: VitModel, calibration: np.ndarray) -> list[str]:
    """Names of the linear layers and convolutions, the one that 8 bits hurt most first.

    Each layer gets its inputs of full precision and computes with rounded weights (a scale per output) and rounded
    inputs (one scale); the share of its output's variance that this makes wrong is its rank. A constant that all
    outputs share does not count as variance: the next LayerNorm takes it out.
    """
    loaded = load_torch(model)
    error: dict[str, float] = {}
    hooks = [
        layer.register_forward_hook(lambda layer, given, out, name=name: error.update({name: _share(layer, given[0], out)}))
        for name, layer in _layers(loaded)
    ]  # fmt: skip
    try:
        with torch.inference_mode():
            loaded(pixel_values=torch.from_numpy(np.array(calibration[:PICTURES])))
    finally:
        for hook in hooks:
            hook.remove()
    return sorted(error, key=lambda name: error[name], reverse=True)


def nodes_by_module(model: VitModel, nodes: Iterable[tuple[str, np.ndarray]]) -> dict[str, str]:
    """Name of the torch module -> name of the graph's node that holds its very weight, as it is or transposed.

    Converters name nodes as they like; the numbers they cannot change.
    """
    nodes_of: dict[str, list[str]] = defaultdict(list)
    for node, weight in nodes:
        nodes_of[_digest(weight)].append(node)
    found = {}
    for name, layer in _layers(load_torch(model)):
        weight = layer.weight.detach().numpy()
        for one in (weight, weight.T):
            if nodes_of[_digest(one)]:
                found[name] = nodes_of[_digest(one)].pop(0)
                break
    return found


def _layers(loaded: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, one) for name, one in loaded.named_modules() if isinstance(one, (nn.Linear, nn.Conv2d))]


def _digest(weight: np.ndarray) -> str:
    """Grouped convolutions have another shape in OpenVINO, so the shape is left out."""
    return hashlib.sha1(np.ascontiguousarray(weight, np.float32).tobytes()).hexdigest()


def _share(layer: nn.Module, given: torch.Tensor, out: torch.Tensor) -> float:
    weight = layer.weight
    scale = weight.flatten(1).abs().amax(1).clamp_min(1e-12) / 127
    scale = scale.reshape(-1, *[1] * (weight.dim() - 1))
    rounded = (weight / scale).round() * scale
    low, high = given.amin().clamp_max(0), given.amax().clamp_min(0)
    step = ((high - low) / 255).clamp_min(1e-12)
    given = ((given - low) / step).round() * step + low
    if isinstance(layer, nn.Conv2d):
        again = functional.conv2d(
            given, rounded, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
        )
        over = (0, 2, 3)
    else:
        again = functional.linear(given, rounded, layer.bias)
        over = tuple(range(out.dim() - 1))
    variance = (out - out.mean(over, keepdim=True)).square().sum()
    return float((again - out).square().sum() / variance.clamp_min(1e-12))
