"""The figures of an evaluation in words: what the page, the text and the model card have in common."""

from __future__ import annotations

from typing import Any

from fastsd_lib.core.text import one_line
from fastsd_lib.vit.evaluation import Evaluation

NOT_MEASURED = "not measured"


def class_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One dict for each class, in the model's order."""
    figures = evaluation.per_class
    return [
        {
            "class": name,
            "precision": float(figures.precision[at]),
            "recall": float(figures.recall[at]),
            "f1": float(figures.f1[at]),
            "images": int(figures.support[at]),
            "predicted": int(figures.predicted[at]),
        }
        for at, name in enumerate(evaluation.classes)
    ]


def headline(evaluation: Evaluation) -> list[tuple[str, str]]:
    """(name, value) of the figures that come first, for people."""
    found = evaluation.summary()
    low, high = found["accuracy_95"]
    after, before = found["calibration"]["after"], found["calibration"]["before"]
    rows = [
        ("accuracy", f"{found['accuracy']:.2%} ({evaluation.right} of {evaluation.images})"),
        ("95 % interval (Wilson)", f"{low:.2%} to {high:.2%}"),
        (
            "top-5 accuracy",
            f"{found['top5']:.2%}" if found["top5"] is not None else "of no use with ten classes or fewer",
        ),
        ("balanced accuracy", f"{found['balanced_accuracy']:.2%}"),
        ("macro F1", f"{found['macro']['f1']:.2%}"),
        ("Matthews' correlation", f"{found['matthews']:.3f}"),
        (
            "calibration error",
            f"{after['ece']:.3f} (before calibration {before['ece']:.3f}){_worse(after, before)}",
        ),
        ("log loss", f"{after['log_loss']:.3f} (before {before['log_loss']:.3f})"),
        ("temperature", f"{found['calibration']['temperature']:.3f}, {found['calibration']['source']}"),
    ]
    return [*rows, ("speed", speed_words(evaluation))]


def _worse(after: dict[str, float], before: dict[str, float]) -> str:
    if after["log_loss"] <= before["log_loss"]:
        return ""
    return "; the temperature does harm here: these images are unlike those that it was fitted on"


def speed_words(evaluation: Evaluation) -> str:
    if evaluation.images_per_s is None:
        return NOT_MEASURED
    where = ", ".join(word for word in (evaluation.runner, evaluation.machine) if word)
    return f"{evaluation.images_per_s:.1f} images/s, files read and decoded ({where})"


def class_table(evaluation: Evaluation) -> list[str]:
    """Markdown lines of precision, recall, F1 and counts of each class."""
    rows = [
        f"| {plain(row['class'])} | {row['precision']:.1%} | {row['recall']:.1%} | {row['f1']:.1%} | {row['images']} |"
        for row in class_rows(evaluation)
    ]
    return ["| class | precision | recall | F1 | images |", "|---|---|---|---|---|", *rows]


def plain(text: str) -> str:
    """`text` on one line, without a meaning to Markdown or HTML: names of classes come from users."""
    return one_line(text).translate(_MEANT)


_MEANT = str.maketrans(
    {"<": "&lt;", ">": "&gt;", "&": "&amp;", **{sign: f"\\{sign}" for sign in "\\`*_[]|#!~"}}
)
