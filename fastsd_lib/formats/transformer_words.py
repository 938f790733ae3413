"""Tokenizers for the text encoders of a bare SD3 or Flux file: single files hold none."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import read_json
from fastsd_lib.formats.configs import TOKENIZER_FILES
from fastsd_lib.formats.transformer_configs import FAMILIES, TEXT_ENCODERS, TRANSFORMER, Configs
from fastsd_lib.formats.vocabulary import NOT_LENT, cached_tokenizer

# What a text encoder's tokenizer cannot be without, as diffusers' folders have it.
NEEDED = {
    "clip_l": ("vocab.json", "merges.txt"),
    "clip_g": ("vocab.json", "merges.txt"),
    "t5xxl": ("tokenizer.json",),
}
T5_PIECES = "spiece.model"  # the same words for its slow tokenizer, and all that older folders have; no text
T5_SPARE = 128  # rows of T5's matrix that no word has: 32,128 for 32,000 pieces and 100 marks


def missing_words(family: str, configs: Mapping[str, str], parts: Collection[str]) -> list[str]:
    """The tokenizers that the text encoders among `parts` need and `configs` lack."""
    return [
        _tokenizer(part)
        for part, role in TEXT_ENCODERS[family].items()
        if part in parts and not _has_words(configs, _tokenizer(part), role)
    ]


def _has_words(configs: Mapping[str, str], name: str, role: str) -> bool:
    return f"{name}/tokenizer.json" in configs or all(f"{name}/{file}" in configs for file in NEEDED[role])


def piece_files(folder: Path) -> dict[str, Path]:
    """The tokenizers' files that are no text, by their path in the folder: what no config can carry."""
    names = [f"tokenizer{number}/{T5_PIECES}" for number in ("", "_2", "_3")]
    return {name: folder / name for name in names if (folder / name).is_file()}


def import_notes(configs: Mapping[str, str], parts: Collection[str]) -> tuple[str, ...]:
    """What a folder made of a single file still lacks before a picture can be drawn, a line each."""
    family = FAMILIES[json.loads(configs[TRANSFORMER])["_class_name"]]
    notes = []
    if missing := [part for part in ("vae", *TEXT_ENCODERS[family]) if part not in parts]:
        notes.append(
            f"The file holds no {', '.join(missing)}: take them from a Diffusers folder of the same model."
        )
    if absent := missing_words(family, configs, parts):
        notes.append(
            f"The file holds no {', '.join(absent)}: convert again with --config-from FOLDER, a Diffusers folder of the "
            "same model, or copy them from there."
        )
    return tuple(notes)


def lent_words(
    family: str, configs: Mapping[str, str], parts: Collection[str], lender: Path | None
) -> Configs:
    """The tokenizers that are missing, from the Diffusers folder `lender`, else from models on this machine.

    A folder of SD 1.5 lends CLIP's words, one of SD3 or Flux T5's too. UserError when `lender` is named and lends
    nothing that fits.
    """
    missing = missing_words(family, configs, parts)
    found: Configs = {}
    for part, role in TEXT_ENCODERS[family].items():
        if _tokenizer(part) in missing:
            size = json.loads(configs[f"{part}/config.json"])["vocab_size"]
            place = _place(lender, part, role, size)
            if place is None and role != "t5xxl":
                place = cached_tokenizer(size)
            found |= _texts(place, _tokenizer(part), role) if place else {}
    if lender is not None and missing and not found:
        raise UserError(
            f"{lender} holds no tokenizer for {', '.join(missing)} that fits the file's vocabulary.",
            fix="name a Diffusers folder of the same model; one of Stable Diffusion 1.5 lends CLIP's.",
        )
    return found


def _place(lender: Path | None, part: str, role: str, size: int) -> Path | None:
    """The folder of the lender's tokenizer that has as many words as the text encoder."""
    if lender is None:
        return None
    numbers = ("_3", "_2") if role == "t5xxl" else (part.removeprefix("text_encoder"), "")
    for place in [lender / f"tokenizer{number}" for number in numbers]:
        if all((place / name).is_file() for name in NEEDED[role]) and _fits(place, role, size):
            return place
    return None


def _fits(place: Path, role: str, size: int) -> bool:
    try:
        if role == "t5xxl":
            words = read_json(place / "tokenizer.json")["model"]["vocab"]
            return size - T5_SPARE <= len(words) <= size
        return len(read_json(place / "vocab.json")) == size
    except (KeyError, TypeError):
        return False


def _texts(place: Path, name: str, role: str) -> Configs:
    texts = {}
    for file in TOKENIZER_FILES:
        # tokenizer.json is T5's only list of words; of CLIP it has the same ones again, or the lender's own.
        if (place / file).is_file() and (file not in NOT_LENT or file == NEEDED[role][0]):
            text = (place / file).read_text("utf-8-sig")
            if role == "clip_g" and file in ("tokenizer_config.json", "special_tokens_map.json"):
                text = json.dumps(json.loads(text) | {"pad_token": "!"}, indent=2) + "\n"
            texts[f"{name}/{file}"] = text
    return texts


def _tokenizer(part: str) -> str:
    return part.replace("text_encoder", "tokenizer")
