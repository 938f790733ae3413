"""OpenCLIP's tensors (SD 2.x, the second text encoder of SDXL) taken apart into transformers' CLIP, and put together.

Three differences beside the names: q, k and v stand in one tensor (`attn.in_proj_*`), one after the other, so that each
is a range of its bytes; `positional_embedding` is a bare tensor; `text_projection` is one too, with its sides swapped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.key_maps import Table, rename
from fastsd_lib.formats.stored_weight import Weight, Weights

QKV = "qkv"


def taken_apart(inner: str, weight: Weight) -> list[tuple[str, Weight]]:
    """One of OpenCLIP's tensors as those that transformers' CLIP has, still under OpenCLIP's module names."""
    if "attn.in_proj_" in inner:
        module, _, word = inner.rpartition("in_proj_")
        third = weight.shape[0] // 3
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
        return [("text_projection.weight", replace(weight, shape=weight.shape[::-1], transposed=True))]
    return [(inner, weight)]


def put_together(weights: Weights, table: Table) -> Iterable[tuple[str, tuple[Weight, ...]]]:
    """The inverse: OpenCLIP's name of each tensor and the weights that it is made of, one after the other.

    `table`: `key_maps.open_clip_table` for this depth. A transposed weight is marked as such.
    """
    joined: dict[str, dict[str, Weight]] = {}
    for name, weight in weights.items():
        theirs = str(rename(name, table))
        module, _, word = theirs.rpartition(".")
        if module.endswith(("attn.q_proj", "attn.k_proj", "attn.v_proj")):
            fused = f"{module[: -len('q_proj')]}in_proj_{word}"
            letters = joined.setdefault(fused, {})
            letters[module[-len("q_proj")]] = weight
            if len(letters) == len(QKV):
                yield fused, tuple(letters[letter] for letter in QKV)
        elif module == "positional_embedding":
            yield module, (weight,)
        elif module == "text_projection":
            yield module, (replace(weight, transposed=not weight.transposed, shape=weight.shape[::-1]),)
        else:
            yield theirs, (weight,)
    half = next((name for name, letters in joined.items() if len(letters) < len(QKV)), None)
    if half:
        raise UserError(
            f"The text encoder lacks one of q, k and v, which {half} is made of.",
            fix="download or copy the model again.",
        )
