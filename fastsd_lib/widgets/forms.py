"""A form for any config dataclass: what Colab draws from `#@param`, everywhere else.

Labels are the field names, help is the comment behind the field in its source, and the widget follows the
type: bool a tick, int a number, Literal or CHOICES a list, anything else a line of text. What is wrong is
said by `core.config.check_config`, beside the field that it speaks of.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Generic, TypeVar

from fastsd_lib.core.config import check_config
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.field_words import field_comments, label_of
from fastsd_lib.widgets import style

Config = TypeVar("Config")

WHERE = "this form"
USUAL_CHOICES = (
    "instance_prompt",
    "class_prompt",
    "class_images",
    "text_encoder_steps",
    "unet_steps",
    "unet_learning_rate",
    "resolution_px",
    "sample_every_steps",
    "seed",
)
AUTO = -1  # in a `#@param`: the number that the recipe has; 0 is a choice of its own


class Form(style.Shown, Generic[Config]):
    """Shows one config; `value` is the dataclass as filled in, or a UserError that names the wrong field."""

    def __init__(
        self,
        config: Config | type[Config],
        *,
        title: str = "Choices",
        first: Sequence[str] = (),
        changes: Mapping[str, Any] | None = None,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        """`config` is an instance with the values to begin with, or the dataclass itself.

        Fields named in `first` are shown; the rest waits behind a button. Empty shows all of them. `changes`
        fill in fields at the start; AUTO and "" leave a field as `config` has it.
        """
        self._type = typing.cast("type[Config]", config if isinstance(config, type) else type(config))
        self._on_change = on_change
        start = {} if isinstance(config, type) else {f.name: getattr(config, f.name) for f in _fields(config)}
        hints, comments = typing.get_type_hints(self._type), field_comments(self._type)
        self.inputs: dict[str, Any] = {}
        self._kinds: dict[str, Any] = {}
        self._help: dict[str, Any] = {}
        self._comments = comments
        rows = {}
        for field in _fields(self._type):
            self._kinds[field.name] = self._kind(field.name, hints[field.name])
            self.inputs[field.name] = _input(self._kinds[field.name], start.get(field.name, _default(field)))
            self.inputs[field.name].observe(self._changed, names="value")
            self._help[field.name] = style.html(min_width="0px")
            rows[field.name] = self._row(field.name)
        self._elsewhere = style.html()
        shown = [rows[name] for name in first or rows]
        hidden = [row for name, row in rows.items() if first and name not in first]
        self._more = style.column(*hidden, display="none")
        self.more_button = style.button(f"Show {len(hidden)} more choices", self._toggle_more)
        if not hidden:
            self.more_button.layout.display = "none"
        more = style.row(self.more_button)
        self.box = style.card(title, style.column(*shown), more, self._more, self._elsewhere)
        self._check()
        self.set(**{name: value for name, value in (changes or {}).items() if value not in (AUTO, "")})

    @property
    def value(self) -> Config:
        """The filled-in dataclass. Raises UserError naming the field that is wrong."""
        problems, made = self._read()
        if problems:
            error = next(iter(problems.values()))
            raise UserError(error.message, fix=error.fix)
        return typing.cast(Config, made)

    @property
    def problems(self) -> dict[str, str]:
        """Field name ("" for the form as a whole) -> what is wrong with it."""
        return {name: error.message for name, error in self._read()[0].items()}

    def set(self, **values: Any) -> None:
        """Fill in some fields, as a preset does."""
        for name, value in values.items():
            self.inputs[name].value = _shown(self._kinds[name], value)

    def _kind(self, name: str, hint: Any) -> Any:
        choices = getattr(self._type, "CHOICES", {}).get(name)
        return typing.Literal[tuple(choices)] if choices else hint  # type: ignore[valid-type]

    def _row(self, name: str) -> Any:
        import ipywidgets

        label = style.html(f'<label class="fsd-label">{escape(label_of(name))}</label>')
        columns = "minmax(150px, 200px) minmax(150px, 270px) minmax(0, 1fr)"
        layout = ipywidgets.Layout(grid_template_columns=columns, grid_gap="4px 14px", align_items="center")
        return ipywidgets.GridBox([label, self.inputs[name], self._help[name]], layout=layout)

    def _toggle_more(self) -> None:
        hide = self._more.layout.display != "none"
        self._more.layout.display = "none" if hide else "flex"
        count = len(self._more.children)
        self.more_button.description = f"Show {count} more choices" if hide else "Show fewer choices"

    def _changed(self, _: Any) -> None:
        self._check()
        if self._on_change:
            self._on_change()

    def _check(self) -> None:
        problems = self._read()[0]
        for name, place in self._help.items():
            error = problems.get(name)
            comment = self._comments.get(name, "")
            place.value = (
                f'<span class="fsd-error">{escape(error.message)}</span>'
                if error
                else f'<span class="fsd-help">{escape(comment)}</span>'
            )
        self._elsewhere.value = style.failure(problems[""]) if "" in problems else ""
        self._elsewhere.layout.display = "" if self._elsewhere.value else "none"

    def _read(self) -> tuple[dict[str, UserError], Config | None]:
        problems: dict[str, UserError] = {}
        values = {}
        for name, widget in self.inputs.items():
            try:
                values[name] = _parsed(self._kinds[name], widget.value, name)
            except UserError as error:
                problems[name] = error
        if problems:
            return problems, None
        try:
            made = self._type(**values)
            check_config(made, where=WHERE)
            return {}, made
        except UserError as error:
            return _by_field(error, self.inputs), None


def _by_field(error: UserError, names: Mapping[str, Any]) -> dict[str, UserError]:
    """One error that lists several faults, taken apart by the field each line names; "" = none of them."""
    lines = error.message.splitlines()
    if len(lines) > 1:  # the first line only counts the others
        lines = [line.strip().removeprefix("- ") for line in lines[1:]]
    found: dict[str, UserError] = {}
    for line in lines:
        text = line.removeprefix(f"{WHERE}: ")
        found.setdefault(_named_in(text, names), UserError(text, fix=error.fix))
    return found


def recipe_form(config: Config, **changes: Any) -> Form[Config]:
    """The form of a DreamBoothConfig, the choices that most runs need first; `changes` as in Form."""
    return Form(config, title="Recipe", first=USUAL_CHOICES, changes=changes)


def _fields(config: Any) -> list[Any]:
    return [field for field in dataclasses.fields(config) if field.init]


def _default(field: Any) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _named_in(message: str, names: Mapping[str, Any]) -> str:
    """The field that an error speaks of first; "" = none of them."""
    found = [(match.start(), name) for name in names if (match := re.search(rf"\b{name}\b", message))]
    return min(found, default=(0, ""))[1]


def _split_optional(kind: Any) -> tuple[Any, bool]:
    """`int | None` -> (int, True)."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        rest = [part for part in typing.get_args(kind) if part is not type(None)]
        return rest[0], len(rest) < len(typing.get_args(kind))
    return kind, False


def _input(kind: Any, value: Any) -> Any:
    import ipywidgets

    plain, optional = _split_optional(kind)
    layout = ipywidgets.Layout(width="auto")
    if plain is bool and not optional:
        return ipywidgets.Checkbox(value=bool(value), indent=False, layout=layout)
    if typing.get_origin(plain) is typing.Literal:
        options = [("(none)", None)] if optional else []
        options += [(str(choice), choice) for choice in typing.get_args(plain)]
        chosen = value if value in [choice for _, choice in options] else options[0][1]
        return ipywidgets.Dropdown(options=options, value=chosen, layout=layout)
    if plain is int and not optional:
        return ipywidgets.IntText(value=value or 0, layout=layout)
    return ipywidgets.Text(value=_shown(kind, value), continuous_update=True, layout=layout)


def _shown(kind: Any, value: Any) -> Any:
    """A field's value as its input shows it: 2e-06 stays short, sequences become "a, b"."""
    plain, optional = _split_optional(kind)
    if (plain in (bool, int) and not optional) or typing.get_origin(plain) is typing.Literal:
        return value
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _parsed(kind: Any, value: Any, name: str) -> Any:
    plain, optional = _split_optional(kind)
    if not isinstance(value, str) or typing.get_origin(plain) is typing.Literal:
        return value
    text = value.strip()
    if optional and not text:
        return None
    if plain in (int, float):
        return _number(plain, text, name)
    if typing.get_origin(plain) in (tuple, list):
        inner = (typing.get_args(plain) or (str,))[0]
        parts = [_parsed(inner, part, name) for part in text.split(",") if part.strip()]
        return typing.get_origin(plain)(parts)
    return Path(text) if plain is Path else value


def _number(kind: type, text: str, name: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        example = "0.000002 or 2e-6" if kind is float else "100"
        raise UserError(
            f"{name} is {text!r}; type a number such as {example}.", fix="mend it in the form."
        ) from None
