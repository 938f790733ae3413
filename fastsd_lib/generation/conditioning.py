"""Prompts -> what the U-Net gets at each step, by AUTOMATIC1111's rules."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.parts import Parts
from fastsd_lib.generation.chunks import EmbeddingTable, read_chunks
from fastsd_lib.generation.prompt_language import Schedule, attention, branches
from fastsd_lib.generation.prompt_tags import Tag, split_tags, without_comments
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.generation.seen_text import SeenText
from fastsd_lib.generation.text_reader import EncodingCache, TextReader

MOST_CHARACTERS = 100_000  # of a prompt; the work grows with it
MOST_TEXT = 2_000_000  # characters of all the texts that one prompt becomes over its steps


@dataclass
class _Prompt:
    """A prompt's text over the steps of one pass."""

    weight: float
    entries: list[tuple[int, str]]

    def at(self, step: int) -> str:
        """The text of a step that is counted from 0."""
        return next((text for end, text in self.entries if step < end), self.entries[-1][1])


@dataclass
class Conditioning:
    """What both prompts say at each step. `tokens` and `negative_tokens` are all read, however many."""

    reader: TextReader
    positive: list[tuple[float, Schedule]]  # more than one when the prompt has AND
    negative: Schedule
    tags: list[Tag] = field(default_factory=list)  # <lora:...> of the prompt, for whoever loads them
    warnings: list[str] = field(default_factory=list)
    embeddings_used: list[str] = field(default_factory=list)
    tokens: int = 0
    negative_tokens: int = 0
    _passes: dict[tuple[int, int | None], tuple[list[_Prompt], _Prompt, int]] = field(default_factory=dict)

    @property
    def room(self) -> int:
        """Tokens to one chunk, 75."""
        return self.reader.reader.room

    def chunks(self, steps: int, after_steps: int | None = None) -> int:
        """Chunks of 77 tokens that every tensor of this pass has."""
        return self._pass(steps, after_steps)[2]

    def at(
        self, step: int, steps: int, after_steps: int | None = None, chunks: int | None = None
    ) -> tuple[list[tuple[float, SeenText]], SeenText]:
        """At step 0 ... `steps` - 1: the positive prompts with their weights, and the negative one, all of one length.

        `after_steps`: the steps of the first pass, when this is the second one. `chunks`: at least so many
        chunks, for a forward that is shared with longer prompts.
        """
        positive, negative, own = self._pass(steps, after_steps)
        length = max(own, chunks or 0)
        like = next(self.reader.parts.unet.parameters())

        def seen(one: _Prompt) -> SeenText:
            return SeenText(self.reader.padded(one.at(step), length).to(like))

        return [(one.weight, seen(one)) for one in positive], seen(negative)

    def _pass(self, steps: int, after_steps: int | None) -> tuple[list[_Prompt], _Prompt, int]:
        key = (steps, after_steps)
        if key not in self._passes:
            positive = [_Prompt(weight, _entries(one, *key)) for weight, one in self.positive]
            negative = _Prompt(1.0, _entries(self.negative, *key))
            texts = {text for one in [*positive, negative] for _, text in one.entries}
            self._passes[key] = (positive, negative, max(len(self.reader.chunks(text)[0]) for text in texts))
        return self._passes[key]


def _entries(schedule: Schedule, steps: int, after_steps: int | None) -> list[tuple[int, str]]:
    entries: list[tuple[int, str]] = []
    characters = 0
    changes = schedule.changes(steps, after_steps)
    for end in changes:
        entries.append((end, schedule.text_at(end, steps, after_steps)))
        characters += len(entries[-1][1])
        if characters > MOST_TEXT:
            raise UserError(
                f"The prompt changes {len(changes)} times and is too long for that.",
                fix="shorten it, or let it change less often.",
            )
    return entries


def encode(
    parts: Parts,
    request: GenerationRequest,
    *,
    emphasis: str = "original",
    embeddings: Mapping[str, torch.Tensor] | None = None,
    cache: EncodingCache | None = None,
    loaded: Collection[Tag] = (),
) -> Conditioning:
    """Read both prompts of a request; the text encoder works when a step first asks for its text.

    `embeddings`: learned words by name, (count, width) each. `cache`: kept by whoever keeps the model.
    `loaded`: the tags of the prompt that are in force; any other is a warning. UserError for a prompt too long
    to draw, and for values no model can follow.
    """
    for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        if len(text) > MOST_CHARACTERS:
            raise UserError(
                f"The {name} has {len(text):,} characters.", fix=f"take at most {MOST_CHARACTERS:,}."
            )
    prompt, tags = split_tags(without_comments(request.prompt))
    negative, useless = split_tags(without_comments(request.negative_prompt))
    reader = TextReader(parts, request.clip_skip, emphasis, cache=cache or EncodingCache())
    warnings = [f"{tag.text} is not in force here" for tag in tags if tag not in loaded]
    warnings += [f"{tag.text} has no effect in the negative prompt" for tag in useless]
    reader.table, unfit = _table(reader, embeddings or {})
    schedules = [(weight, Schedule.read(text)) for text, weight in branches(prompt)]
    result = Conditioning(reader, schedules, Schedule.read(negative), tags, warnings)
    _count(result, request.inference_steps, unfit)
    return result


def _table(
    reader: TextReader, embeddings: Mapping[str, torch.Tensor]
) -> tuple[EmbeddingTable | None, dict[str, str]]:
    """The learned words that this model can read, and why it cannot read the others."""
    width = reader.parts.text_encoder.config.hidden_size
    unfit = {}
    for name, vectors in embeddings.items():
        if vectors.ndim != 2 or vectors.shape[1] != width:
            unfit[name] = f"is made for another model: {tuple(vectors.shape)}, not (count, {width})"
        elif not 1 <= vectors.shape[0] <= reader.reader.room:
            unfit[name] = f"has {vectors.shape[0]} vectors, and {reader.reader.room} is the most"
    fit = {name: vectors for name, vectors in embeddings.items() if name not in unfit}
    return (EmbeddingTable(fit, reader.tokenize) if fit else None), unfit


def _count(result: Conditioning, steps: int, unfit: Mapping[str, str]) -> None:
    """Fill in how many tokens are read and which learned words, and warn of those that do not fit."""
    reader = result.reader
    positive, negative, _ = result._pass(steps, None)
    said = [text for one in positive for _, text in one.entries]
    result.tokens = max(reader.chunks(text)[1] for text in said)
    result.negative_tokens = max(reader.chunks(text)[1] for _, text in negative.entries)
    texts = dict.fromkeys([*said, *(text for _, text in negative.entries)])
    chunks = [chunk for text in texts for chunk in reader.chunks(text)[0]]
    used = dict.fromkeys(embedding.name for chunk in chunks for _, embedding in chunk.embeddings)
    result.embeddings_used = list(used)
    if unfit:
        names = EmbeddingTable({name: torch.zeros(1, 1) for name in unfit}, reader.tokenize)
        for text in texts:
            for chunk in read_chunks(attention(text), reader.reader, names)[0]:
                for _, embedding in chunk.embeddings:
                    warning = f"the embedding {embedding.name!r} {unfit[embedding.name]}"
                    if warning not in result.warnings:
                        result.warnings.append(warning)
