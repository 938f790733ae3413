"""CLIP's vocabulary: where a bare single file's tokenizer can come from.

It is the same in all models of SD 1.x, 2.x and SDXL, and not ours to give away (1.5 MB).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from fastsd_lib.core.files import read_json
from fastsd_lib.formats.configs import TOKENIZER_FILES, read_config, read_configs, read_small_text

WORDS = ("vocab.json", "merges.txt")
# The same vocabulary a second time, and words that only the lender's text encoder has rows for.
NOT_LENT = ("tokenizer.json", "added_tokens.json")
START = "<|startoftext|>"
MAX_VOCABULARY_BYTES = 16 << 20


def lent_configs(folder: Path) -> dict[str, str]:
    """What a folder lends to a bare file: all small files of a pipeline, or those of a tokenizer alone."""
    if not (folder / "unet" / "config.json").is_file():
        for place in (folder / "tokenizer", folder):
            if all((place / name).is_file() for name in WORDS):
                return tokenizer_texts(place)
    return read_configs(folder)


def tokenizer_texts(place: Path) -> dict[str, str]:
    """A tokenizer's files, as those of the first tokenizer of a pipeline."""
    names = [name for name in TOKENIZER_FILES if (place / name).is_file() and name not in NOT_LENT]
    for name in names:
        if name.endswith(".json"):
            read_config(place / name, f"tokenizer/{name}")  # says what is damaged
    return {f"tokenizer/{name}": read_small_text(place / name) for name in names}


def cached_tokenizer(vocabulary: int) -> Path | None:
    """A folder with CLIP's tokenizer of so many entries among the models that were downloaded to this machine."""
    for place in _cached_places():
        if all((place / name).is_file() for name in WORDS):
            size = (place / "vocab.json").stat().st_size
            words = read_json(place / "vocab.json") if size < MAX_VOCABULARY_BYTES else {}
            if isinstance(words, dict) and len(words) == vocabulary and words.get(START) == vocabulary - 2:
                return place
    return None


def _cached_places() -> Iterator[Path]:
    """Tokenizers in Hugging Face's cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    if not cache.is_dir():
        return
    for words in sorted(cache.glob("models--*/snapshots/*/**/vocab.json")):
        yield words.parent


def missing_tokenizers(configs: Mapping[str, str]) -> list[str]:
    """The tokenizers that a pipeline with these configs names and lacks."""
    index = json.loads(configs.get("model_index.json", "{}"))
    named = [name for name in ("tokenizer", "tokenizer_2") if (index.get(name) or [None])[0]]
    held = ("vocab.json", "tokenizer.json")  # either has all words
    return [name for name in named if not any(f"{name}/{file}" in configs for file in held)]
