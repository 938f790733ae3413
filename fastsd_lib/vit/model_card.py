"""README.md of a model: what it is, what it learnt from, how good it is, and what nobody measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastsd_lib.core.files import plain_disk_errors, sha256_file, write_text
from fastsd_lib.core.text import one_line
from fastsd_lib.vit.evaluation import Evaluation
from fastsd_lib.vit.model import VitModel
from fastsd_lib.vit.report_words import NOT_MEASURED, class_table, headline, plain

NAME = "README.md"
_NOT_SAID = "not stated"
_MOST_CLASSES = 200


@dataclass(frozen=True)
class CardFacts:
    """What only its maker knows of a model. What is left empty is said to be not stated; nothing is guessed."""

    licence: str = ""  # as on the Hugging Face Hub: "apache-2.0"
    base_model: str = ""  # "google/vit-base-patch16-224-in21k"
    data: str = ""  # where the images come from, and under which licence
    images: Mapping[str, int] = field(default_factory=dict)  # split -> how many
    intended_use: str = ""
    limits: str = ""  # where it must not be used, what it was never shown
    recipe: Mapping[str, Any] = field(default_factory=dict)  # settings of the training
    train_seconds: float | None = None


def write_model_card(
    model: VitModel, evaluation: Evaluation | None = None, facts: CardFacts | None = None
) -> Path:
    """Write README.md into the model's folder."""
    with plain_disk_errors("write the model card"):
        write_text(model.path / NAME, model_card(model, evaluation, facts))
    return model.path / NAME


def model_card(model: VitModel, evaluation: Evaluation | None = None, facts: CardFacts | None = None) -> str:
    """The text: metadata that the Hugging Face Hub reads, then Markdown for people."""
    facts = facts or CardFacts()
    parts = [
        _metadata(model, evaluation, facts),
        f"# {plain(model.name)}",
        "",
        f"{plain(model.architecture)}, {model.parameters:,} weights, images of {model.image_px[1]}x{model.image_px[0]} "
        f"pixels, {len(model.labels)} classes.",
        "",
        *_uses(facts),
        *_data(model, facts),
        *_figures(evaluation),
        *_recipe(facts),
        *_file(model),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _metadata(model: VitModel, evaluation: Evaluation | None, facts: CardFacts) -> str:
    import yaml

    values: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-classification"}
    if facts.licence:
        values["license"] = one_line(facts.licence)
    if facts.base_model:
        values["base_model"] = one_line(facts.base_model)
    values["tags"] = ["image-classification", "vision", "fastsd"]
    if evaluation is not None:
        found = evaluation.summary()
        figures = {"accuracy": ("accuracy", found["accuracy"]), "f1": ("macro F1", found["macro"]["f1"])}
        data = {
            "name": one_line(facts.data) or "images of its owner",
            "type": "imagefolder",
            "split": evaluation.split,
        }
        result = {
            "task": {"type": "image-classification"},
            "dataset": data,
            "metrics": [
                {"type": kind, "name": name, "value": round(value, 6)}
                for kind, (name, value) in figures.items()
            ],
        }
        values["metrics"] = list(figures)
        values["model-index"] = [{"name": one_line(model.name), "results": [result]}]
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---\n"


def _uses(facts: CardFacts) -> list[str]:
    lines = ["## Intended use", "", plain(facts.intended_use) or f"{_NOT_SAID.capitalize()}.", ""]
    limits = plain(facts.limits) or (
        "Not stated. The figures below hold for images like those that it was tested on, and for no others."
    )
    return [*lines, f"**Limits.** {limits}", "", f"**Licence.** {plain(facts.licence) or _NOT_SAID}", ""]


def _data(model: VitModel, facts: CardFacts) -> list[str]:
    lines = ["## Data", "", plain(facts.data) or f"{_NOT_SAID.capitalize()}.", ""]
    if facts.images:
        lines += ["| split | images |", "|---|---|"]
        lines += [f"| {plain(split)} | {count:,} |" for split, count in facts.images.items()] + [""]
    if model.generic_labels:
        ends = f"{plain(model.labels[0])} to {plain(model.labels[-1])}"
        return [*lines, f"Its classes are called {ends}; what they mean is not written in the model.", ""]
    names = ", ".join(plain(name) for name in model.labels[:_MOST_CLASSES])
    more = f" and {len(model.labels) - _MOST_CLASSES} more" if len(model.labels) > _MOST_CLASSES else ""
    return [*lines, f"Classes: {names}{more}.", ""] if model.labels else lines


def _figures(evaluation: Evaluation | None) -> list[str]:
    if evaluation is None:
        return [
            "## Figures",
            "",
            f"Accuracy: {NOT_MEASURED}. Calibration: {NOT_MEASURED}. Speed: {NOT_MEASURED}.",
            "",
        ]
    head = f"Measured on {evaluation.images} images of {plain(evaluation.split)}."
    if evaluation.split.casefold().startswith("train"):
        head = f"Measured on {evaluation.images} images that the model was TRAINED on: it will be worse on others."
    table = ["| | |", "|---|---|", *(f"| {name} | {plain(value)} |" for name, value in headline(evaluation))]
    return ["## Figures", "", head, "", *table, "", "### Each class", "", *class_table(evaluation), ""]


def _recipe(facts: CardFacts) -> list[str]:
    lines = ["## Training", ""]
    if facts.base_model:
        lines += [f"Started from {plain(facts.base_model)}.", ""]
    if facts.train_seconds is not None:
        lines += [f"Took {facts.train_seconds:,.0f} seconds.", ""]
    if not facts.recipe:
        return [*lines, "Settings: not stated.", ""]
    rows = [f"| {plain(str(name))} | {plain(str(value))} |" for name, value in facts.recipe.items()]
    return [*lines, "| setting | value |", "|---|---|", *rows, ""]


def _file(model: VitModel) -> list[str]:
    lines = ["## Files", ""]
    for path in sorted(model.path.glob("*.safetensors")):
        lines.append(
            f"- `{path.name}`: {path.stat().st_size / 2**20:,.1f} MiB, SHA-256 `{sha256_file(path)}`"
        )
    use = "print(pipeline('image-classification', model='.')('photo.jpg'))  # in this folder"
    return [*lines, "", "```python", "from transformers import pipeline", "", use, "```"]
