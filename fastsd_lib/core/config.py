"""Config dataclasses from YAML and `key=value` words, strictly: what is wrong is said field by field.

A dataclass may declare, both as ClassVar:
    LIMITS  = {"unet_steps": (0, 1_000_000)}            smallest and largest value, both allowed
    CHOICES = {"schedule": ("constant", "linear")}      the only values allowed
and a method `conflicts() -> list[str]` for what only several fields together can tell.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import write_text
from fastsd_lib.core.text import escaped

_FIX_YAML = "write one `name: value` on each line."
MAX_BYTES = 64 * 1024  # a recipe is a page of text; more is a mistake or an attack
Config = TypeVar("Config")
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "nothing"}


def load_config(cls: type[Config], path: Path, overrides: Iterable[str] = ()) -> Config:
    """The dataclass `cls` from a YAML file and `name=value` words; one UserError lists all that is wrong.

    What the words change is changed before anything is checked: a recipe may leave to them what it lacks.
    """
    values = read_yaml(path)
    if isinstance(values, Mapping):
        values = {**values, **_parse_overrides(cls, overrides)}
    return config_from_dict(cls, values, where=path.name)


def save_config(config: Any, path: Path) -> None:
    """Write a config dataclass so that `load_config` yields an equal one."""
    import yaml

    theirs, ours = yaml.SafeDumper.yaml_implicit_resolvers, _strict_loader().yaml_implicit_resolvers

    class Dumper(yaml.SafeDumper):
        """Quotes every text that our loader, or one of YAML 1.1, would take for something else."""

        yaml_implicit_resolvers: ClassVar[dict] = {
            first: theirs.get(first, []) + ours.get(first, []) for first in theirs.keys() | ours.keys()
        }

    text = yaml.dump(to_dict(config), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)
    write_text(path, text)


def to_dict(config: Any) -> dict[str, Any]:
    """The fields as plain YAML values: tuples become lists, paths text."""
    return {key: _plain(value) for key, value in dataclasses.asdict(config).items()}


def config_from_dict(cls: type[Config], values: Mapping[str, Any], where: str = "the settings") -> Config:
    """The dataclass `cls` from a mapping of field names; or one UserError that lists all that is wrong."""
    if not isinstance(values, Mapping):
        raise UserError(
            f"{where} must be `name: value` lines, found {_shown(values)}.",
            fix="see sessions_template/recipe.yaml.",
        )
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    problems = [_unknown(str(key), fields) for key in values if key not in fields]
    accepted = {}
    for name, field in fields.items():
        if name in values:
            accepted[name], problem = _checked(cls, name, hints[name], values[name])
            problems += [problem] if problem else []
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{name} is missing: add {name}: {_example(cls, name, hints[name])}")
    _raise_if_any(problems, where)
    config = cls(**accepted)
    check_config(config, where)
    return config


def check_config(config: Any, where: str = "the settings") -> None:
    """Raise one UserError listing every field out of its range and every conflict of a built config."""
    cls = type(config)
    hints = typing.get_type_hints(cls)
    problems = [
        problem
        for field in dataclasses.fields(cls)
        if (problem := _checked(cls, field.name, hints[field.name], getattr(config, field.name))[1])
    ]
    if not problems and hasattr(config, "conflicts"):
        problems = config.conflicts()
    _raise_if_any(problems, where)


def apply_overrides(config: Config, words: Iterable[str]) -> Config:
    """A copy of `config` with `["unet_steps=200", "flip=true"]` applied; the last of two equal names wins."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    values |= _parse_overrides(type(config), words)
    return config_from_dict(type(config), values, where="the command line")


def _parse_overrides(cls: type, words: Iterable[str]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls)}
    values = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise UserError(
                f"{escaped(word)!r} is not a setting.", fix="type name=value, for example unet_steps=200."
            )
        if name not in fields:
            raise UserError(
                f"{_unknown(name, fields)}.", fix=f"the settings are: {', '.join(sorted(fields))}."
            )
        values[name] = text if str in _alternatives(hints[name]) else _parse_yaml(text, f"{name}={text}")
    return values


def read_yaml(
    path: Path, what: str = "recipe", example: str = "copy sessions_template/recipe.yaml"
) -> dict[str, Any]:
    """The mapping in a YAML file: safe types only, no duplicate keys, no anchors, at most 64 kB.

    `yes`, `no`, `on` and dates stay text and `2e-6` is a number: YAML 1.1 would surprise here.
    `what` the file is, and where an example of it is found, are for the sentences of errors.
    """
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.", fix=f"check the path, or {example}.") from None
    except OSError as error:
        reason = "it is a folder" if path.is_dir() else error.strerror
        raise UserError(f"{path} cannot be read: {reason}.", fix=f"name a {what} file.") from None
    if len(data) > MAX_BYTES:
        raise UserError(
            f"{path} is larger than {MAX_BYTES // 1024} kB.",
            fix=f"is this a {what}? It should be a page of text.",
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text.", fix="save it again as UTF-8 in your editor.") from None
    values = _parse_yaml(text, path.name)
    return {} if values is None else values


def _parse_yaml(text: str, where: str) -> Any:
    import yaml

    try:
        return yaml.load(text, Loader=_strict_loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(
            f"{where} is not valid YAML{place}: {escaped(problem)}.",
            fix=_FIX_YAML,
        ) from None
    except (RecursionError, ValueError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{where} cannot be read: {escaped(reason)}.", fix=_FIX_YAML) from None


def _strict_loader() -> type:
    import re

    import yaml

    class StrictLoader(yaml.SafeLoader):
        yaml_implicit_resolvers: ClassVar[dict] = {}  # its own, far smaller set

        def compose_node(self, parent, index):
            if self.check_event(yaml.AliasEvent):
                raise yaml.MarkedYAMLError(
                    problem="anchors and aliases are not allowed", problem_mark=self.peek_event().start_mark
                )
            return super().compose_node(parent, index)

        def construct_mapping(self, node, deep=False):
            seen = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise yaml.MarkedYAMLError(problem="a name must be one word", problem_mark=key.start_mark)
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"{key.value!r} is given twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    exponent, special = r"[eE][-+]?\d+", r"\.(?:inf|Inf|INF|nan|NaN|NAN)"
    number = rf"^[-+]?(?:(?:\d[\d_]*\.\d*|\.\d+)(?:{exponent})?|\d[\d_]*{exponent}|{special})$"
    add = StrictLoader.add_implicit_resolver
    add("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
    add("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
    add("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789"))
    add("tag:yaml.org,2002:float", re.compile(number), list("-+0123456789."))
    return StrictLoader


def _checked(cls: type, name: str, hint: Any, value: Any) -> tuple[Any, str]:
    """(the value as its field's type, "") or (None, what is wrong with it)."""
    wanted = _wanted(cls, name, hint)
    kinds = _alternatives(hint)
    if type(value) is int and float in kinds and int not in kinds:
        try:
            value = float(value)
        except OverflowError:
            return None, f"{name} is a number too large; {wanted}"
    if isinstance(value, float) and not math.isfinite(value):
        return None, f"{name} is {value}; {wanted}"
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if not isinstance(value, (list, tuple)) or any(type(part) is not item for part in value):
            return None, f"{name} is {_shown(value)}; {wanted}"
        return tuple(value), ""
    if typing.get_origin(hint) is typing.Literal:
        return (
            (value, "") if value in typing.get_args(hint) else (None, f"{name} is {_shown(value)}; {wanted}")
        )
    if Path in kinds and isinstance(value, str):
        value = Path(value)
    if not any(isinstance(value, kind) and not (kind is int and isinstance(value, bool)) for kind in kinds):
        return None, f"{name} is {_shown(value)}; {wanted}"
    low, high = getattr(cls, "LIMITS", {}).get(name, (-math.inf, math.inf))
    if isinstance(value, (int, float)) and not low <= value <= high:
        return None, f"{name} is {_shown(value)}; {wanted}"
    choices = getattr(cls, "CHOICES", {}).get(name, ())
    if choices and value not in choices:
        near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], 1)
        return None, f"{name} is {_shown(value)}; {wanted}" + (f" (did you mean {near[0]}?)" if near else "")
    return value, ""


def _wanted(cls: type, name: str, hint: Any) -> str:
    """ "type a whole number from 0 to 1000000, such as unet_steps: 1500"."""
    choices = getattr(cls, "CHOICES", {}).get(name) or (
        typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    )
    if choices:
        return f"type one of {', '.join(str(choice) for choice in choices)}"
    if typing.get_origin(hint) is tuple:
        return (
            f"type a list such as {name}: [{'1, 2' if typing.get_args(hint)[0] in (int, float) else 'a, b'}]"
        )
    kind = " or ".join(_KINDS.get(kind, kind.__name__) for kind in _alternatives(hint))
    limits = getattr(cls, "LIMITS", {}).get(name)
    range_ = f" from {limits[0]:.15g} to {limits[1]:.15g}" if limits else ""
    return f"type {kind}{range_}, such as {name}: {_example(cls, name, hint)}"


def _example(cls: type, name: str, hint: Any) -> str:
    field = {field.name: field for field in dataclasses.fields(cls)}[name]
    default = field.default
    if default in (dataclasses.MISSING, None, ""):
        kinds = _alternatives(hint)
        return "some words" if str in kinds or Path in kinds else "1"
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """(float, NoneType) of `float | None`; (int,) of `int`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _unknown(key: str, fields: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(fields), 1, cutoff=0.5)
    return f"{escaped(key[:60])} is not a setting" + (f" (did you mean {near[0]}?)" if near else "")


def _shown(value: Any) -> str:
    """A value as found: text in quotes, so that "10" is seen to be text."""
    if isinstance(value, str):
        short = value if len(value) <= 40 else f"{value[:37]}..."
        return f'the text "{escaped(short)}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, Mapping):
        return "a group of settings"
    return "nothing" if value is None else f"{str(value)[:40]}"


def _raise_if_any(problems: list[str], where: str) -> None:
    if not problems:
        return
    fix = "mend it and run again." if len(problems) == 1 else "mend these and run again."
    if len(problems) == 1:
        raise UserError(f"{where}: {problems[0]}.", fix=fix)
    raise UserError(
        f"{where}: {len(problems)} problems:\n" + "\n".join(f"  - {line}" for line in problems), fix=fix
    )


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return str(value) if isinstance(value, Path) else value
