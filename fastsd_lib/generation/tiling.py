"""Pictures whose opposite edges fit together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seamless(wanted: bool, *modules: torch.nn.Module) -> Iterator[None]:
    """Every convolution looks round the edge to the other side while the block runs."""
    convolutions = [
        layer
        for module in (modules if wanted else ())
        for layer in module.modules()
        if isinstance(layer, torch.nn.Conv2d) and any(layer.padding)
    ]
    before = [layer.padding_mode for layer in convolutions]
    try:
        for layer in convolutions:
            layer.padding_mode = "circular"
        yield
    finally:
        for layer, mode in zip(convolutions, before, strict=True):
            layer.padding_mode = mode
