"""The state of a ViT run as files of a sealed checkpoint, and back; no pickle is written or read.

| file | holds |
|---|---|
| `weights.safetensors` | every weight that learns, and buffers |
| `ema.safetensors` | their average, where there is one |
| `optimizer.safetensors` | Adam's two moments and counter of every weight |
| `trainer_state.json` | transformers' TrainerState: step, epoch, best result |
| `state.json` | learning-rate schedule and gradient scaler |

Random numbers need no file: each is a function of the seed and the step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from fastsd_lib.core.tensor_file import NewTensor, header_bytes
from fastsd_lib.sessions.sealed_folder import Content

WEIGHTS, EMA, OPTIMIZER = "weights.safetensors", "ema.safetensors", "optimizer.safetensors"
TRAINER, STATE = "trainer_state.json", "state.json"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
Tensors = Mapping[str, torch.Tensor]


class Ema:
    """The moving average of the weights that learn: what is judged and kept. `tensors` by parameter name."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}
        self.tensors = {name: one.detach().clone() for name, one in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` (from 1). The first steps count more, else the start would linger."""
        decay = min(self.decay, (1 + step) / (10 + step))
        live = [one.detach() for one in self._parameters.values()]
        torch._foreach_lerp_(list(self.tensors.values()), live, 1 - decay)

    def swap(self) -> None:
        """The model takes the average, and this the live weights; again, and all is as before."""
        for name, parameter in self._parameters.items():
            parameter.data, self.tensors[name] = self.tensors[name], parameter.data


def learned_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes: parameters that learn, and buffers that are part of the model's state."""
    fixed = {name for name, one in model.named_parameters() if not one.requires_grad}
    return {name: one for name, one in model.state_dict().items() if name not in fixed}


def contents_of(
    model: nn.Module, ema: Ema | None, optimizer: torch.optim.Optimizer, state: Any, more: Mapping[str, Any]
) -> tuple[dict[str, Content], int]:
    """The files of a checkpoint as streams, and their size in bytes."""
    tensors: dict[str, Tensors] = {
        WEIGHTS: learned_tensors(model),
        OPTIMIZER: {
            f"{index}.{name}": value
            for index, held in optimizer.state_dict()["state"].items()
            for name, value in held.items()
            if isinstance(value, torch.Tensor)
        },
    }
    if ema is not None:
        tensors[EMA] = ema.tensors
    texts = {
        TRAINER: json.dumps(asdict(state), indent=2, sort_keys=True).encode() + b"\n",
        STATE: json.dumps(more, indent=2).encode() + b"\n",
    }
    files = {name: tensor_file(held) for name, held in tensors.items()}
    files |= {name: (lambda text=text: (text,)) for name, text in texts.items()}
    size = sum(one.nbytes for held in tensors.values() for one in held.values())
    return files, size + sum(map(len, texts.values()))


def tensor_file(tensors: Tensors) -> Content:
    """A safetensors file of these tensors as a stream."""
    # Wide ones first, so that each lies at a multiple of its width: readers map the file.
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))

    def chunks() -> Iterator[bytes | memoryview]:
        entries = [
            NewTensor(name, _DTYPES[one.dtype], tuple(one.shape), tuple) for name, one in ordered.items()
        ]
        yield header_bytes(entries, {"format": "pt"})
        for one in ordered.values():
            yield memoryview(one.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())

    return chunks


@torch.no_grad()
def load_learned(model: nn.Module, path: Path) -> None:
    """Weights of a checkpoint into the model that it was made from; ValueError when they are another model's."""
    held = load_file(path)
    own = model.state_dict()
    if set(held) - set(own):
        raise ValueError(f"{path} is of another model")
    for name, tensor in held.items():
        own[name].copy_(tensor)


@torch.no_grad()
def load_ema(ema: Ema, path: Path) -> None:
    held = load_file(path)
    for name, one in ema.tensors.items():
        one.copy_(held[name])


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Fill the optimizer with the state of the same parameters, in the same order."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(path).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
