"""The state of a run as files of a checkpoint, and back. How a checkpoint is written is sessions/checkpoints.py's.

| file | holds |
|---|---|
| `unet.safetensors`, `text_encoder.safetensors` | what the model draws with: the average where there is one |
| `lora.safetensors` | the same with `method: lora`: adapters alone, under kohya's names |
| `live.safetensors` | the weights that training goes on with, where the above is their average |
| `optimizer.safetensors` | Adam's two moments of every weight |
| `random.json` | the generators of python, numpy, torch and each GPU |
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from fastsd_lib.core.tensor_file import NewTensor, header_bytes
from fastsd_lib.sessions.checkpoints import (
    Checkpoint,
    Content,
    discard_run,
    find_damage,
    list_checkpoints,
    newest_intact,
)

PARTS = ("unet", "text_encoder")  # what training can change
LORA_FILE = "lora.safetensors"
LIVE_FILE = "live.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
RANDOM_FILE = "random.json"

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


@dataclass(frozen=True)
class Snapshot:
    """Everything that one checkpoint holds, at one step; tensors are the live ones until they are copied."""

    step: int
    stage: str
    tensors: Mapping[str, Tensors]  # file name -> its tensors
    texts: Mapping[str, bytes]  # file name -> its bytes
    facts: Mapping[str, Any]  # for the manifest
    frozen: frozenset[str] = frozenset()  # files whose tensors no later step of this stage changes
    metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # of tensor files

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.texts.values())) + sum(
            one.nbytes for tensors in self.tensors.values() for one in tensors.values()
        )

    def contents(self) -> dict[str, Content]:
        """Streams straight from memory: writing takes no second copy of anything that is on the CPU."""
        files = {name: tensor_file(held, self.metadata.get(name)) for name, held in self.tensors.items()}
        return files | {name: (lambda text=text: (text,)) for name, text in self.texts.items()}


def tensor_file(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Content:
    """A safetensors file of these tensors as a stream."""
    # Wide ones first, so that each lies at a multiple of its width: readers map the file.
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))

    def chunks() -> Iterator[bytes | memoryview]:
        entries = [
            NewTensor(name, _DTYPES[one.dtype], tuple(one.shape), tuple) for name, one in ordered.items()
        ]
        yield header_bytes(entries, metadata or {"format": "pt"})
        for one in ordered.values():
            yield memoryview(one.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())

    return chunks


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """By "<number of the parameter>.<name>"."""
    return {
        f"{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def load_optimizer(checkpoint: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
    """Fill the optimizer with the state of the same parameters, in the same order."""
    file = checkpoint.path / OPTIMIZER_FILE
    if not file.is_file():
        return
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(file).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def load_tensors(checkpoint: Checkpoint, file: str) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.path / file)


def holds(checkpoint: Checkpoint, file: str) -> bool:
    return (checkpoint.path / file).is_file()


def random_state() -> bytes:
    """The generators of everything that could draw. Training draws from none of them; what it calls might."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": [name, [int(one) for one in keys], *rest],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": [one.numpy().tobytes().hex() for one in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_available()
        else [],
    }
    return json.dumps(state).encode()


def restore_random_state(checkpoint: Checkpoint) -> None:
    """As it was at that step; checkpoints of the first release hold none."""
    file = checkpoint.path / RANDOM_FILE
    if not file.is_file():
        return
    state = json.loads(file.read_bytes())
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_as_bytes(state["torch"]))
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_as_bytes(one) for one in state["cuda"]])


def _as_bytes(digits: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(digits), dtype=torch.uint8)


def circumstances(device: str) -> dict[str, Any]:
    """What besides the seed decides the last digits: versions, kernels, threads."""
    import diffusers
    import transformers

    found = {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    if torch.device(device).type == "cuda":
        found |= {
            "gpu": torch.cuda.get_device_name(),
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "tf32": torch.backends.cuda.matmul.allow_tf32,
        }
    return found


def what_changed(checkpoint: Checkpoint, device: str) -> str:
    """Empty when a resumed run is exactly the run, else what differs: "torch 2.13.0 instead of 2.12.0"."""
    then = checkpoint.facts.get("circumstances", {})
    now = circumstances(device)
    return ", ".join(
        f"{name} {now[name]} instead of {value}"
        for name, value in then.items()
        if name in now and now[name] != value
    )


__all__ = [
    "LORA_FILE",
    "PARTS",
    "Checkpoint",
    "Snapshot",
    "discard_run",
    "find_damage",
    "list_checkpoints",
    "newest_intact",
]
