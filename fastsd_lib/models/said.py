"""What a model file says beside the shapes of its tensors: in marks, in metadata, in the .yaml of the same name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from fastsd_lib.core.pickle_header import PickleHeader
from fastsd_lib.core.said_prediction import said_in_metadata, said_prediction
from fastsd_lib.core.tensor_file import TensorFile
from fastsd_lib.core.text import escaped
from fastsd_lib.models.kind import Kind

MAX_TAGS_CHARS = 1 << 20


def prediction(file: TensorFile | PickleHeader, kind: Kind, path: Path) -> str:
    """ "epsilon", "v_prediction", "flow" or "edm"; "" where nothing but a weight would tell."""
    if kind.family in ("sd3", "flux") and kind.kind in ("checkpoint", "transformer"):
        return "flow"
    if kind.kind not in ("checkpoint", "unet"):
        return said_in_metadata(file.metadata)
    if "v_pred" in kind.marks or "edm" in kind.marks:  # those of a U-Net alone may stand under a prefix
        return "v_prediction" if "v_pred" in kind.marks else "edm"
    said = said_prediction(file.tensors, file.metadata, path)
    if said or (kind.family == "sd2" and kind.variant in ("", "unCLIP")):
        return said
    # Every other program takes an unmarked file of these families for one that predicts noise.
    return "v_prediction" if kind.variant == "upscaling" else "epsilon"


def trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The words that call what a LoRA learned, as its metadata has them."""
    phrase = metadata.get("modelspec.trigger_phrase") or metadata.get("activation text") or ""
    words = [word.strip() for word in phrase.split(",")]
    if not phrase and "ss_tag_frequency" in metadata:
        words = _folder_words(metadata["ss_tag_frequency"])
    return tuple(dict.fromkeys(escaped(word[:80]) for word in words if word))


def _folder_words(tag_frequency: str) -> list[str]:
    """kohya's programs name the photos' folders by repeats and words: "10_zwx person"."""
    try:
        named = json.loads(tag_frequency[:MAX_TAGS_CHARS])
    except (ValueError, RecursionError):
        return []
    if not isinstance(named, dict):
        return []
    found = [re.fullmatch(r"\d+_(.+)", str(name)) for name in named]
    return [match[1] for match in found if match]


def unknown(kind: Kind, prediction: str) -> tuple[str, ...]:
    """What the header does not say, in words."""
    said = []
    if (
        not kind.fits
        and kind.kind not in ("upscaler", "text-encoder", "image-encoder")
        and "TAESD" not in kind.variant
    ):
        said.append("which base model it belongs to")
    if len(kind.fits) > 1:
        said.append("for which of its families it was trained: they differ in numbers alone")
    if not prediction and kind.kind in ("checkpoint", "unet"):
        said.append("prediction: not in the header; a .yaml beside the file or its weights would tell")
    if kind.kind in ("checkpoint", "transformer") and kind.variant == "depth or canny":
        said.append("whether it is shown depth or edges: both have the same shapes")
    return tuple(said)
