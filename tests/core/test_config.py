from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fastsd_lib.core.config import (
    apply_overrides,
    check_config,
    config_from_dict,
    load_config,
    read_yaml,
    save_config,
    to_dict,
)
from fastsd_lib.core.errors import UserError
from fastsd_lib.training.config import DreamBoothConfig


@dataclass(frozen=True)
class Oven:
    """A config of its own, with one field of every kind."""

    LIMITS: ClassVar[dict] = {"minutes": (1, 60), "heat": (0.0, 300.0)}
    CHOICES: ClassVar[dict] = {"shelf": ("top", "middle", "bottom")}

    dish: str
    minutes: int = 20
    heat: float = 180.0
    fan: bool = False
    shelf: str = "middle"
    mode: Literal["bake", "grill"] = "bake"
    spices: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    rest_s: float | None = None
    book: Path | None = None

    def conflicts(self) -> list[str]:
        return ["fan and grill do not go together"] * (self.fan and self.mode == "grill")


def refusal(text: str, tmp_path: Path, cls: type = Oven) -> UserError:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_config(cls, path)
    assert error.value.fix
    return error.value


def load(text: str, tmp_path: Path) -> Oven:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(Oven, path)


def test_every_kind_of_field_is_read(tmp_path):
    text = """
    dish: pie        # a comment
    minutes: 1_0
    heat: 2e2
    fan: true
    shelf: top
    mode: grill
    spices: [salt, pepper]
    weights: [0.5]
    rest_s: 30
    book: a/b.txt
    """
    with pytest.raises(UserError, match="fan and grill"):
        load(text, tmp_path)
    oven = load(text.replace("fan: true", "fan: false"), tmp_path)
    assert oven == Oven(
        "pie", 10, 200.0, False, "top", "grill", ("salt", "pepper"), (0.5,), 30.0, Path("a/b.txt")
    )
    assert type(oven.rest_s) is float


def test_words_that_yaml_would_turn_into_something_else_stay_words(tmp_path):
    assert [load(f"dish: {word}", tmp_path).dish for word in ("no", "on", "2001-01-01", "1:30", "0x1F", "=")] == [
        "no", "on", "2001-01-01", "1:30", "0x1F", "=",
    ]  # fmt: skip


@pytest.mark.parametrize("number", ["2e-6", "2E-6", "2.0e-6", "0.000002", "+2e-6", "2.e-6"])
def test_every_way_to_write_a_small_number_is_a_number(tmp_path, number):
    assert load(f"dish: pie\nheat: {number}", tmp_path).heat == 2e-6


def test_bom_and_windows_line_ends_do_not_matter(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbfdish: pie\r\nminutes: 7\r\n")
    assert load_config(Oven, tmp_path / "r.yaml") == Oven("pie", 7)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('minutes: "10"', 'minutes is the text "10"; type a whole number from 1 to 60, such as minutes: 20'),
        ("minutes: true", "minutes is true; type a whole number"),
        ("minutes: 2.5", "minutes is 2.5; type a whole number"),
        ("minutes: -1", "minutes is -1; type a whole number from 1 to 60"),
        ("minutes: 61", "minutes is 61"),
        ("minutes:", "minutes is nothing"),
        ("minutes: [1]", "minutes is a list"),
        ("minutes: {a: 1}", "minutes is a group of settings"),
        ("heat: .nan", "heat is nan; type a number from 0 to 300, such as heat: 180"),
        ("heat: .inf", "heat is inf"),
        ("heat: 1e999", "heat is inf"),
        ("heat: false", "heat is false"),
        ("heat: " + "9" * 400, "heat is a number too large"),
        ("fan: yes", 'fan is the text "yes"; type true or false, such as fan: false'),
        ("fan: 1", "fan is 1"),
        ("shelf: botom", 'shelf is the text "botom"; type one of top, middle, bottom (did you mean bottom?)'),
        ("mode: fry", "type one of bake, grill"),
        ("spices: salt", 'spices is the text "salt"; type a list such as spices: [a, b]'),
        ("spices: [1]", "spices is a list"),
        ("minuts: 3", "minuts is not a setting (did you mean minutes?)"),
        ("zzz: 3", "zzz is not a setting."),
        ("1: 3", "1 is not a setting"),
    ],
)
def test_a_wrong_value_is_named_with_what_to_type(tmp_path, line, words):
    error = refusal(f"dish: pie\n{line}\n", tmp_path)
    assert words in error.message
    assert error.message.startswith("recipe.yaml")


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    error = refusal("minuts: 3\nminutes: 99\nfan: 3\n", tmp_path)
    assert error.message.startswith("recipe.yaml: 4 problems:")
    assert [line.split()[1] for line in error.message.splitlines()[1:]] == [
        "minuts",
        "dish",
        "minutes",
        "fan",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dish: a\ndish: b", "'dish' is given twice"),
        ("dish: !!python/object/apply:os.system [reboot]", "python/object"),
        ("dish: !mine x", "!mine"),
        ("dish: &a x\nshelf: *a", "anchors and aliases are not allowed"),
        ("a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]", "anchors and aliases are not allowed"),
        ("dish: {", "not valid YAML at line"),
        ("\tdish: a", "not valid YAML at line 1"),
        ("? [a]\n: 1", "a name must be one word"),
        ("- dish", "must be `name: value` lines, found a list"),
        ("just words", "must be `name: value` lines"),
        ("dish: a\n---\ndish: b", "not valid YAML"),
        ("dish: \x07", "not valid YAML"),
        ("[" * 1200, "too deeply nested"),
        ("minutes: " + "9" * 5000, "cannot be read"),
        ("dish: " + "x" * 70_000, "larger than 64 kB"),
    ],
    ids=lambda value: value[:18] if isinstance(value, str) else None,
)
def test_yaml_that_is_broken_or_plays_tricks_is_refused(tmp_path, text, words):
    assert words in refusal(text, tmp_path).message


def test_a_missing_or_binary_file_is_a_clear_line(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        load_config(Oven, tmp_path / "nothing.yaml")
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00dish")
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_yaml(tmp_path / "r.yaml")
    with pytest.raises(UserError, match="it is a folder"):
        load_config(Oven, tmp_path)


def test_an_empty_file_says_what_is_missing(tmp_path):
    assert "dish is missing: add dish: some words" in refusal("", tmp_path).message


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40)
ovens = st.builds(
    Oven,
    dish=words
    | st.sampled_from(["no", "null", "1e5", "~", "true", "- a", "#", "a: b", "'", '"', " x ", "2001-01-01"]),
    minutes=st.integers(1, 60),
    heat=st.floats(0, 300, allow_nan=False),
    shelf=st.sampled_from(Oven.CHOICES["shelf"]),
    spices=st.lists(words, max_size=3).map(tuple),
    weights=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3).map(tuple),
    rest_s=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)


@given(ovens)
def test_what_is_saved_is_loaded_equal(tmp_path_factory, oven):
    path = tmp_path_factory.mktemp("config") / "recipe.yaml"
    save_config(oven, path)
    assert load_config(Oven, path) == oven
    assert (
        yaml.safe_load(path.read_text(encoding="utf-8"))["dish"] == oven.dish
    )  # a stranger's YAML 1.1 reader
    assert config_from_dict(Oven, to_dict(oven)) == oven


@given(st.dictionaries(st.sampled_from([field.name for field in dataclasses.fields(Oven)]) | words, st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words, lambda inner: st.lists(inner, max_size=3)
), max_size=6))  # fmt: skip
def test_any_values_are_a_config_or_a_user_error(values):
    try:
        config = config_from_dict(Oven, values)
    except UserError as error:
        assert error.message and error.fix
    else:
        assert 1 <= config.minutes <= 60 and math.isfinite(config.heat)


@given(st.text(max_size=80))
def test_any_text_is_a_config_or_a_user_error(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("config") / "recipe.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    with pytest.raises(UserError):
        load_config(DreamBoothConfig, path)


def test_words_of_the_command_line_change_a_copy():
    oven = Oven("pie")
    changed = apply_overrides(
        oven, ["minutes=5", "fan=true", "dish=no: #1", "spices=[salt]", "rest-s=2", "minutes=6"]
    )
    assert changed == Oven("no: #1", minutes=6, fan=True, spices=("salt",), rest_s=2.0)
    assert oven == Oven("pie")
    assert apply_overrides(changed, ["rest_s=null"]).rest_s is None


@pytest.mark.parametrize(
    ("word", "message", "fix"),
    [
        ("minutes", "'minutes' is not a setting", "name=value"),
        ("minuts=3", "minuts is not a setting (did you mean minutes?)", "dish, fan, heat"),
        ("minutes=", "minutes is nothing; type a whole number", "mend it"),
        ("minutes=abc", 'minutes is the text "abc"', "mend it"),
        ("minutes=999", "minutes is 999; type a whole number from 1 to 60", "mend it"),
        ("spices=[a", "spices=[a is not valid YAML", "name: value"),
    ],
)
def test_a_wrong_word_of_the_command_line_is_named(word, message, fix):
    with pytest.raises(UserError) as error:
        apply_overrides(Oven("pie"), [word])
    assert message in error.value.message and fix in error.value.fix


def test_a_config_that_was_built_by_hand_is_checked_like_one_from_a_file():
    check_config(Oven("pie"))
    with pytest.raises(UserError, match="minutes is 99"):
        check_config(Oven("pie", minutes=99))


def test_all_conflicts_of_a_run_are_told_in_one_message():
    with pytest.raises(UserError) as error:
        config_from_dict(
            DreamBoothConfig,
            {"instance_prompt": " ", "class_prompt": "cat", "class_images": 0, "unet_steps": 0,
             "text_encoder_steps": 0, "resolution_px": 65},
        )  # fmt: skip
    assert error.value.message.startswith("the settings: 4 problems:")
    for part in (
        "instance_prompt is empty",
        "class_images is 0",
        "both 0",
        "65 is no multiple of 8: type 64",
    ):
        assert part in error.value.message


def test_every_limit_and_choice_of_a_run_is_of_a_field_and_holds_its_default():
    fields = {field.name: field for field in dataclasses.fields(DreamBoothConfig)}
    numbers = {name for name, field in fields.items() if field.type in ("int", "float")}
    assert set(DreamBoothConfig.LIMITS) == numbers
    for name, (low, high) in DreamBoothConfig.LIMITS.items():
        assert low <= fields[name].default <= high
    for name, choices in DreamBoothConfig.CHOICES.items():
        assert fields[name].default in choices
