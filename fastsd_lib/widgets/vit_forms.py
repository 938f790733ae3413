"""The form of a ViT training: the choices of a preset, those that most runs need first."""

from __future__ import annotations

from typing import Any

from fastsd_lib.vit.train_config import VitTrainConfig, preset
from fastsd_lib.widgets.forms import Form

USUAL_CHOICES = (
    "model", "epochs", "batch_size", "learning_rate", "freeze", "augment", "flip", "balance", "validation", "test", "seed",
)  # fmt: skip


def training_form(name: str = "default", **changes: Any) -> Form[VitTrainConfig]:
    """The form of the preset `name`; `changes` as in Form: AUTO and "" leave a field as the preset has it."""
    return Form(preset(name), title="Recipe", first=USUAL_CHOICES, changes=changes)
