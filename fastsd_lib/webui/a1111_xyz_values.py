"""The values of an axis as A1111's users write them: "1, 2, 3", "1-5", "1-10 (+2)", "0-1 [5]", quoted like CSV."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Iterable
from typing import Literal

Kind = Literal["whole", "number", "text", "order"]
Value = int | float | str | tuple[str, ...]

MOST_VALUES = 1000  # of one axis
MOST_ORDERED = 6  # words of a prompt whose order is changed: 720 orders
_NUMBER = r"([+-]?\s*\d*\.?\d+|[+-]?\s*\d+\.)"
_RANGE = re.compile(rf"{_NUMBER}\s*-\s*{_NUMBER}\s*(?:\(\s*{_NUMBER}\s*\)|\[\s*(\d{{1,9}})\s*\])?")


class BadValue(ValueError):
    """`args`: the value as it was written, and what would be one."""


def split_list(text: str) -> list[str]:
    """The parts of a list: separated by commas or lines, each in double quotes where it holds a comma."""
    try:
        rows = csv.reader(io.StringIO(text), skipinitialspace=True, strict=True)
        return [part.strip() for part in itertools.chain.from_iterable(rows)]
    except csv.Error:
        raise BadValue(text, "close every quote") from None


def joined_list(values: Iterable[str]) -> str:
    """The text that `split_list` takes apart again."""
    text = io.StringIO()
    csv.writer(text).writerow(list(values))
    return text.getvalue().strip()


def values_of(parts: Iterable[str], kind: Kind) -> list[Value]:
    """What the parts of a list mean. BadValue names the part that is none.

    "1-5" is 1, 2, 3, 4, 5; "1-10 (+3)" goes by threes and never beyond 10; "0-1 [5]" is five values, evenly spaced.
    """
    if kind == "text":
        return _few(list(parts))
    if kind == "order":
        return _orders([part for part in parts if part])
    values: list[Value] = []
    for part in parts:
        if part:
            values += _numbers(part, whole=kind == "whole")
            _few(values)
    return values


def _numbers(part: str, whole: bool) -> list[int] | list[float]:
    found = _RANGE.fullmatch(part)
    if found is None:
        return [_number(part, part, whole)]
    first, last = (_number(found[at], part, whole) for at in (1, 2))
    if found[4]:
        count = int(found[4])
        if not 1 <= count <= MOST_VALUES:
            raise BadValue(part, f"write 1 to {MOST_VALUES} between the brackets")
        step = (last - first) / max(count - 1, 1)
    else:
        step = _number(found[3], part, whole) if found[3] else 1 if last >= first else -1
        if step == 0 or (last - first) / step < 0:
            raise BadValue(part, f"write a step that leads from {first:g} to {last:g}")
        count = min(math.floor((last - first) / step + 1e-9), MOST_VALUES) + 1
    numbers = [first + step * number for number in range(count)]
    return [int(one) for one in numbers] if whole else [round(one, 10) for one in numbers]


def _number(text: str, part: str, whole: bool) -> int | float:
    bare = "".join(text.split())
    wanted = "write whole numbers, such as 1, 2, 5-10" if whole else "write numbers, such as 1, 2.5, 5-10"
    try:
        number = int(bare) if whole else float(bare)
    except ValueError:
        raise BadValue(part, wanted) from None
    if not abs(number) <= 1e15:  # NaN is not, either
        raise BadValue(part, wanted)
    return number


def _orders(words: list[str]) -> list[Value]:
    if len(words) > MOST_ORDERED:
        raise BadValue(f"{len(words)} words", f"change the order of at most {MOST_ORDERED}")
    return list(itertools.permutations(words)) if words else []


def _few(values: list[Value]) -> list[Value]:
    if len(values) > MOST_VALUES:
        raise BadValue(f"more than {MOST_VALUES} values", "write fewer")
    return values
