"""The small files of a tiny pipeline: its index and a CLIP vocabulary of all bytes and a few words."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = ("photo", "red", "star", "blue", "background", "monster", "cat", "sks")

MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.39.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def save_tokenizer(folder: Path) -> int:
    """A CLIP byte-pair vocabulary of all bytes and a few words; returns its size."""
    letters = _byte_letters()
    tokens = letters + [letter + "</w>" for letter in letters]
    merges = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merge = (parts[-2], parts[-1])
            if merge not in merges:
                merges.append(merge)
                tokens.append("".join(merge))
            parts[-2:] = ["".join(merge)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    assert len(vocabulary) == len(tokens)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    special = {
        "bos_token": tokens[-2],
        "eos_token": tokens[-1],
        "unk_token": tokens[-1],
        "pad_token": tokens[-1],
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return len(tokens)


def _byte_letters() -> list[str]:
    """GPT-2's and CLIP's printable stand-in for each of the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stand_ins = {byte: chr(byte) for byte in plain}
    for byte in range(256):
        stand_ins.setdefault(byte, chr(256 + len(stand_ins) - len(plain)))
    return list(stand_ins.values())
