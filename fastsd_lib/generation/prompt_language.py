"""AUTOMATIC1111's prompt language: what a prompt says at each step, and how much each word counts. Pure text.

    a (cat:1.2) [in rain:in snow:0.5] AND a house :0.7

Three readings, in this order: `branches` splits at AND, `Schedule.read` reads [editing] and [alternation], and
`attention` weighs the words of one step's text. Anything that is not in the language is plain text: nothing here
raises, and the time is linear in the length of the prompt.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice, pairwise
from typing import NamedTuple

# --- AND: several prompts, each with its own weight


class Branch(NamedTuple):
    """One part of "a AND b :0.5": its text and how much it counts."""

    text: str
    weight: float


_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"\s*[-+]?(?:[0-9]{1,30}\.?|[0-9]{0,30}\.[0-9]{1,30})")


def branches(prompt: str) -> list[Branch]:
    """The prompts that are combined, each with its weight; one of weight 1 for a prompt without AND."""
    return [_branch(part) for part in _AND.split(prompt)]


def _branch(part: str) -> Branch:
    text = part.rstrip()
    head, colon, tail = text.rpartition(":")
    if colon and _WEIGHT.fullmatch(tail):
        return Branch(head.rstrip(), float(tail))
    return Branch(text, 1.0)


# --- [from:to:when] and [a|b]: what the prompt says at each step


@dataclass(frozen=True)
class _Edit:
    """[before:after:when]: `before` up to and with step `when`, then `after`."""

    before: tuple
    after: tuple
    when: str


@dataclass(frozen=True)
class _Alternation:
    """[a|b|c]: one after the other, a step each."""

    options: tuple[tuple, ...]


@dataclass
class _Open:
    """A bracket that is still open: where it stands in the list of items, and the : and | inside it so far."""

    bracket: str
    start: int
    marks: list[tuple[str, int]] = field(default_factory=list)

    def count(self, mark: str) -> int:
        return sum(1 for one, _ in self.marks if one == mark)


_PIECES = re.compile(r"\\.|[^\\\[\]():|]+|[\[\]():|\\]", re.DOTALL)
_WHEN = re.compile(r"\s*[-+]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][-+]?[0-9]{1,9})?\s*")


@dataclass(frozen=True)
class Schedule:
    """One prompt over the steps of a pass. Steps count from 1, as in the prompt: [a:b:3] says a three times.

    A number with a point is a part of the pass's steps, any other a step. In a second pass (hires), given
    as `after_steps` = the steps of the first one, parts run from 1 to 2 and steps are counted on.
    """

    items: tuple  # str, _Edit and _Alternation
    whens: tuple[str, ...]  # of every edit, also of those inside others
    alternates: bool

    @classmethod
    def read(cls, prompt: str) -> Schedule:
        """Find the brackets that schedule; all others, and unbalanced ones, stay in the text."""
        items: list = []
        opened: list[_Open] = []
        whens: list[str] = []
        alternates = False
        for match in _PIECES.finditer(prompt):
            piece = match[0]
            if piece in "([":
                opened.append(_Open(piece, len(items)))
            elif piece in ":|" and opened:
                opened[-1].marks.append((piece, len(items)))
            elif piece in ")]":
                node = _closed(items, opened, piece)
                if isinstance(node, _Edit):
                    whens.append(node.when)
                if node is not None:
                    alternates = alternates or isinstance(node, _Alternation)
                    piece = node
            items.append(piece)
        return cls(tuple(items), tuple(whens), alternates)

    def changes(self, steps: int, after_steps: int | None = None) -> list[int]:
        """The last step of every stretch in which the text stays as it is; ends with `steps`."""
        if self.alternates:
            return list(range(1, steps + 1)) or [steps]
        found = {_last_step(when, steps, after_steps) for when in self.whens}
        return sorted({steps} | {step for step in found if step >= 1})

    def text_at(self, step: int, steps: int, after_steps: int | None = None) -> str:
        """What the prompt says at step 1 ... `steps`; brackets that only weigh words are still in it."""
        said: list[str] = []
        pending: list[Iterator] = [iter(self.items)]
        while pending:
            item = next(pending[-1], None)
            if item is None:
                pending.pop()
            elif isinstance(item, str):
                said.append(item)
            elif isinstance(item, _Edit):
                early = step <= _last_step(item.when, steps, after_steps)
                pending.append(iter(item.before if early else item.after))
            else:
                pending.append(iter(item.options[(step - 1) % len(item.options)]))
        return "".join(said)

    def entries(self, steps: int, after_steps: int | None = None) -> list[tuple[int, str]]:
        """[(last step, text)] over the whole pass."""
        return [(step, self.text_at(step, steps, after_steps)) for step in self.changes(steps, after_steps)]


def _closed(items: list, opened: list[_Open], bracket: str) -> _Edit | _Alternation | None:
    """Close a bracket. A scheduling one leaves `items` and is given back; None = it is text.

    A bracket that closes nothing makes text of all brackets around it, as they now hold something unbalanced.
    """
    group = opened[-1] if opened else None
    if group is None or group.bracket + bracket not in ("()", "[]"):
        opened.clear()
        return None
    opened.pop()
    colons = group.count(":")
    if bracket == ")" or not group.marks:
        if colons > 1:
            opened.clear()
        return None
    cuts = [at for mark, at in group.marks if (mark == ":") == bool(colons)]
    edges = [group.start, *cuts, len(items)]
    parts = [tuple(items[a + 1 : b]) for a, b in pairwise(edges)]
    node: _Edit | _Alternation
    if not colons:
        node = _Alternation(tuple(parts))
    else:
        when = "".join(one for one in parts[-1] if isinstance(one, str))
        if colons > 2 or len(parts[-1]) != 1 or not _WHEN.fullmatch(when):
            opened.clear()
            return None
        node = _Edit(parts[0] if colons == 2 else (), parts[-2], when.strip())
    del items[group.start :]
    return node


def _last_step(when: str, steps: int, after_steps: int | None) -> int:
    """The last step of the first half of an edit, 0 ... `steps`."""
    number = float(when)
    if "." in when:
        number = (number - (0 if after_steps is None else 1)) * steps
    else:
        number -= after_steps or 0
    return int(max(0, min(steps, number)))


# --- (attention): how much each word counts


class Piece(NamedTuple):
    """A stretch of text and its weight."""

    text: str
    weight: float


BREAK = Piece("BREAK", -1.0)  # the next word begins a new chunk of 75 tokens

ROUND, SQUARE = 1.1, 1 / 1.1  # what (x) and [x] multiply by
DEEPEST = 64  # more brackets around one word than this weigh no more: 1.1 ** 64 is 446 already
HEAVIEST = 1e6  # no weight is larger than this, so that no sum of them is infinite

_TOKENS = re.compile(
    r"\\[()\[\]\\]|\\|[(\[]|:\s*([+-]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30}))\s*\)|[)\]]|[^\\()\[\]:]+|:"
)
_BREAK = re.compile(r"\bBREAK\b")


def attention(text: str) -> list[Piece]:
    r"""The stretches of a text with their weights, and BREAK between them.

    (x) weighs 1.1, [x] 1/1.1, (x:1.5) what it says; brackets multiply. \( \) \[ \] \\ are the characters
    themselves. A bracket that is never closed reaches to the end; one that closes nothing is text.
    """
    leaves: list[str | None] = []  # None = BREAK
    opened: dict[str, list[int]] = {"(": [], "[": []}
    spans: list[tuple[int, int, float]] = []  # (first leaf, leaf after the last, factor), as they are closed
    for match in _TOKENS.finditer(text):
        token = match[0]
        if token[0] == "\\":
            leaves.append(token[1:])
        elif token in opened:
            opened[token].append(len(leaves))
        elif token[-1] == ")" and opened["("]:
            spans.append((opened["("].pop(), len(leaves), float(match[1]) if match[1] else ROUND))
        elif token == "]" and opened["["]:
            spans.append((opened["["].pop(), len(leaves), SQUARE))
        else:
            _add_words(leaves, token)
    spans += [(start, len(leaves), ROUND) for start in opened["("]]
    spans += [(start, len(leaves), SQUARE) for start in opened["["]]
    weighed = zip(leaves, _weights(spans, len(leaves)), strict=True)
    pieces = [BREAK if leaf is None else Piece(leaf, weight) for leaf, weight in weighed]
    return _merged(pieces) or [Piece("", 1.0)]


def _add_words(leaves: list[str | None], token: str) -> None:
    parts = _BREAK.split(token)
    for number, part in enumerate(parts):
        if number:
            leaves.append(None)
            part = part.lstrip()
        leaves.append(part.rstrip() if number < len(parts) - 1 else part)


def _weights(spans: Sequence[tuple[int, int, float]], count: int) -> list[float]:
    """The product of the factors over each leaf, multiplied in the order in which the brackets close.

    Spans of round and of square brackets may cross. From the last leaf to the first, those over the current
    leaf stand in `over`, the one that closes first at its end.
    """
    ending, beginning = defaultdict(list), defaultdict(list)
    for number, (start, end, _) in enumerate(spans):
        if start < end:
            ending[end].append(number)
            beginning[start].append(number)
    weights = [1.0] * count
    over: dict[int, float] = {}
    for leaf in reversed(range(count)):
        for number in reversed(ending[leaf + 1]):
            over[number] = spans[number][2]
        weight = 1.0
        for factor in islice(reversed(over.values()), DEEPEST):
            weight = max(-HEAVIEST, min(HEAVIEST, weight * factor))
        weights[leaf] = weight
        for number in beginning[leaf]:
            del over[number]
    return weights


def _merged(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of one weight as one stretch, so that a word with an escape in it is still one word."""
    merged = []
    for (weight, is_break), group in groupby(pieces, key=lambda piece: (piece.weight, piece is BREAK)):
        if is_break:
            merged += group
        else:
            merged.append(Piece("".join(piece.text for piece in group), weight))
    return merged
