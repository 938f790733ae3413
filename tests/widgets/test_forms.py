from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.field_words import field_comments, label_of
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.widgets.forms import AUTO, Form, recipe_form


@dataclass(frozen=True)
class Everything:
    LIMITS: ClassVar[Mapping[str, tuple[float, float]]] = {"count": (0, 10), "rate": (0.0, 1.0)}
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {"shape": ("round", "square")}

    name: str
    count: int = 3  # how many
    rate: float = 2e-6  # "fast": above 1e-5
    flip: bool = False
    shape: str = "round"
    mode: Literal["a", "b"] = "b"
    size_px: int | None = None
    folder: Path = Path("here")
    seeds: tuple[int, ...] = (1, 2)


def test_a_form_that_nobody_touched_yields_the_config_it_was_made_of():
    config = Everything("x", count=7, size_px=64, seeds=(4,))
    assert Form(config).value == config


def test_what_is_typed_arrives_in_its_field_and_type():
    form = Form(Everything)
    for name, typed in (("name", "sks"), ("count", 5), ("rate", " 1e-4 "), ("flip", True), ("shape", "square"),
                        ("mode", "a"), ("size_px", "96"), ("folder", "there"), ("seeds", "7, 8,9")):  # fmt: skip
        form.inputs[name].value = typed
    assert form.value == Everything("sks", 5, 1e-4, True, "square", "a", 96, Path("there"), (7, 8, 9))
    form.inputs["size_px"].value = ""
    assert form.value.size_px is None


def test_choices_come_as_a_list_and_not_as_free_text():
    inputs = Form(Everything).inputs
    assert [label for label, _ in inputs["shape"].options] == ["round", "square"]
    assert inputs["mode"].value == "b"


@pytest.mark.parametrize(
    ("name", "typed", "says"),
    [
        ("rate", "quick", "rate is 'quick'; type a number such as 0.000002 or 2e-6"),
        ("rate", "3", "rate is 3.0; type a number from 0 to 1"),
        ("count", 11, "count is 11; type a whole number from 0 to 10"),
        ("size_px", "wide", "size_px is 'wide'; type a number such as 100"),
    ],
)
def test_a_wrong_value_is_said_beside_its_own_field_and_nowhere_else(name, typed, says):
    form = Form(Everything("x"))
    form.inputs[name].value = typed
    assert list(form.problems) == [name]
    assert says in form.problems[name]
    with pytest.raises(UserError, match=name):
        _ = form.value
    shown = [at for at, help_ in form._help.items() if "fsd-error" in help_.value]
    assert shown == [name]
    form.set(**{name: getattr(Everything("x"), name)})
    assert form.problems == {}


def test_several_wrong_values_are_each_said_beside_their_field():
    form = Form(Everything("x"))
    form.inputs["count"].value = -1
    form.inputs["rate"].value = "2"
    assert set(form.problems) == {"count", "rate"}


def test_help_is_the_comment_behind_the_field_also_when_it_holds_quotes():
    assert field_comments(Everything) == {
        "LIMITS": "", "CHOICES": "", "name": "", "count": "how many", "rate": '"fast": above 1e-5', "flip": "",
        "shape": "", "mode": "", "size_px": "", "folder": "", "seeds": "",
    }  # fmt: skip
    assert "0 = frozen" in Form(DreamBoothConfig("a cat"))._help["text_encoder_steps"].value


def test_markup_in_a_value_is_shown_as_text():
    form = Form(Everything("x"))
    form.inputs["rate"].value = "<img src=x>"
    assert "<img" not in form._help["rate"].value
    assert "&lt;img" in form._help["rate"].value


def test_the_fields_behind_the_button_appear_when_it_is_pressed():
    form = Form(Everything("x"), first=("name", "count"))
    assert form.more_button.description == "Show 7 more choices"
    assert form._more.layout.display == "none"
    form.more_button.click()
    assert form._more.layout.display == "flex"
    form.more_button.click()
    assert form._more.layout.display == "none"


def test_auto_leaves_the_recipe_and_zero_is_a_choice():
    config = DreamBoothConfig("a photo of sks cat", unet_steps=300, text_encoder_steps=60)
    form = recipe_form(config, unet_steps=AUTO, text_encoder_steps=0, seed=7)
    assert (form.value.unet_steps, form.value.text_encoder_steps, form.value.seed) == (300, 0, 7)


def test_labels_speak_the_projects_words():
    assert label_of("unet_steps") == "U-Net steps"
    assert label_of("resolution_px") == "Resolution (px)"
    assert label_of("seed") == "Seed"
