"""A picture that the U-Net looks at while it draws, without any network for it.

Lvmin Zhang 2023, "Reference-only Control" (Mikubill/sd-webui-controlnet, discussion 1236): at each step the
reference is brought to the same noise, and self-attention sees its tokens beside the picture's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fastsd_lib.generation.seen_text import join
from fastsd_lib.generation.steering import Seen, acts


@dataclass(frozen=True)
class Reference:
    """One reference in one pass."""

    latents: torch.Tensor  # (1, 4, h, w)
    noise: torch.Tensor  # like latents: the same at every step and for every picture
    weight: float = 1.0  # 1: every attention layer looks at it; 0.5: the wider half of them
    fidelity: float = 0.5  # how much the negative prompt's rows look away: more of the style
    start: float = 0.0
    end: float = 1.0

    def acts(self, step: int, steps: int) -> bool:
        return bool(self.weight) and acts(step, steps, self.start, self.end)


@contextmanager
def looking_at(
    unet: torch.nn.Module,
    references: Sequence[Reference],
    blocks: Sequence[Seen],
    sigma: float,
    call: Callable[..., Any],
) -> Iterator[None]:
    """While the block runs, `unet` sees the references with these rows; `call` is the U-Net's own forward."""
    layers = _attention_layers(unet)
    seen: dict[torch.nn.Module, list[torch.Tensor]] = {}
    for reference in references:
        chosen = [layer for rank, layer in enumerate(layers) if reference.weight > rank / len(layers)]
        for layer, tokens in _tokens_of(unet, chosen, reference, blocks, sigma, call).items():
            seen.setdefault(layer, []).append(tokens)
    rows = torch.tensor([len(block.x) for block in blocks])
    plain = torch.tensor([not block.prompted for block in blocks]).repeat_interleave(rows)
    fidelity = sum(reference.fidelity for reference in references) / len(references)
    hooks = []
    try:
        for layer, tokens in seen.items():
            beside = torch.cat(tokens, dim=1).repeat_interleave(rows.to(tokens[0].device), dim=0)
            hooks += _read(layer, beside, plain.to(beside.device), fidelity)
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _attention_layers(unet: torch.nn.Module) -> list[torch.nn.Module]:
    """The self-attentions, the widest first."""
    from diffusers.models.attention import BasicTransformerBlock

    blocks = [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]
    blocks.sort(key=lambda block: -block.norm1.normalized_shape[0])
    return [block.attn1 for block in blocks]


def _tokens_of(
    unet: torch.nn.Module,
    layers: Sequence[torch.nn.Module],
    reference: Reference,
    blocks: Sequence[Seen],
    sigma: float,
    call: Callable[..., Any],
) -> dict[torch.nn.Module, torch.Tensor]:
    """What each layer is given when the U-Net sees the reference, (texts, tokens, width)."""
    found: dict[torch.nn.Module, torch.Tensor] = {}
    like = next(unet.parameters())
    noisy = (reference.latents + reference.noise * sigma) / math.sqrt(1 + sigma**2)
    if (more := unet.config.in_channels - noisy.shape[1]) > 0:  # an inpainting model: nothing is masked
        noisy = torch.cat([noisy, torch.zeros_like(noisy[:, : more - 4]), reference.latents], dim=1)

    def note(layer: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        found[layer] = (args[0] if args else kwargs["hidden_states"]).clone()

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        call(
            noisy.expand(len(blocks), -1, -1, -1).to(like.dtype),
            torch.tensor([block.time for block in blocks], dtype=torch.float32, device=like.device),
            **join([(block.text, 1) for block in blocks]),
            return_dict=False,
        )
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _read(
    layer: torch.nn.Module, beside: torch.Tensor, plain: torch.Tensor, fidelity: float
) -> list[torch.utils.hooks.RemovableHandle]:
    """The layer's rows look at `beside`, too; those that are `plain` less so with more fidelity."""

    def look(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, {**kwargs, "encoder_hidden_states": torch.cat([args[0], beside], dim=1)}

    def look_away(module: torch.nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> torch.Tensor:
        own = type(module).forward(module, args[0][plain])  # past the hooks
        mixed = output.clone()
        mixed[plain] = torch.lerp(output[plain], own, fidelity)
        return mixed

    hooks = [layer.register_forward_pre_hook(look, with_kwargs=True)]
    if fidelity > 0 and plain.any():
        hooks.append(layer.register_forward_hook(look_away, with_kwargs=True))
    return hooks
