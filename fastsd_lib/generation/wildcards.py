"""__name__ and {a|b|c}: random prompts, the same ones for the same seed. A step of its own, before parsing.

    a {red|2::blue} __animal__ in {2$$ and $$snow|rain|fog}

The rules are those of the dynamic-prompts extension: "2::" makes an option twice as likely, "2$$" takes two
different ones, "1-3$$" one to three, joined by what stands before the next "$$" (", " if nothing does).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.text import escaped

DEEPEST = 20  # a wildcard in a wildcard in a ...
MOST_CHARACTERS = 100_000  # of the result, and of all that is read on the way there
MOST_LINES = 1_000_000

_NAME = re.compile(r"__([\w\-/*.+]{1,200}?)__")
_PIECES = re.compile(r"\\.|[^\\{}|\[\]]+|[{}|\[\]\\]", re.DOTALL)
_WEIGHT = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?|\.[0-9]{1,9})::")
_HOW_MANY = re.compile(r"\s*([0-9]{1,4})?(-)?([0-9]{1,4})?\$\$(?:([^$|]{0,50})\$\$)?")


@dataclass
class _Drawing:
    """One expansion: its own random numbers, and how much it has read so far."""

    wildcards: Mapping[str, Sequence[str]]
    random: Random
    unknown: list[str] = field(default_factory=list)
    read: int = 0

    def pick(self, weights: Sequence[float]) -> int:
        """An index; only `random()`, which is the same in every version of Python."""
        left = self.random.random() * sum(weights)
        for number, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return number
        return len(weights) - 1

    def count(self, text: str) -> str:
        self.read += len(text)
        if self.read > MOST_CHARACTERS:
            raise UserError(
                f"The prompt's wildcards make more than {MOST_CHARACTERS:,} characters.",
                fix="look for a wildcard that contains itself, or shorten the prompt.",
            )
        return text


def expand(
    prompt: str, seed: int, wildcards: Mapping[str, Sequence[str]] | None = None
) -> tuple[str, list[str]]:
    """The prompt with every choice made, and the names of wildcards that are not known and were left as they are.

    The same seed makes the same choices on any machine. Braces with nothing to choose from stay, as do
    unbalanced ones and what follows a backslash. UserError for wildcards that grow without end.
    """
    if "{" not in prompt and "__" not in prompt:
        return prompt, []
    drawing = _Drawing(wildcards or {}, Random(seed))
    return _expanded(prompt, drawing, 0), list(dict.fromkeys(drawing.unknown))


def _expanded(text: str, drawing: _Drawing, depth: int) -> str:
    return _named(_chosen(drawing.count(text), drawing), drawing, depth)


def _named(text: str, drawing: _Drawing, depth: int) -> str:
    def one(match: re.Match[str]) -> str:
        options = _options(match[1], drawing.wildcards)
        if not options:
            drawing.unknown.append(match[1])
            return match[0]
        if depth >= DEEPEST:
            raise UserError(
                f"The wildcard __{escaped(match[1])}__ contains itself.",
                fix=f"look through its lines; wildcards may stand in each other {DEEPEST} deep.",
            )
        return _expanded(options[drawing.pick([1.0] * len(options))], drawing, depth + 1)

    return _NAME.sub(one, text)


def _options(name: str, wildcards: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """The lines of one wildcard; with * in its name, of all that fit."""
    if "*" not in name:
        return wildcards.get(name, ())
    pattern = re.compile(".*".join(re.escape(part) for part in re.split(r"\*+", name)[:8]))
    return [line for known in sorted(wildcards) if pattern.fullmatch(known) for line in wildcards[known]]


def _chosen(text: str, drawing: _Drawing) -> str:
    """Every balanced {a|b} replaced by a choice, the innermost first; [a|b] inside is left to the prompt."""
    pieces: list[str] = []
    opened: list[tuple[str, int, list[int]]] = []  # bracket, where it stands, its bars
    for match in _PIECES.finditer(text):
        piece = match[0]
        if piece in "{[":
            opened.append((piece, len(pieces), []))
        elif piece == "|" and opened:
            opened[-1][2].append(len(pieces))
        elif piece == "]" and opened and opened[-1][0] == "[":
            opened.pop()
        elif piece == "}":
            while opened and opened[-1][0] == "[":  # never closed: a character
                _, _, bars = opened.pop()
                if opened:
                    opened[-1][2].extend(bars)
            if opened:
                _, start, bars = opened.pop()
                if bars or _HOW_MANY.match("".join(pieces[start + 1 : start + 2])):
                    edges = pairwise([start, *bars, len(pieces)])
                    piece = drawing.count(_choice(["".join(pieces[a + 1 : b]) for a, b in edges], drawing))
                    del pieces[start:]
        pieces.append(piece)
    return "".join(pieces)


def _choice(options: list[str], drawing: _Drawing) -> str:
    how_many = _HOW_MANY.match(options[0])
    least, most, joint = 1, 1, ", "
    if how_many:
        options = [options[0][how_many.end() :], *options[1:]]
        least = int(how_many[1] or 0)
        most = int(how_many[3] or len(options)) if how_many[2] else least
        joint = joint if how_many[4] is None else how_many[4]
    weights, texts = [], []
    for option in options:
        weight = _WEIGHT.match(option)
        weights.append(float(weight[1]) if weight else 1.0)
        texts.append(option[weight.end() :] if weight else option)
    least, most = min(least, most, len(texts)), min(max(least, most), len(texts))
    number = least + drawing.pick([1.0] * (most - least + 1)) if most > least else most
    picked = []
    left = list(range(len(texts)))
    for _ in range(number):
        picked.append(left.pop(drawing.pick([weights[one] for one in left])))
    return joint.join(texts[one].strip() if how_many else texts[one] for one in picked)


def read_wildcards(folder: Path) -> dict[str, list[str]]:
    """Every .txt below a folder: "animals/cats.txt" is __animals/cats__, a line an option, # a comment."""
    found: dict[str, list[str]] = {}
    lines_read = 0
    for path in sorted(folder.rglob("*.txt")):
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except (UnicodeDecodeError, OSError) as error:
            raise UserError(
                f"{path} is no list of options: {error}.", fix="save it as text (UTF-8)."
            ) from None
        lines_read += len(lines)
        if lines_read > MOST_LINES:
            raise UserError(f"{folder} has more than {MOST_LINES:,} lines.", fix="take fewer wildcards.")
        name = path.relative_to(folder).with_suffix("").as_posix()
        found[name] = [line for line in lines if line and not line.startswith("#")]
    return found
