"""OpenCLIP's tensors (SD 2.x, the second text encoder of SDXL) taken apart into transformers' CLIP, and put together.

Three differences beside the names: q, k and v stand in one tensor (`attn.in_proj_*`), one after the other, so that each
is a range of its bytes; `positional_embedding` is a bare tensor; `text_projection` is one too, with its sides swapped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.text import escaped
from fastsd_lib.formats.key_maps import Table, rename
from fastsd_lib.formats.stored_weight import Weight, Weights

QKV = "qkv"


def taken_apart(inner: str, weight: Weight) -> list[tuple[str, Weight]]:
    """One of OpenCLIP's tensors as those that transformers' CLIP has, still under OpenCLIP's module names."""
    if "attn.in_proj_" in inner:
        module, _, word = inner.rpartition("in_proj_")
        rows = weight.shape[0] if weight.shape else 0
        if rows % len(QKV) or not rows:
            raise _misfit(weight, f"{rows} rows are not q, k and v")
        third = rows // len(QKV)
        return [
            (
                f"{module}{letter}_proj.{word}",
                replace(
                    weight,
                    shape=(third, *weight.shape[1:]),
                    rows=(number * third, number * third + third),
                ),
            )
            for number, letter in enumerate(QKV)
        ]
    if inner == "positional_embedding":
        return [("positional_embedding.weight", weight)]
    if inner == "text_projection":
        _require_matrix(weight)
        return [("text_projection.weight", replace(weight, shape=weight.shape[::-1], transposed=True))]
    return [(inner, weight)]


def put_together(weights: Weights, table: Table) -> Iterable[tuple[str, tuple[Weight, ...]]]:
    """The inverse: OpenCLIP's name of each tensor and the weights that it is made of, one after the other.

    `table`: `key_maps.open_clip_table` for this depth. A transposed weight is marked as such.
    """
    joined: dict[str, dict[str, Weight]] = {}
    for name, weight in weights.items():
        theirs = rename(name, table)
        if theirs is None:
            raise _misfit(weight, "no text encoder as deep as its config says has that")
        module, _, word = theirs.rpartition(".")
        if module.endswith(("attn.q_proj", "attn.k_proj", "attn.v_proj")):
            fused = f"{module[: -len('q_proj')]}in_proj_{word}"
            letters = joined.setdefault(fused, {})
            letters[module[-len("q_proj")]] = weight
            if len(letters) == len(QKV):
                _require_alike([letters[letter] for letter in QKV])
                yield fused, tuple(letters[letter] for letter in QKV)
        elif module == "positional_embedding":
            yield module, (weight,)
        elif module == "text_projection":
            _require_matrix(weight)
            yield module, (replace(weight, transposed=not weight.transposed, shape=weight.shape[::-1]),)
        else:
            yield theirs, (weight,)
    half = next((letters for letters in joined.values() if len(letters) < len(QKV)), None)
    if half:
        raise _misfit(next(iter(half.values())), "the others of q, k and v are not there")


def _require_alike(pieces: Sequence[Weight]) -> None:
    """UserError for q, k and v that would not come apart again as they were."""
    for one in pieces:
        if not one.shape or one.shape != pieces[0].shape:
            raise _misfit(one, f"q, k and v stand in one tensor, and q is {list(pieces[0].shape)}")


def _require_matrix(weight: Weight) -> None:
    if len(weight.shape) != 2:
        raise _misfit(weight, "a matrix has two sides")


def _misfit(weight: Weight, why: str) -> UserError:
    return UserError(
        f"{weight.file.path} holds {escaped(weight.key)[:100]} as {list(weight.stored.shape)}: {why}.",
        fix="download or copy the model again.",
    )
