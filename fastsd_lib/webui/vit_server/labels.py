"""From logits to the labels and scores that transformers' image-classification pipeline would tell."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastsd_lib.vit.model import VitModel
from fastsd_lib.webui.vit_server.bodies import ClassifyParameters


def top_labels(model: VitModel, scores: np.ndarray, count: int) -> list[dict[str, Any]]:
    """The best `count` of one picture's (C,) scores; equal ones in the order of the classes."""
    best = np.argsort(-scores, kind="stable")[:count]
    return [{"label": model.labels[number], "score": float(scores[number])} for number in best]


def scores_of(model: VitModel, logits: np.ndarray, asked: ClassifyParameters) -> np.ndarray:
    """(B, C) logits -> scores of the same shape. Unless a function is named: what `fastsd vit classify` tells."""
    wide = logits.astype(np.float64)
    kind = asked.function_to_apply
    if kind is None:
        kind = "sigmoid" if model.multi_label or wide.shape[1] == 1 else "softmax"
        wide = wide / (model.temperature or 1.0)
    if kind == "none":
        return wide
    if kind == "sigmoid":
        return 0.5 * (1 + np.tanh(wide / 2))  # no overflow, however far out
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
