"""Text of any length -> hidden states of a text encoder: chunks, weights, clip skip, learned words."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.parts import Parts
from fastsd_lib.generation.chunks import Chunk, Embedding, EmbeddingTable, Reader, read_chunks
from fastsd_lib.generation.prompt_language import Piece, attention

MOST_CHUNKS = 100  # 7,500 tokens
CACHE_BYTES = 64 << 20


@dataclass(frozen=True)
class Encoded:
    """One text as the text encoder understands it."""

    hidden: torch.Tensor  # (chunks * 77, width)
    embeddings: tuple[Embedding, ...] = ()  # kept, so that their ids stay theirs while the cache knows them


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


@dataclass
class TextReader:
    """Encodes texts of any length with one text encoder."""

    parts: Parts
    clip_skip: int = 1  # 1 = the last layer, 2 = the one before it
    emphasis: str = "original"
    table: EmbeddingTable | None = None
    cache: EncodingCache = field(default_factory=EncodingCache)

    def __post_init__(self) -> None:
        tokenizer, config = self.parts.tokenizer, self.parts.text_encoder.config
        if not 1 <= self.clip_skip <= config.num_hidden_layers:
            raise UserError(
                f"clip_skip is {self.clip_skip}, but the text encoder has {config.num_hidden_layers} layers.",
                fix=f"take 1 to {config.num_hidden_layers}; 1 skips nothing.",
            )
        if self.emphasis not in EMPHASES:
            raise UserError(f"No emphasis {self.emphasis!r}.", fix=f"take one of: {', '.join(EMPHASES)}.")
        comma = tokenizer.convert_tokens_to_ids(",</w>")  # the whole vocabulary would take milliseconds
        self.reader = Reader(
            tokenize=self.tokenize,
            begin=tokenizer.bos_token_id,
            end=tokenizer.eos_token_id,
            pad=tokenizer.pad_token_id,
            comma=None if comma == tokenizer.unk_token_id else comma,
            room=min(tokenizer.model_max_length, config.max_position_embeddings) - 2,
        )
        self._chunks: dict[str, tuple[list[Chunk], int]] = {}

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return self.parts.tokenizer(texts, add_special_tokens=False, verbose=False).input_ids

    def chunks(self, text: str) -> tuple[list[Chunk], int]:
        """The chunks of one text, and how many tokens it takes."""
        if text not in self._chunks:
            pieces = [Piece(text, 1.0)] if self.emphasis == "none" else attention(text)
            self._chunks[text] = read_chunks(pieces, self.reader, self.table)
        chunks = self._chunks[text][0]
        if len(chunks) > MOST_CHUNKS:
            raise UserError(
                f"The prompt has {self._chunks[text][1]:,} tokens.",
                fix=f"shorten it to {MOST_CHUNKS * self.reader.room:,}; a picture follows the first hundred best.",
            )
        return self._chunks[text]

    def encode(self, text: str) -> Encoded:
        """(chunks * 77, width). Each chunk is read alone, so that no other text changes its last bits."""
        chunks = self.chunks(text)[0]
        words = tuple(id(embedding.vectors) for chunk in chunks for _, embedding in chunk.embeddings)
        key = (text, self.clip_skip, self.emphasis, words)
        return self.cache.get(key, lambda: self._encode(chunks))

    def _encode(self, chunks: Sequence[Chunk]) -> Encoded:
        with torch.no_grad():
            hidden = torch.cat([self._encode_chunk(chunk) for chunk in chunks], dim=1)
        return Encoded(hidden[0], tuple(one for chunk in chunks for _, one in chunk.embeddings))

    def _encode_chunk(self, chunk: Chunk) -> torch.Tensor:
        model = self.parts.text_encoder
        tokens = torch.tensor([chunk.tokens], device=model.device)
        with _inserted(model, chunk.embeddings):
            if self.clip_skip == 1:
                hidden = model(input_ids=tokens).last_hidden_state
            else:
                layers = model(input_ids=tokens, output_hidden_states=True).hidden_states
                last = getattr(model, "text_model", model).final_layer_norm
                hidden = last(layers[-self.clip_skip])
        if all(weight == 1 for weight in chunk.weights):
            return hidden
        weights = torch.tensor(chunk.weights, device=hidden.device, dtype=hidden.dtype)
        return EMPHASES[self.emphasis](hidden, weights[None, :, None])

    def padded(self, text: str, chunks: int) -> torch.Tensor:
        """(chunks * 77, width): filled up with what the text encoder makes of nothing."""
        hidden = self.encode(text).hidden
        missing = chunks - hidden.shape[0] // (self.reader.room + 2)
        return torch.cat([hidden, *[self.encode("").hidden] * missing]) if missing > 0 else hidden


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
