"""Text of any length -> hidden states of a text encoder: chunks, weights, clip skip, learned words."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.parts import Parts, TextPart
from fastsd_lib.generation.chunks import Chunk, Embedding, EmbeddingTable, Reader, read_chunks
from fastsd_lib.generation.prompt_language import Piece, attention

MOST_CHUNKS = 100  # 7,500 tokens
CACHE_BYTES = 64 << 20
# The vectors (count, width) of a learned word, or those for each text encoder: {"clip_l": ..., "clip_g": ...}.
LearnedWord = torch.Tensor | Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Encoded:
    """One text as the text encoder understands it."""

    hidden: torch.Tensor  # (chunks * 77, width)
    embeddings: tuple[Embedding, ...] = ()  # kept, so that their ids stay theirs while the cache knows them
    pooled: torch.Tensor | None = None  # (width,) of SDXL's second encoder: the first chunk as a whole


class EncodingCache:
    """Texts that were encoded before, the oldest forgotten first. One per loaded model.

    The keys know text, clip skip, emphasis and learned words; whoever changes the weights (training, LoRA)
    sets a `state` for them, or clears the cache.
    """

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self.state: object = None
        self._most_bytes = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[tuple, Encoded] = OrderedDict()

    def get(self, key: tuple, encode: Callable[[], Encoded]) -> Encoded:
        key = (self.state, *key)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        encoded = self._kept[key] = encode()
        self._bytes += encoded.hidden.nbytes
        while self._bytes > self._most_bytes and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].hidden.nbytes
        return encoded

    def clear(self) -> None:
        self._kept.clear()
        self._bytes = 0


# --- emphasis: what a weight does to the hidden states (1, tokens, width)


def _restoring_mean(hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighed, then scaled so that the mean of the whole chunk is what it was (A1111's rule)."""
    weighed = hidden * weights
    scale = hidden.float().mean() / weighed.float().mean()
    return weighed * scale.to(hidden.dtype) if torch.isfinite(scale) else weighed


EMPHASES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "original": _restoring_mean,
    "no_norm": lambda hidden, weights: hidden * weights,
    "ignore": lambda hidden, weights: hidden,
    "none": lambda hidden, weights: hidden,  # the brackets, too, are text
}
EMPHASIS_ALIASES = {"Original": "original", "No norm": "no_norm", "Ignore": "ignore", "None": "none"}


# How far before its end a family's text encoder is read when nothing is skipped, as the model was trained; the
# configs of SD 2.x already leave out the last layer. So a clip_skip of 2, which A1111's users write with
# many models, changes nothing for SD 2.x and SDXL; 3 reads one layer earlier.
OWN_LAYER = {"sd1": 1, "sd2": 2, "sdxl": 2}


@dataclass
class EncoderReader:
    """Encodes chunks with one text encoder of a model."""

    part: TextPart
    layer: int  # of its hidden states, from the end: 1 = the last
    norm: bool  # whether its last layer norm follows
    emphasis: str

    def __post_init__(self) -> None:
        tokenizer, config = self.part.tokenizer, self.part.encoder.config
        comma = tokenizer.convert_tokens_to_ids(",</w>")  # the whole vocabulary would take milliseconds
        self.reader = Reader(
            tokenize=self.tokenize,
            begin=tokenizer.bos_token_id,
            end=tokenizer.eos_token_id,
            pad=tokenizer.pad_token_id,
            comma=None if comma == tokenizer.unk_token_id else comma,
            room=min(tokenizer.model_max_length, config.max_position_embeddings) - 2,
        )
        self.width = config.hidden_size
        self.table: EmbeddingTable | None = None

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return self.part.tokenizer(texts, add_special_tokens=False, verbose=False).input_ids

    def encode(self, chunks: Sequence[Chunk]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(1, chunks * 77, width), and the pooled text of the first chunk (width,) if the encoder projects it.

        Each chunk is read alone, so that no other text changes its last bits.
        """
        read = [self._encode_chunk(chunk) for chunk in chunks]
        return torch.cat([hidden for hidden, _ in read], dim=1), read[0][1]

    def _encode_chunk(self, chunk: Chunk) -> tuple[torch.Tensor, torch.Tensor | None]:
        model = self.part.encoder
        tokens = torch.tensor([chunk.tokens], device=model.device)
        with _inserted(model, chunk.embeddings):
            if self.layer == 1 and self.norm:
                seen = model(input_ids=tokens)
                hidden = seen.last_hidden_state
            else:
                seen = model(input_ids=tokens, output_hidden_states=True)
                hidden = seen.hidden_states[-self.layer]
                if self.norm:
                    hidden = getattr(model, "text_model", model).final_layer_norm(hidden)
        pooled = getattr(seen, "text_embeds", None)
        pooled = None if pooled is None else pooled[0]
        if all(weight == 1 for weight in chunk.weights):
            return hidden, pooled
        weights = torch.tensor(chunk.weights, device=hidden.device, dtype=hidden.dtype)
        return EMPHASES[self.emphasis](hidden, weights[None, :, None]), pooled


@dataclass
class TextReader:
    """Encodes texts of any length with the one or two text encoders of a model."""

    parts: Parts
    clip_skip: int = 1  # 1 = the last layer, 2 = the one before it; no later than the model was trained for
    emphasis: str = "original"
    cache: EncodingCache = field(default_factory=EncodingCache)

    def __post_init__(self) -> None:
        family, text_parts = self.parts.family, self.parts.text_parts
        left_out = 1 if family == "sd2" else 0  # of the layers that clip_skip counts
        most = min(part.encoder.config.num_hidden_layers for part in text_parts) + left_out
        if not 1 <= self.clip_skip <= most:
            raise UserError(
                f"clip_skip is {self.clip_skip}, but the text encoder has {most} layers.",
                fix=f"take 1 to {most}; 1 skips nothing.",
            )
        if self.emphasis not in EMPHASES:
            raise UserError(f"No emphasis {self.emphasis!r}.", fix=f"take one of: {', '.join(EMPHASES)}.")
        layer = max(self.clip_skip, OWN_LAYER[family]) - left_out
        self.encoders = [EncoderReader(part, layer, family != "sdxl", self.emphasis) for part in text_parts]
        self._chunks: dict[str, tuple[list[list[Chunk]], int]] = {}

    @property
    def reader(self) -> Reader:
        """What the first encoder reads at once; all encoders of a model share one vocabulary."""
        return self.encoders[0].reader

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return self.encoders[0].tokenize(texts)

    def learn(self, embeddings: Mapping[str, LearnedWord]) -> dict[str, str]:
        """Take the learned words that fit; returns why the others do not, by name."""
        unfit = {}
        fit: list[dict[str, torch.Tensor]] = [{} for _ in self.encoders]
        for name, word in embeddings.items():
            vectors, reason = _for_each(word, self.encoders)
            if reason:
                unfit[name] = reason
                continue
            for one, mine in zip(fit, vectors, strict=True):
                one[name] = mine
        for encoder, words in zip(self.encoders, fit, strict=True):
            encoder.table = EmbeddingTable(words, encoder.tokenize) if words else None
        self._chunks.clear()
        return unfit

    def chunks(self, text: str) -> tuple[list[Chunk], int]:
        """The chunks of one text as the first encoder reads it, and how many tokens it takes."""
        each, count = self._read(text)
        return each[0], count

    def _read(self, text: str) -> tuple[list[list[Chunk]], int]:
        if text not in self._chunks:
            pieces = [Piece(text, 1.0)] if self.emphasis == "none" else attention(text)
            read = [read_chunks(pieces, one.reader, one.table) for one in self.encoders]
            longest = max(len(chunks) for chunks, _ in read)
            for one, (chunks, _) in zip(self.encoders, read, strict=True):
                chunks += read_chunks([], one.reader)[0] * (longest - len(chunks))
            self._chunks[text] = [chunks for chunks, _ in read], read[0][1]
        each, count = self._chunks[text]
        if len(each[0]) > MOST_CHUNKS:
            raise UserError(
                f"The prompt has {count:,} tokens.",
                fix=f"shorten it to {MOST_CHUNKS * self.reader.room:,}; a picture follows the first hundred best.",
            )
        return each, count

    def encode(self, text: str) -> Encoded:
        """(chunks * 77, width), the encoders side by side."""
        each = self._read(text)[0]
        words = tuple(
            id(embedding.vectors) for chunks in each for chunk in chunks for _, embedding in chunk.embeddings
        )
        key = (text, self.clip_skip, self.emphasis, words)
        return self.cache.get(key, lambda: self._encode(each))

    def _encode(self, each: Sequence[Sequence[Chunk]]) -> Encoded:
        hidden, pooled = [], None
        for encoder, chunks in zip(self.encoders, each, strict=True):
            with torch.no_grad(), self.parts.at_work(encoder.part.encoder):
                mine, projected = encoder.encode(chunks)
            hidden.append(mine[0])
            pooled = pooled if projected is None else projected
        kept = tuple(one for chunks in each for chunk in chunks for _, one in chunk.embeddings)
        return Encoded(torch.cat(hidden, dim=-1) if len(hidden) > 1 else hidden[0], kept, pooled)

    def padded(self, text: str, chunks: int) -> torch.Tensor:
        """(chunks * 77, width): filled up with what the text encoders make of nothing."""
        hidden = self.encode(text).hidden
        missing = chunks - hidden.shape[0] // (self.reader.room + 2)
        return torch.cat([hidden, *[self.encode("").hidden] * missing]) if missing > 0 else hidden


def _for_each(word: LearnedWord, encoders: Sequence[EncoderReader]) -> tuple[list[torch.Tensor], str]:
    """A learned word's vectors for each encoder, or why there are none."""
    names = [one.part.name for one in encoders]
    named = word if isinstance(word, Mapping) else {names[0]: word}
    if set(named) != set(names):
        if isinstance(word, Mapping):
            return [], f"is made for another model: {' and '.join(named)}, not {' and '.join(names)}"
        return (
            [],
            f"is made for another model: {tuple(word.shape)}, not a part each for {' and '.join(names)}",
        )
    for encoder in encoders:
        vectors, room = named[encoder.part.name], encoder.reader.room
        if vectors.ndim != 2 or vectors.shape[1] != encoder.width:
            shape = tuple(vectors.shape)
            return [], f"is made for another model: {shape}, not (count, {encoder.width})"
        if not 1 <= vectors.shape[0] <= room:
            return [], f"has {vectors.shape[0]} vectors, and {room} is the most"
    return [named[name] for name in names], ""


@contextmanager
def _inserted(model: Any, embeddings: Sequence[tuple[int, Embedding]]) -> Iterator[None]:
    """Learned words stand in for the tokens at their positions, before the encoder's first layer."""
    if not embeddings:
        yield
        return

    def replace(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        for at, embedding in embeddings:
            output[0, at : at + embedding.length] = embedding.vectors.to(output)
        return output

    handle = model.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
