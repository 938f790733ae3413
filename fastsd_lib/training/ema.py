"""The moving average of the weights: smoother than the last step's, and what is drawn with and exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class Ema:
    """Averages live parameters by name; `tensors` are kept where the parameters are, one copy of them."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.tensors = {name: one.detach().clone() for name, one in parameters.items()}
        self._parameters = dict(parameters)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` (from 1). The first steps count more, else the start would linger."""
        decay = min(self.decay, (1 + step) / (10 + step))
        live = [one.detach() for one in self._parameters.values()]
        torch._foreach_lerp_(list(self.tensors.values()), live, 1 - decay)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, one in self.tensors.items():
            one.copy_(tensors[name])

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the live modules hold the average; no byte is copied."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """The modules take the average, and this the live weights; again, and all is as before."""
        for name, parameter in self._parameters.items():
            parameter.data, self.tensors[name] = self.tensors[name], parameter.data
