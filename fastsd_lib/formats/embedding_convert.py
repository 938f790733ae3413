"""Textual-inversion embeddings as .safetensors, whatever program saved them; no pickle is run, no number changes.

The forms that go round: A1111's .pt (`string_to_param`), its .safetensors (`emb_params`), diffusers' learned_embeds
(one tensor under the word itself), and SDXL's two tensors, `clip_l` and `clip_g`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.core.tensor_file import NewTensor, TensorFile
from fastsd_lib.core.text import escaped, one_line
from fastsd_lib.formats.casting import READABLE, to_float32
from fastsd_lib.formats.ckpt_file import open_weights
from fastsd_lib.formats.model_writing import write_file
from fastsd_lib.formats.modelspec import HASHES
from fastsd_lib.formats.plans import new_tensor
from fastsd_lib.formats.stored_weight import Weight

MOST_VECTORS = 1000
SDXL = ("clip_l", "clip_g")
WIDTHS = {
    (768,): "stable-diffusion-v1",
    (1024,): "stable-diffusion-v2",
    (768, 1280): "stable-diffusion-xl-v1-base",
}
_IN_A1111 = ("emb_params", "string_to_param.*")  # there the word is the file's name


def convert_embedding(
    source: Path,
    target: Path,
    naming: Literal["original", "diffusers"] = "original",
    metadata: Mapping[str, Any] | None = None,
    report: Report = silent,
) -> Path:
    """Write the embedding `source` (.pt, .bin or .safetensors) as the .safetensors file `target`.

    "original": `emb_params`, as A1111 and ComfyUI name it; "diffusers": the word itself, which is the name in the file,
    else that of `source`. SDXL's two have one name each in both. Every vector keeps its width and bytes. UserError for
    what is no embedding, is hostile, or holds values that are no numbers; `target` is whole or not there.
    """
    if naming not in ("original", "diffusers"):
        raise UserError(
            f"An embedding has no names of the kind {naming!r}.", fix="take original or diffusers."
        )
    if target.suffix.lower() != ".safetensors":
        raise UserError(
            f"{target.name} does not end in .safetensors.", fix=f"write to {target.stem}.safetensors."
        )
    file = open_weights(source)
    found = {name: _vectors(file, name, source) for name in _names(file, source)}
    widths = tuple(found[name].shape[1] for name in (SDXL if len(found) > 1 else found))
    first = next(iter(found))
    word = first if first not in (*_IN_A1111, *SDXL) else file.metadata.get("name", source.stem)
    if len(found) == 1 and first not in SDXL:
        found = {word if naming == "diffusers" else "emb_params": found[first]}
    title = one_line(word.strip("<>"))
    header = {"format": "pt", "modelspec.title": title, "name": title}
    if widths in WIDTHS:
        header |= {
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": f"{WIDTHS[widths]}/textual-inversion",
        }
    carried = {key: value for key, value in file.metadata.items() if key not in ("format", *HASHES)}
    given = {k: v if isinstance(v, str) else json.dumps(v, default=str) for k, v in (metadata or {}).items()}
    tensors = [replace(tensor, name=name) for name, tensor in found.items()]
    write_file(target, tensors, header | carried | given, report, sha256=True)
    return target


def _names(file: TensorFile, source: Path) -> list[str]:
    """The tensors that are the word; UserError when these are not an embedding's."""
    names = list(file.tensors)
    if any(name in names for name in SDXL):
        stranger = next((name for name in names if name not in SDXL), "")
    else:
        known = [name for name in _IN_A1111 if name in names]
        stranger = next((name for name in names if name not in known), "") if known or len(names) != 1 else ""
    if stranger:
        raise UserError(
            f"{source} is no embedding: it holds {escaped(stranger)[:100]} among {len(names)} tensors.",
            fix="take a textual-inversion file; `identify` says what this one is.",
        )
    counts = {file.tensors[name].shape[:1] for name in names}
    if len(names) > 1 and len(counts) > 1:
        raise UserError(
            f"{source} has different counts of vectors in {' and '.join(names)}.", fix="download it again."
        )
    return names


def _vectors(file: TensorFile, name: str, source: Path) -> NewTensor:
    """(count, width), as stored."""
    stored = file.tensors[name]
    shape = stored.shape if len(stored.shape) != 1 else (1, *stored.shape)
    if len(shape) != 2 or not 1 <= shape[0] <= MOST_VECTORS or not shape[1] or stored.dtype not in READABLE:
        raise UserError(
            f"{source} is no embedding: {escaped(name)[:100]} is {stored.dtype} {list(stored.shape)}.",
            fix="take a textual-inversion file; `identify` says what this one is.",
        )
    import numpy as np

    tensor = new_tensor(name, (Weight(file, name, stored.shape),), None)
    for chunk in tensor.chunks():
        if not np.isfinite(to_float32(np.frombuffer(chunk, np.uint8), stored.dtype)).all():
            raise UserError(
                f"{source} holds values that are no numbers (in {escaped(name)[:100]}): its training had gone wrong.",
                fix="take an earlier state of the training.",
            )
    return replace(tensor, shape=shape)
