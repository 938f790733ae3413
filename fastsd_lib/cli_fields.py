"""Options made of a config dataclass: its names with dashes, its defaults, and its comments as help."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from fastsd_lib.core.config import check_config
from fastsd_lib.core.field_words import field_comments

Config = TypeVar("Config")


def add_fields(parser: Any, config: type, only: Collection[str] = (), leave: Collection[str] = ()) -> None:
    """An option for each field of `config`, or for those in `only`; those in `leave` get none."""
    hints, comments = typing.get_type_hints(config), field_comments(config)
    choices = getattr(config, "CHOICES", {})
    for field in dataclasses.fields(config):
        if (only and field.name not in only) or field.name in leave:
            continue
        words: dict[str, Any] = {"dest": field.name, "default": field.default}
        shown = f"{field.default:g}" if isinstance(field.default, float) else field.default
        usual = f"default: {shown}" if field.default not in ("", None) else ""
        words["help"] = "; ".join(part for part in (comments.get(field.name, ""), usual) if part).replace(
            "%", "%%"
        )
        kind = _plain(hints[field.name])
        if kind is bool:
            words["action"] = argparse.BooleanOptionalAction if field.default else "store_true"
        elif field.name in choices or typing.get_origin(kind) is typing.Literal:
            words["choices"] = choices.get(field.name) or typing.get_args(kind)
            words["metavar"] = "|".join(str(choice) for choice in words["choices"])
        else:
            words["type"] = kind if kind in (int, float, Path) else str
            words["metavar"] = {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")
        parser.add_argument(f"--{field.name.replace('_', '-')}", **words)


def config_of(options: argparse.Namespace, config: type[Config], **more: Any) -> Config:
    """The config that was asked for, checked; UserError lists what is out of range."""
    names = {field.name for field in dataclasses.fields(typing.cast(Any, config)) if field.init}
    given = {name: value for name, value in vars(options).items() if name in names}
    made = config(**{**given, **more})
    check_config(made, "the command line")
    return made


def _plain(hint: Any) -> Any:
    """`int` of `int | None`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint
