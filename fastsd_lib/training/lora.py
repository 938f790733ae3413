"""LoRA (Hu et al. 2021, arXiv 2106.09685): a narrow detour beside each frozen projection, trained in its place.

Which projections: those that kohya's networks adapt, so that every program reads the result. In the U-Net all
linear layers and 1x1 convolutions of its transformers, in the text encoder those of attention and MLP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from fastsd_lib.formats.lora_file import module_key
from fastsd_lib.training.training_set import generator

# Class names of the blocks whose projections get adapters.
BLOCKS = {"unet": ("Transformer2DModel",), "text_encoder": ("CLIPAttention", "CLIPSdpaAttention", "CLIPMLP")}


class Adapter(torch.nn.Module):
    """x -> up(down(x)) * alpha / rank; zero until it is trained, since `up` starts at zero."""

    def __init__(self, target: torch.nn.Module, rank: int, alpha: float, random: torch.Generator) -> None:
        super().__init__()
        outputs, inputs = target.weight.shape[:2]
        window = target.weight.shape[2:]  # () of a linear layer, (1, 1) of a convolution
        spread = inputs**-0.5  # Kaiming's, with kohya's slope of sqrt(5)
        down = torch.empty(rank, inputs, *window).uniform_(-spread, spread, generator=random)
        self.down = torch.nn.Parameter(down.to(target.weight.device))
        self.up = torch.nn.Parameter(torch.zeros(outputs, rank, *window, device=target.weight.device))
        self.scale = alpha / rank

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        apply = torch.nn.functional.conv2d if self.down.dim() == 4 else torch.nn.functional.linear
        return apply(apply(values, self.down), self.up) * self.scale


class Adapters(torch.nn.Module):
    """The adapters of one part of the model. They hang on it by hooks: its own weights and names stay as they are."""

    def __init__(self, part: str, module: torch.nn.Module, rank: int, alpha: float, seed: int) -> None:
        """`part`: "unet" or "text_encoder"; each adapter's start depends on the seed and its name alone."""
        super().__init__()
        self.alpha, self.active = alpha, True
        self.by_key = torch.nn.ModuleDict()
        for path, target in _targets(part, module):
            key = module_key(part, path)
            adapter = Adapter(target, rank, alpha, generator(seed, "lora", key))
            self.by_key[key] = adapter
            target.register_forward_hook(self._hook(adapter))

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the part answers as the base model does."""
        self.active = False
        try:
            yield
        finally:
            self.active = True

    def tensors(self, values: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """Under kohya's names; `values` (of `state_dict`'s names) in place of the live weights."""
        values = values or self.state_dict()
        found = {}
        for key in self.by_key:
            found[f"{key}.lora_down.weight"] = values[f"by_key.{key}.down"].detach()
            found[f"{key}.lora_up.weight"] = values[f"by_key.{key}.up"].detach()
            found[f"{key}.alpha"] = torch.tensor(float(self.alpha))
        return found

    @torch.no_grad()
    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Fill in from kohya's names."""
        for key, adapter in self.by_key.items():
            adapter.down.copy_(tensors[f"{key}.lora_down.weight"])
            adapter.up.copy_(tensors[f"{key}.lora_up.weight"])

    def _hook(self, adapter: Adapter) -> Any:
        def add(module: torch.nn.Module, arguments: tuple, output: torch.Tensor) -> torch.Tensor:
            return output + adapter(arguments[0]) if self.active else output

        return add


def _targets(part: str, module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """(path, layer), each once, in the order of the model."""
    seen = set()
    for block_path, block in module.named_modules():
        if type(block).__name__ not in BLOCKS[part]:
            continue
        for path, layer in block.named_modules(prefix=block_path):
            if path not in seen and _is_projection(layer):
                seen.add(path)
                yield path, layer


def _is_projection(layer: torch.nn.Module) -> bool:
    if isinstance(layer, torch.nn.Conv2d):
        return layer.kernel_size == (1, 1)
    return isinstance(layer, torch.nn.Linear)
