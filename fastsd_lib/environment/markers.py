"""Environment markers (PEP 508) and version comparison, in the little that lock files use.

Written here because the installer runs before `packaging` exists.
"""

from __future__ import annotations

import os
import platform
import re
import sys

TOKEN = re.compile(r"\s*(\(|\)|'[^']*'|\"[^\"]*\"|[<>=!~]=?=?|[a-z_]+)")
VERSIONED = {"python_version", "python_full_version", "implementation_version"}


def environment(python_full_version: str | None = None) -> dict[str, str]:
    """The marker variables of this machine, for another Python's version if one is given."""
    full = python_full_version or platform.python_version()
    return {
        "python_full_version": full,
        "python_version": ".".join(full.split(".")[:2]),
        "sys_platform": sys.platform,
        "platform_machine": platform.machine(),
        "platform_system": platform.system(),
        "platform_python_implementation": platform.python_implementation(),
        "implementation_name": sys.implementation.name,
        "os_name": os.name,
        "extra": "",
    }


def holds(marker: str, variables: dict[str, str]) -> bool:
    """True if `marker` ("python_full_version < '3.11' and sys_platform == 'linux'") holds; empty always does."""
    if not marker.strip():
        return True
    tokens = TOKEN.findall(marker)
    value, rest = _either(tokens, variables)
    if rest:
        raise ValueError(f"cannot read the marker {marker!r}")
    return value


def _either(tokens: list[str], variables: dict[str, str]) -> tuple[bool, list[str]]:
    value, tokens = _both(tokens, variables)
    while tokens[:1] == ["or"]:
        other, tokens = _both(tokens[1:], variables)
        value = value or other
    return value, tokens


def _both(tokens: list[str], variables: dict[str, str]) -> tuple[bool, list[str]]:
    value, tokens = _one(tokens, variables)
    while tokens[:1] == ["and"]:
        other, tokens = _one(tokens[1:], variables)
        value = value and other
    return value, tokens


def _one(tokens: list[str], variables: dict[str, str]) -> tuple[bool, list[str]]:
    if tokens[0] == "(":
        value, rest = _either(tokens[1:], variables)
        return value, rest[1:]
    left, operator, *rest = tokens
    if operator == "not":  # "not in"
        operator, rest = "not in", rest[1:]
    right, *rest = rest
    versioned = left in VERSIONED or right in VERSIONED
    return _compare(_text(left, variables), operator, _text(right, variables), versioned), rest


def _text(token: str, variables: dict[str, str]) -> str:
    return token[1:-1] if token[0] in "'\"" else variables[token]


def _compare(left: str, operator: str, right: str, versioned: bool) -> bool:
    if operator == "in":
        return left in right
    if operator == "not in":
        return left not in right
    if versioned:
        return satisfies(left, operator + right)
    return {"==": left == right, "!=": left != right}[operator]


def version_key(version: str) -> tuple[tuple[int, ...], tuple[int, int]]:
    """A sortable form: the release numbers without trailing zeros, then dev < a < b < rc < final < post.

    A local label ("+cu128") does not count: 2.11.0+cu128 satisfies >=2.11 and ==2.11.0.
    """
    public = version.strip().lower().lstrip("v").split("+")[0]
    found = re.match(
        r"(?:\d+!)?(\d+(?:\.\d+)*)(?:[._-]?(dev|a|alpha|b|beta|rc|c|post|pre)[._-]?(\d*))?", public
    )
    if found is None:
        return (0,), (0, 0)
    release = [int(part) for part in found[1].split(".")]
    while len(release) > 1 and release[-1] == 0:
        release.pop()
    rank = {"dev": 0, "a": 1, "alpha": 1, "b": 2, "beta": 2, "rc": 3, "c": 3, "pre": 3, None: 4, "post": 5}
    return tuple(release), (rank[found[2]], int(found[3] or 0))


def satisfies(version: str, specifiers: str) -> bool:
    """True if `version` meets every one of ">=2.11,<3"; an empty string is always met."""
    for specifier in filter(None, (part.strip() for part in specifiers.split(","))):
        operator, wanted = re.fullmatch(r"(===|[<>=!~]=?|)\s*(.*)", specifier).groups()
        if wanted.endswith(".*"):
            if _in_series(version, wanted[:-2]) != (operator == "=="):
                return False
            continue
        have, want = version_key(version), version_key(wanted)
        if operator == "~=":
            met = have >= want and _in_series(version, wanted.rsplit(".", 1)[0])
        elif operator == "===":
            met = version == wanted
        elif operator in {"==", "!="} and "+" in wanted:  # a local label counts only when it is asked for
            met = (version == wanted) == (operator == "==")
        else:
            met = {
                "==": have == want,
                "!=": have != want,
                ">=": have >= want,
                "<=": have <= want,
                ">": have > want,
                "<": have < want,
            }[operator]
        if not met:
            return False
    return True


def _in_series(version: str, series: str) -> bool:
    """True if 3.11.7 belongs to the series 3.11."""
    wanted = tuple(int(part) for part in series.split("."))
    found = version_key(version)[0] + (0,) * len(wanted)
    return found[: len(wanted)] == wanted
