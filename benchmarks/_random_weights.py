"""Folders as diffusers writes them, of any size, whose weights are random and never in memory together."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fastsd_lib.core.tensor_file import NewTensor, write_tensor_file
from fastsd_lib.models.registry import EMBEDDED_FOLDER

_PERIOD = 999_983  # values after which they repeat: a prime, so that no two rows of a weight are alike
DTYPES = {"fp16": "F16", "fp32": "F32"}


def save_small_files(folder: Path, index: dict[str, Any] | None = None, tokenizers: int = 1) -> int:
    """Tokenizer, noise schedule and model_index.json of the embedded model; returns how many words it knows."""
    for name in ("tokenizer", "tokenizer_2")[:tokenizers]:
        shutil.copytree(EMBEDDED_FOLDER / "tokenizer", folder / name)
    shutil.copytree(EMBEDDED_FOLDER / "scheduler", folder / "scheduler")
    own = json.loads((EMBEDDED_FOLDER / "model_index.json").read_text("utf-8"))
    (folder / "model_index.json").write_text(json.dumps(index or own, indent=2), "utf-8")
    return len(json.loads((folder / "tokenizer" / "vocab.json").read_text("utf-8")))


def save_random(make: Callable[[], Any], folder: Path, dtype: str = "fp16") -> None:
    """Write the config and weights of the module that `make` makes; only its shapes ever exist.

    Text encoders get the names that begin with `text_model.`, as all published models have them.
    """
    import torch

    with torch.device("meta"):
        module = make()
    folder.mkdir(parents=True)
    is_text = not hasattr(module, "save_config")
    if is_text:
        module.config.architectures = [type(module).__name__]
        module.config.save_pretrained(folder)
    else:
        module.save_config(folder)
    tensors = []
    for key, weight in module.state_dict().items():
        name = key
        if is_text and not key.startswith(("text_model.", "text_projection.")):
            name = f"text_model.{key}"
        if not name.endswith("position_ids"):  # counted, not learned: current transformers do not store it
            chunks = partial(_values, name, tuple(weight.shape), dtype)
            tensors.append(NewTensor(name, DTYPES[dtype], tuple(weight.shape), chunks))
    stem = "model" if is_text else "diffusion_pytorch_model"
    write_tensor_file(folder / f"{stem}.safetensors", tensors, {"format": "pt"})


def _values(name: str, shape: tuple[int, ...], dtype: str) -> Iterator[bytes]:
    """Values that keep a signal's strength; those of one name are always the same."""
    import numpy as np

    count = int(np.prod(shape))
    if len(shape) < 2:
        ones = name.endswith("weight")  # of norms
        yield np.full(count, 1.0 if ones else 0.0, np.float32).astype(_kind(dtype)).tobytes()
        return
    fan_in = count / shape[0]
    numbers = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(
        min(count, _PERIOD), np.float32
    )
    block = (numbers * np.float32(fan_in**-0.5)).astype(_kind(dtype)).tobytes()
    whole, rest = divmod(count * len(block) // len(numbers), len(block))
    for _ in range(whole):
        yield block
    yield block[:rest]


def _kind(dtype: str) -> str:
    return {"fp16": "<f2", "fp32": "<f4"}[dtype]
