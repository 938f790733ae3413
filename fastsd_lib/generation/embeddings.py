"""Files of learned words (textual inversion, Gal et al. 2022): vectors that stand in the place of a word."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.pickle_header import is_pickled, read_pickle_header
from fastsd_lib.core.tensor_file import read_tensor_file

MOST_BYTES = 64 << 20  # of a file; a hundred vectors of SDXL take one mebibyte
MOST_VECTORS = 1000
_FAMILIES = {(768,): "sd1", (1024,): "sd2", (768, 1280): "sdxl", (1280,): "sdxl"}

LearnedWord = torch.Tensor | dict[str, torch.Tensor]  # (count, width); or one such part for each text encoder


@dataclass(frozen=True)
class EmbeddingInfo:
    """One learned word of the library."""

    name: str  # the file's name without its ending, which is what a prompt says
    path: Path
    vectors: LearnedWord = field(repr=False, compare=False)
    count: int  # vectors, each the place of one token
    widths: tuple[int, ...]  # 768 for SD 1.x, 1024 for SD 2.x, 768 and 1280 for SDXL
    family: str  # "" for widths that belong to none
    sha256: str  # the first 12 letters, as "TI hashes" has them
    step: int | None = None  # of its training
    sd_checkpoint: str | None = None  # what it was trained on: hash and name
    sd_checkpoint_name: str | None = None


def read_embedding(path: Path) -> EmbeddingInfo:
    """Read .safetensors, or A1111's .pt and .bin of plain tensors; nothing in a pickle is executed.

    UserError for files that are damaged, hostile or hold something else.
    """
    if path.stat().st_size > MOST_BYTES:
        raise UserError(
            f"{path.name} is no learned word: it has {path.stat().st_size:,} bytes.", fix="put it elsewhere."
        )
    data, facts = _pickled(path) if is_pickled(path) else _safetensors(path)
    word = _word(path, data)
    parts = list(word.values()) if isinstance(word, dict) else [word]
    widths = tuple(one.shape[1] for one in parts)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    step = facts.get("step")
    return EmbeddingInfo(
        path.stem,
        path,
        word,
        parts[0].shape[0],
        widths,
        _FAMILIES.get(widths, ""),
        digest,
        step if isinstance(step, int) else None,
        *(
            facts[name] if isinstance(facts.get(name), str) else None
            for name in ("sd_checkpoint", "sd_checkpoint_name")
        ),
    )


def _safetensors(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    file = read_tensor_file(path)
    facts: dict[str, Any] = dict(file.metadata)
    for name in ("step", "ss_steps"):
        if facts.get(name, "").isdigit():
            facts["step"] = int(facts[name])
    return load_file(path), facts


def _pickled(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise _no_word(path, "it was packed by another program than PyTorch")
        data = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception:  # a hostile file can make the reader stumble in any way it likes
        read_pickle_header(path)  # says what it would have run
        raise _no_word(path, "its tensors cannot be read") from None
    if not isinstance(data, dict):
        raise _no_word(path, "it holds no tensors by name")
    return data, data


def _word(path: Path, data: Mapping[str, Any]) -> LearnedWord:
    """The vectors under any of the names that programs give them."""
    if isinstance(data.get("string_to_param"), dict):  # A1111 and the paper's own program
        data = data["string_to_param"]
    found = {name: one for name, one in data.items() if isinstance(one, torch.Tensor)}
    if "clip_l" in found or "clip_g" in found:
        word = {name: _vectors(path, found[name]) for name in ("clip_l", "clip_g") if name in found}
        if len({len(one) for one in word.values()}) > 1:
            raise _no_word(path, "clip_l and clip_g have different counts")
        return word
    if "emb_params" in found:
        return _vectors(path, found["emb_params"])
    if len(found) == 1:  # diffusers: {"<word>": vectors}
        return _vectors(path, next(iter(found.values())))
    raise _no_word(path, f"it holds {len(found)} tensors")


def _vectors(path: Path, tensor: torch.Tensor) -> torch.Tensor:
    """(count, width), fp32."""
    shape = tuple(tensor.shape)
    tensor = tensor[None] if tensor.ndim == 1 else tensor
    if tensor.ndim != 2 or not 1 <= tensor.shape[0] <= MOST_VECTORS or math.prod(shape) > MOST_BYTES // 4:
        raise _no_word(path, f"its tensor is {shape}")
    vectors = tensor.detach().float().clone()
    if not vectors.numel() or not torch.isfinite(vectors).all():
        raise _no_word(path, "it holds values that are no numbers (NaN)")
    return vectors


def _no_word(path: Path, why: str) -> UserError:
    return UserError(
        f"{path.name} is no learned word: {why}.",
        fix="take an embedding (textual inversion) for Stable Diffusion, as .safetensors.",
    )
