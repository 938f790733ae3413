"""From logits to the labels and scores that transformers' image-classification pipeline would tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastsd_lib.vit.model import VitModel
from fastsd_lib.vit.predictions import probabilities
from fastsd_lib.webui.vit_server.bodies import ClassifyParameters

if TYPE_CHECKING:
    import numpy as np


def top_labels(model: VitModel, scores: np.ndarray, count: int) -> list[dict[str, Any]]:
    """The best `count` of one picture's (C,) scores; equal ones in the order of the classes."""
    best = (-scores).argsort(kind="stable")[:count]
    return [{"label": model.labels[number], "score": float(scores[number])} for number in best]


def scores_of(model: VitModel, logits: np.ndarray, asked: ClassifyParameters) -> np.ndarray:
    """(B, C) logits -> float64 scores of the same shape. Unless a function is named, what `fastsd vit classify` tells."""
    kind = asked.function_to_apply
    if kind == "none":
        return logits.astype(float)
    if kind is not None:  # as transformers does it, whatever is known of the model's calibration
        return probabilities(logits, multi_label=kind == "sigmoid")
    several = model.multi_label or logits.shape[1] == 1
    return probabilities(logits, multi_label=several, temperature=model.temperature)
