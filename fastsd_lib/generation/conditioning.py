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
from fastsd_lib.generation.text_reader import EncodingCache, LearnedWord, TextReader

MOST_CHARACTERS = 100_000  # of a prompt; the work grows with it
WANTED_SCORE, UNWANTED_SCORE = 6.0, 2.5  # of beauty, from 1 to 10: the refiner's own defaults
MOST_BRANCHES = 32  # prompts joined by AND
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
    size_px: tuple[int, int]  # (width, height) of the picture, for models that are told
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
        parts = self.reader.parts
        like = next(parts.unet.parameters())

        def seen(one: _Prompt, wanted: bool = True) -> SeenText:
            text = one.at(step)
            hidden, pooled = self.reader.padded(text, length).to(like), self.reader.encode(text).pooled
            if pooled is None:
                return SeenText(hidden)
            pooled = pooled.to(like)
            if not wanted and not text and parts.zero_empty_negative:
                hidden, pooled = torch.zeros_like(hidden), torch.zeros_like(pooled)
            ids = torch.tensor(self._size_ids(wanted), dtype=torch.float32, device=like.device)
            return SeenText(hidden, pooled, ids)

        return [(one.weight, seen(one)) for one in positive], seen(negative, wanted=False)

    def _size_ids(self, wanted: bool) -> list[float]:
        """What SDXL is told of the picture (Podell et al. 2023, section 2.2): a whole one of this size, uncropped.

        The refiner is told how beautiful it is to be in place of the size to draw.
        """
        width_px, height_px = self.size_px
        whole = [height_px, width_px, 0, 0]
        if self.reader.parts.asks_for_score:
            return [*whole, WANTED_SCORE if wanted else UNWANTED_SCORE]
        return [*whole, height_px, width_px]

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
    embeddings: Mapping[str, LearnedWord] | None = None,
    cache: EncodingCache | None = None,
    loaded: Collection[Tag] = (),
    size_px: tuple[int, int] | None = None,
) -> Conditioning:
    """Read both prompts of a request; the text encoder works when a step first asks for its text.

    `embeddings`: learned words by name, (count, width) each, or such a part for each text encoder. `cache`: kept
    by whoever keeps the model. `loaded`: the tags of the prompt that are in force; any other is a warning.
    `size_px`: (width, height) of the picture, which SDXL is told; None = the model's own. UserError for a prompt
    too long to draw, and for values no model can follow.
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
    unfit = reader.learn(embeddings or {})
    parts_of_prompt = branches(prompt)
    if len(parts_of_prompt) > MOST_BRANCHES:
        raise UserError(
            f"The prompt has {len(parts_of_prompt)} parts joined by AND; each is a row of every U-Net call.",
            fix=f"join at most {MOST_BRANCHES}.",
        )
    schedules = [(weight, Schedule.read(text)) for text, weight in parts_of_prompt]
    side_px = parts.side_px
    result = Conditioning(
        reader, schedules, Schedule.read(negative), size_px or (side_px, side_px), tags, warnings
    )
    _count(result, request.inference_steps, unfit)
    return result


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
