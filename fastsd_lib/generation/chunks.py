"""Weighed text -> chunks of tokens, as many as a text encoder reads at once. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastsd_lib.generation.prompt_language import BREAK, Piece

COMMA_REACH = 20  # a chunk that is full ends at its last comma, if that is at most so many tokens back


@dataclass(frozen=True, eq=False)
class Embedding:
    """A learned word (textual inversion): `vectors` (count, width) stand in the place of its name's tokens."""

    name: str
    vectors: Any

    @property
    def length(self) -> int:
        return self.vectors.shape[0]


class EmbeddingTable:
    """Learned words, found by the tokens of their names; a longer name goes before a shorter one."""

    def __init__(
        self, embeddings: Mapping[str, Any], tokenize: Callable[[list[str]], list[list[int]]]
    ) -> None:
        self._by_first: dict[int, list[tuple[tuple[int, ...], Embedding]]] = {}
        names = list(embeddings)
        for name, tokens in zip(names, tokenize(names) if names else [], strict=True):
            if tokens:
                word = (tuple(tokens), Embedding(name, embeddings[name]))
                self._by_first.setdefault(tokens[0], []).append(word)
        for words in self._by_first.values():
            words.sort(key=lambda word: -len(word[0]))

    def find(self, tokens: Sequence[int], at: int) -> tuple[Embedding, int] | None:
        """The learned word that begins at `at`, and how many tokens its name takes."""
        for name, embedding in self._by_first.get(tokens[at], ()):
            if tuple(tokens[at : at + len(name)]) == name:
                return embedding, len(name)
        return None


@dataclass(frozen=True)
class Reader:
    """What a tokenizer and its text encoder read at once."""

    tokenize: Callable[[list[str]], list[list[int]]]  # without begin and end
    begin: int
    end: int
    pad: int
    comma: int | None
    room: int  # tokens between begin and end, 75


@dataclass(frozen=True)
class Chunk:
    """One reading: begin, `room` tokens, end. `weights` go with the tokens; `embeddings` stand at positions."""

    tokens: tuple[int, ...]
    weights: tuple[float, ...]
    embeddings: tuple[tuple[int, Embedding], ...] = ()


@dataclass
class _Filling:
    """A chunk while it is filled."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    embeddings: list[tuple[int, Embedding]] = field(default_factory=list)
    last_comma: int | None = None

    def split(self, at: int) -> _Filling:
        """Take what stands from `at` on into a new chunk, learned words included."""
        rest = _Filling(
            self.tokens[at:],
            self.weights[at:],
            [(where - at, one) for where, one in self.embeddings if where >= at],
        )
        del self.tokens[at:], self.weights[at:]
        self.embeddings = [(where, one) for where, one in self.embeddings if where < at]
        return rest

    def closed(self, reader: Reader) -> Chunk:
        free = reader.room - len(self.tokens)
        return Chunk(
            (reader.begin, *self.tokens, reader.end, *[reader.pad] * free),
            (1.0, *self.weights, 1.0, *[1.0] * free),
            tuple((where + 1, one) for where, one in self.embeddings),
        )


def read_chunks(
    pieces: Sequence[Piece], reader: Reader, table: EmbeddingTable | None = None
) -> tuple[list[Chunk], int]:
    """Text of any length as chunks, at least one; and how many tokens it takes, padding before a break included.

    The rules are A1111's: a full chunk is closed at its last comma if that is near, BREAK closes a chunk,
    and a learned word is never torn.
    """
    done: list[Chunk] = []
    open_ = _Filling()
    words = [piece for piece in pieces if piece is not BREAK]
    tokenized = iter(reader.tokenize([piece.text for piece in words]) if words else [])
    for piece in pieces:
        if piece is BREAK:
            done.append(open_.closed(reader))
            open_ = _Filling()
            continue
        tokens, at = next(tokenized), 0
        while at < len(tokens):
            full = len(open_.tokens) == reader.room
            comma = open_.last_comma
            if tokens[at] == reader.comma:
                open_.last_comma = len(open_.tokens)
            elif full and comma is not None and reader.room - comma <= COMMA_REACH:
                rest = open_.split(comma + 1)
                done.append(open_.closed(reader))
                open_ = rest
            if len(open_.tokens) == reader.room:
                done.append(open_.closed(reader))
                open_ = _Filling()
            found = table.find(tokens, at) if table else None
            if found is None:
                open_.tokens.append(tokens[at])
                open_.weights.append(piece.weight)
                at += 1
                continue
            embedding, length = found
            if len(open_.tokens) + embedding.length > reader.room:
                done.append(open_.closed(reader))
                open_ = _Filling()
            open_.embeddings.append((len(open_.tokens), embedding))
            open_.tokens += [0] * embedding.length  # the vectors take their place
            open_.weights += [piece.weight] * embedding.length
            at += length
    count = len(done) * reader.room
    if open_.tokens or not done:
        count += len(open_.tokens)
        done.append(open_.closed(reader))
    return done, count
