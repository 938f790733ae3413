"""The U-Net call of an engine on the CPU: packed layers, texts read once, rows shared among threads that wait for nobody.

    python3 -m fastsd_lib benchmark serve

Two threads with half of the rows each are faster than two that share every layer, and on a busy machine by far: they
meet once at the end of a call, not after each of its 800 operations.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch

from fastsd_lib.core.heap import physical_bytes
from fastsd_lib.formats.parts import Parts

MOST_OF_MEMORY = 1 / 4  # that packed copies of the weights may take; a larger U-Net only shares its rows
MOST_COPIES = 3  # one for each size of pictures that take turns
TEXTS_KEPT = 2  # of one batch, per thread: a prompt may go to and fro between two texts
UNDERSTOOD = {
    "encoder_hidden_states",
    "encoder_attention_mask",
    "added_cond_kwargs",
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "return_dict",
}


def prepare(parts: Parts, threads: int | None = None) -> None:
    """Let `parts.fast_unet` stand in for `parts.unet` where that is of use: on a CPU, in float32.

    For an engine, not for training: a change of the weights must be one that torch sees (an operation in place, another
    tensor) or raise `parts.weights_version`. `threads`: None = torch's own number.
    """
    like = next(parts.unet.parameters())
    if like.device.type == "cpu" and like.dtype == torch.float32:
        parts.fast_unet = FastUnet(parts, threads or torch.get_num_threads())


class FastUnet:
    """Called as the U-Net; answers the same up to rounding."""

    def __init__(self, parts: Parts, threads: int) -> None:
        self.parts, self.unet, self.threads = parts, parts.unet, threads
        self._twin: torch.nn.Module | None = None
        self._version: Any = None
        self._texts: list[list[torch.Tensor]] = [[] for _ in range(threads)]
        if copies := _copies(self.unet):
            from fastsd_lib.generation.packed import make_twin

            self._twin, self._packed = make_twin(self.unet, copies)
        self._insides = [vars(module) for module in self.unet.modules()]

    def __call__(self, x: torch.Tensor, times: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor]:
        """(rows, C, h, w), (rows,) and the arguments of UNet2DConditionModel -> (noise,), as with return_dict=False."""
        if self._touched() or not kwargs.keys() <= UNDERSTOOD or torch.is_grad_enabled():
            return self.unet(x, times, **kwargs)
        if self._twin is not None:
            self._refresh()
        shares = torch.arange(len(x)).tensor_split(min(self.threads, len(x)))
        bounds = [(int(share[0]), int(share[-1]) + 1) for share in shares]
        if len(bounds) == 1:
            return (self._some(0, x, times, kwargs),)
        each, before = self.threads // len(bounds), torch.get_num_threads()
        asked = [
            _pool().submit(self._alone, each, place, x[a:b], times[a:b], _rows(kwargs, a, b, len(x)))
            for place, (a, b) in enumerate(bounds)
        ]
        try:
            return (torch.cat([one.result() for one in asked]),)
        finally:
            torch.set_num_threads(before)  # a part of torch (MKL) has one number for all threads

    def _alone(self, threads: int, *arguments: Any) -> torch.Tensor:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return self._some(*arguments)

    def _some(self, place: int, x: torch.Tensor, times: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        if self._twin is None:
            return self.unet(x, times, **kwargs)[0]
        known = self._known_text(place, kwargs["encoder_hidden_states"])
        x = x.contiguous(memory_format=torch.channels_last)
        return self._twin(x, times, **(kwargs | {"encoder_hidden_states": known}))[0]

    def _known_text(self, place: int, text: torch.Tensor) -> torch.Tensor:
        """The tensor of the same numbers that was given before: the layers have its keys and values."""
        from fastsd_lib.generation.packed import KEPT

        kept = self._texts[place]
        for at, known in enumerate(kept):
            if known.shape == text.shape and torch.equal(known, text):
                kept.insert(0, kept.pop(at))
                return known
        text = text.clone()
        setattr(text, KEPT, {})
        kept.insert(0, text)
        del kept[TEXTS_KEPT:]
        return text

    def _refresh(self) -> None:
        version = getattr(self.parts, "weights_version", None)
        packed = [layer.refresh(again=version != self._version) for layer in self._packed]
        self._version = version
        if any(packed):
            self._texts = [[] for _ in range(self.threads)]

    def _touched(self) -> bool:
        """Whether somebody listens in the U-Net, or has put something else in the place of a part of it."""
        return any(
            inside["_forward_hooks"]
            or inside["_forward_pre_hooks"]
            or inside["training"]
            or "forward" in inside
            for inside in self._insides
        )


def _rows(value: Any, a: int, b: int, rows: int) -> Any:
    """The share of rows `a` to `b` of every tensor in `value`."""
    if isinstance(value, torch.Tensor):
        return value[a:b] if value.ndim and len(value) == rows else value
    if isinstance(value, dict):
        return {name: _rows(one, a, b, rows) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_rows(one, a, b, rows) for one in value)
    return value


def _copies(unet: torch.nn.Module) -> int:
    """How many packed copies of the weights the memory is there for; 0 where this torch cannot pack."""
    known = hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(
        torch.ops.mkldnn, "_convolution_pointwise"
    )
    if not known or not torch.backends.mkldnn.is_available():
        return 0
    weights = sum(weight.nbytes for weight in unet.parameters())
    return min(int(physical_bytes() * MOST_OF_MEMORY) // weights, MOST_COPIES)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="unet")
