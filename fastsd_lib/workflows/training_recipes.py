"""The choices of a training as a form of the web page needs them: every setting, and values that suit."""

from __future__ import annotations

import typing
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastsd_lib.core.config import read_yaml
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.field_words import field_comments, label_of
from fastsd_lib.models import registry
from fastsd_lib.models.known_models import KnownModel, bundled_models, find_known, known_models
from fastsd_lib.sessions import session as sessions
from fastsd_lib.sessions.session import Session
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.webui.trainings import Setting
from fastsd_lib.workflows import dreambooth

if TYPE_CHECKING:
    from fastsd_lib.generation.shelf import Shelf

TRAINED_FAMILY = "sd1"  # of the models that are drawn with, those that are trained
_KINDS: dict[type, Literal["text", "whole", "number", "yes_no"]] = {
    str: "text",
    int: "whole",
    float: "number",
    bool: "yes_no",
}
_NAMELESS = "photo of sks subject"  # a recipe is not read without an instance prompt


def settings() -> tuple[Setting, ...]:
    """Every field of a recipe, in its order."""
    hints, comments = typing.get_type_hints(DreamBoothConfig), field_comments(DreamBoothConfig)
    found = []
    for field in fields(DreamBoothConfig):
        low, high = DreamBoothConfig.LIMITS.get(field.name, (None, None))
        choices = DreamBoothConfig.CHOICES.get(field.name, ())
        found.append(
            Setting(
                field.name,
                label_of(field.name),
                comments.get(field.name, ""),
                "choice" if choices else _KINDS[hints[field.name]],
                "" if field.default is MISSING else field.default,
                low,
                high,
                choices,
            )
        )
    return tuple(found)


def base_models(shelf: Shelf, root: Path | None = None) -> list[tuple[str, str]]:
    """(what is shown, name) of the models that can be trained: those that have a name, then those on the shelf.

    `root`: where sessions live, whose models.yaml may name more.
    """
    found, problem = [], ""
    try:
        trained = trainable(known_models(root=root))
    except UserError as error:  # in a file of the user's: the page is shown all the same, and says it
        trained, problem = trainable(bundled_models()), error.message
    for known in trained:
        size = f" ({known.download_mb / 1000:.1f} GB to download once)" if known.download_mb else ""
        found.append((f"{known.about[:1].upper()}{known.about[1:]}{size}", known.name))
    names = {known.name for known in trained}
    for model in shelf.models():
        with suppress(UserError):  # a file that is no model
            if model.name not in names and model.family == TRAINED_FAMILY:
                found.append((model.path.name, model.name))
    return [*found, (problem, "")] if problem else found


def trainable(models: Iterable[KnownModel]) -> list[KnownModel]:
    return [one for one in models if "train" in one.uses and one.kind == "checkpoint"]


def base_of(text: str, shelf: Shelf, session: Session, root: Path | None = None) -> str:
    """What a child is told to train: a known name, a Hugging Face id, or the path of a model on the shelf.

    A path is taken only if it is on the shelf or the session was trained on it: whoever uses the page must not try
    out which files there are.
    """
    text = text.strip()
    if (text and find_known(text, root=root)) or (
        text and text == sessions.read_manifest(session).get("base_model")
    ):
        return text
    with suppress(UserError):
        if text:
            return str(shelf.find(text).path.absolute())
    if registry.HUB_ID.fullmatch(text):
        return text
    raise UserError(
        f"There is no base model {text!r}." if text else "No base model is chosen.",
        fix="choose one of the list, or type a Hugging Face id such as org/name.",
    )


def suggested(session: Session, base: str, method: str) -> DreamBoothConfig:
    """The session's own recipe where it is for this base model and method ("" = its own), else what suits these two.

    The instance prompt is "" where nobody has written one yet.
    """
    written = as_written(session)
    trained_on = sessions.read_manifest(session).get("base_model")
    prompt = str(written.get("instance_prompt") or "")
    asked = [f"instance_prompt={prompt or _NAMELESS}"]
    method = method or str(written.get("method") or "full")
    if trained_on and (trained_on != base or written.get("method", "full") != method):
        config = _suiting(base, method, prompt or _NAMELESS, str(written.get("class_prompt") or ""))
    else:
        asked.append(f"method={method}")
        _, config = dreambooth.planned(session, model=base, choices=asked)
        config = config if trained_on else replace(config, resolution_px=_resolution(base, config))
    return config if prompt else replace(config, instance_prompt="")


def as_written(session: Session) -> dict[str, Any]:
    """The session's recipe.yaml, unchecked."""
    return read_yaml(session.recipe) if session.recipe.is_file() else {}


def _suiting(base: str, method: str, instance_prompt: str, class_prompt: str) -> DreamBoothConfig:
    if base == registry.EMBEDDED:
        config = dreambooth.recipe_for(dreambooth.base_model(base), instance_prompt, class_prompt)
        return replace(config, method=method)
    rates = dreambooth.LORA_RATES if method == "lora" else {}
    config = DreamBoothConfig(instance_prompt, class_prompt, method=method, **rates)
    return replace(config, resolution_px=_resolution(base, config))


def _resolution(base: str, config: DreamBoothConfig) -> int:
    known = find_known(base)
    return (known.resolution_px if known else 0) or config.resolution_px
