"""The recipe of the Train tab: a field for every setting of a training, the usual ones before the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from fastsd_lib.webui.trainings import Setting, Suggestion, Trainings

METHODS = {"full": "DreamBooth: every weight", "lora": "LoRA: a small file"}
PROMPTS = {"instance_prompt": "a photo of sks cat", "class_prompt": "a photo of a cat (or empty)"}
USUAL = ("unet_steps", "text_encoder_steps", "resolution_px", "sample_every_steps")


@dataclass
class RecipeBox:
    base: gr.Dropdown
    fields: dict[str, gr.components.Component]  # setting -> its component
    settings: dict[str, Setting]

    def of_session(self) -> list[Any]:
        """What `of` writes to."""
        return [self.base, *self.fields.values()]

    def of(self, trainings: Trainings, found: Suggestion) -> list[Any]:
        models = trainings.base_models()
        if found.base_model not in [name for _, name in models]:
            models.append((found.base_model.rpartition("/")[2], found.base_model))
        return [gr.Dropdown(models, value=found.base_model), *(found.values[name] for name in self.fields)]

    def values(self, given: tuple[Any, ...]) -> dict[str, Any]:
        """Settings by name from the values of `fields`; an emptied number is its default."""
        values = dict(zip(self.fields, given, strict=True))
        return {
            name: self.settings[name].default if value is None else value for name, value in values.items()
        }


def build(trainings: Trainings) -> RecipeBox:
    settings = {setting.name: setting for setting in trainings.settings()}
    fields: dict[str, gr.components.Component] = {}
    base = gr.Dropdown(
        trainings.base_models(), value=None, label="Base model", allow_custom_value=True, elem_id="train_base",
        info="or a Hugging Face id such as org/name",
    )  # fmt: skip
    fields["method"] = gr.Radio(
        [(METHODS.get(name, name), name) for name in settings["method"].choices],
        value=settings["method"].default, label="Method", elem_id="train_method",
    )  # fmt: skip
    for name, example in PROMPTS.items():
        fields[name] = gr.Textbox(
            label=settings[name].label, placeholder=example, info=settings[name].about, max_lines=2,
            elem_id=f"train_{name}",
        )  # fmt: skip
    with gr.Row():
        for name in USUAL:
            fields[name] = _field(settings[name], info=False)
    with gr.Accordion("All settings", open=False, elem_id="train_all"), gr.Row(elem_classes=["train-all"]):
        for name, setting in settings.items():
            if name not in fields:
                fields[name] = _field(setting)
    return RecipeBox(base, fields, settings)


def _field(setting: Setting, info: bool = True) -> gr.components.Component:
    common: dict[str, Any] = {
        "label": setting.label,
        "info": setting.about or None if info else None,
        "elem_id": f"train_{setting.name}",
    }
    if setting.kind == "choice":
        return gr.Dropdown(list(setting.choices), value=setting.default, **common)
    if setting.kind == "yes_no":
        return gr.Checkbox(setting.default, **common)
    if setting.kind == "text":
        return gr.Textbox(setting.default, max_lines=2, **common)
    return gr.Number(
        setting.default, precision=0 if setting.kind == "whole" else None, min_width=110, **common
    )
