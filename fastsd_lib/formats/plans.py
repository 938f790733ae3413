"""Which bytes of a model go where: lists of `NewTensor`, made of headers alone, no weight read.

A tensor is a list of byte ranges, copied as they lie or cast; one that is transposed or scattered comes as a stream.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from fastsd_lib.core.byte_range import ByteRange, Made
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import NewTensor, TensorFile
from fastsd_lib.formats.casting import cast_chunks, cast_pieces, target_dtype
from fastsd_lib.formats.key_maps import BODY_PREFIXES, TEXT_PREFIXES, open_clip_table, rename, vae_table
from fastsd_lib.formats.open_clip import put_together
from fastsd_lib.formats.stored_weight import Weight, Weights
from fastsd_lib.formats.weights import is_buffer, key_tables

VAE = BODY_PREFIXES["vae"]
INFINITE = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000}  # the bits of infinity; above it are no numbers


def single_file_plan(
    kind: str, configs: Mapping[str, str], parts: Mapping[str, Weights], extras: Weights, dtype: str | None
) -> list[NewTensor]:
    """The parts of a Diffusers folder as the tensors of one file.

    `kind`: sd1, sd2, sdxl or sdxl_refiner. `extras`: what a folder has no place for, under the names of the file.
    `dtype`: fp16, bf16, fp32, or None to keep every byte.

    Nothing is made up. Schedules (`betas`, `alphas_cumprod`), position ids, the temperature and, in SD 2.x, the last
    layer and the projection of the text encoder are written where the source had them. Without them A1111 and Forge
    load with strict=False and make the schedules from their yaml, and diffusers, kohya and ComfyUI do not ask for
    them. SD 2.x reads its text encoder before the last layer, so that nothing is drawn with what it gives.
    """
    tables = key_tables(configs)
    prefixes = BODY_PREFIXES | TEXT_PREFIXES[kind]
    planned: list[NewTensor] = []
    for part, weights in parts.items():
        prefix = prefixes[part]
        if prefix.endswith(".model."):
            layers = json.loads(configs[f"{part}/config.json"])["num_hidden_layers"]
            table = open_clip_table(layers, projects=part == "text_encoder_2")
            planned += [
                new_tensor(prefix + name, pieces, dtype) for name, pieces in put_together(weights, table)
            ]
        elif part == "vae":
            planned += vae_plan(weights, tables[part], dtype)
        else:
            planned += [
                new_tensor(prefix + str(rename(name, tables[part])), (weight,), dtype)
                for name, weight in weights.items()
            ]
    taken = {tensor.name for tensor in planned}
    return planned + [
        new_tensor(name, (weight,), dtype) for name, weight in extras.items() if name not in taken
    ]


def vae_plan(weights: Weights, table: Mapping[str, str], dtype: str | None) -> list[NewTensor]:
    """A VAE under latent-diffusion's names, within a whole file."""
    planned = []
    for name, weight in weights.items():
        theirs = VAE + str(rename(name, table))
        # Single files store the VAE's attention projections as 1x1 convolutions.
        projection = ".mid.attn_1." in theirs and len(weight.shape) == 2
        planned.append(
            new_tensor(theirs, (weight,), dtype, (*weight.shape, 1, 1) if projection else weight.shape)
        )
    return planned


def folder_plan(parts: Mapping[str, Weights], dtype: str | None) -> dict[str, list[NewTensor]]:
    """The tensors of each part of a Diffusers folder, under diffusers' names."""
    return {
        part: [new_tensor(name, (weight,), dtype) for name, weight in weights.items()]
        for part, weights in parts.items()
    }


def repacked_plan(
    file: TensorFile,
    names: Mapping[str, str],
    dtype: str | None,
    vae: tuple[Mapping[str, object], Weights] | None = None,
) -> list[NewTensor]:
    """A single file once more: the tensors `names` (new name -> name in the file), in the order of their bytes.

    `vae`: config and weights, under diffusers' names, of one that takes the place of the file's own.
    """
    ordered = sorted(names.items(), key=lambda pair: file.tensors[pair[1]].start)
    planned = [
        new_tensor(name, (Weight(file, key, file.tensors[key].shape),), dtype)
        for name, key in ordered
        if vae is None or not name.startswith(VAE)
    ]
    return planned + (vae_plan(vae[1], vae_table(vae[0]), dtype) if vae else [])


def new_tensor(
    name: str, pieces: Sequence[Weight], dtype: str | None, shape: tuple[int, ...] | None = None
) -> NewTensor:
    """A tensor made of `pieces`, one after the other along the first axis.

    `dtype` does not touch counters, tables and ids. UserError when the pieces are of different number formats and
    nothing is to be cast.
    """
    stored = {piece.stored.dtype for piece in pieces}
    if shape is None:
        rows = sum(piece.shape[0] for piece in pieces) if len(pieces) > 1 else 0
        shape = (rows, *pieces[0].shape[1:]) if rows else pieces[0].shape
    targets = {one if is_buffer(name) else target_dtype(one, dtype) for one in stored}
    if len(targets) > 1:
        raise UserError(
            f"{name} is made of tensors in different number formats ({', '.join(sorted(stored))}).",
            fix="choose one: add --dtype fp16, bf16 or fp32.",
        )
    (target,) = targets
    if stored == {target} and all(piece.in_a_row for piece in pieces):
        return NewTensor.copied(name, target, shape, [piece.range for piece in pieces])
    if all(piece.in_a_row for piece in pieces):
        return NewTensor.copied(name, target, shape, _cast_pieces(name, pieces, target))
    return NewTensor(name, target, shape, partial(_chunks, name, tuple(pieces), target))


def _cast_pieces(name: str, pieces: Iterable[Weight], target: str) -> Iterator[ByteRange | Made]:
    for piece in pieces:
        if piece.stored.dtype == target:
            yield piece.range
        else:
            check = partial(_check_numbers, name, piece.file.path, target)
            yield from cast_pieces(piece.range, name, piece.stored.dtype, target, check)


def _chunks(name: str, pieces: Iterable[Weight], target: str) -> Iterator[bytes | memoryview]:
    """For weights that do not lie in a row: a pickle's views, a transposed projection."""
    for piece in pieces:
        if piece.stored.dtype == target:
            yield from piece.chunks()
            continue
        for chunk in cast_chunks(piece.chunks(), name, piece.stored.dtype, target):
            _check_numbers(name, piece.file.path, target, chunk)
            yield chunk


def _check_numbers(name: str, origin: Path, dtype: str, chunk: memoryview) -> None:
    """UserError for what is no number. (Bytes that are copied are not looked at: `models verify` does.)"""
    import numpy as np

    words = "2" if dtype in ("F16", "BF16") else "4"
    highest = INFINITE[dtype]
    sign = 1 << (int(words) * 8 - 1)
    # With all bits of the exponent set it is infinite or no number; both signs, without a row of answers.
    above = np.frombuffer(chunk, f"<i{words}").max(initial=0) >= highest
    if above or np.frombuffer(chunk, f"<u{words}").max(initial=0) >= sign + highest:
        raise UserError(
            f"{origin} holds values that are no numbers (in {name}): its training had gone wrong.",
            fix="take an earlier or another copy of the model; without --dtype its bytes are kept as they are.",
        )


def mark(name: str) -> NewTensor:
    """A tensor without numbers, which says something by being there."""
    return NewTensor.copied(name, "F32", (0,), ())
