"""Pictures put into words: by BLIP where the user has it, and by the judge for the embedded model's own world.

BLIP: arXiv 2201.12086, in the layout of transformers: a folder with config.json, model.safetensors and vocabulary.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastsd_lib.core.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastsd_lib.generation.judge import Judge

LONGEST_TOKENS = 48
CAPTIONER = "Salesforce/blip-image-captioning-base"
# Of CLIP, which BLIP was trained with; a folder's preprocessor_config.json may say others.
MEAN, SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_SHAPES = (
    "star",
    "heart",
    "circle",
    "square",
    "triangle",
    "monster",
)  # what has a colour in the judge's world
_one_at_a_time = threading.Lock()


def find_captioner(folders: Iterable[Path]) -> Path | None:
    """The first folder of BLIP among `folders` and their subfolders."""
    for folder in folders:
        inner = sorted(folder.iterdir()) if folder.is_dir() else []
        for place in (folder, *inner):
            if (place / "config.json").is_file() and (place / "model.safetensors").is_file():
                return place
    return None


def caption(picture: Image, folders: Iterable[Path], embedded: Path | None = None) -> str:
    """What the picture shows, in a few words. `embedded`: the embedded model's folder, when it is the one in use.

    UserError when there is nothing that could tell, or what is there cannot be read.
    """
    captioner = find_captioner(folders)
    if captioner is not None:
        return blip_caption(picture, captioner)
    if embedded is not None and (embedded / "judge.safetensors").is_file():
        return judged_caption(picture, embedded)
    raise UserError(
        "There is no model here that puts pictures into words.",
        fix=f"put {CAPTIONER} (config.json, model.safetensors and vocabulary) into the folder models/BLIP.",
    )


def judged_caption(picture: Image, folder: Path) -> str:
    """In the words that the embedded model knows; of pictures beside its world it says the nearest thing."""
    from fastsd_lib.generation.judge import answers

    (seen,) = answers(_judge(folder), [picture])
    if seen["subject"] == "photograph":
        return "a photograph"
    noun = f"{seen['colour']} {seen['subject']}" if seen["subject"] in _SHAPES else seen["subject"]
    return f"a photo of {_article(noun)} on {_article(seen['background'])} background"


def blip_caption(picture: Image, folder: Path) -> str:
    """As the BLIP in `folder` says it; nothing is downloaded and no code of the folder is run."""
    with _one_at_a_time, torch.inference_mode():
        model, tokenizer, side_px, mean, spread = _blip(
            folder, (folder / "model.safetensors").stat().st_mtime_ns
        )
        pixels = _pixels(picture, side_px, mean, spread)
        said = model.generate(pixel_values=pixels, max_new_tokens=LONGEST_TOKENS, num_beams=3)
    return tokenizer.decode(said[0], skip_special_tokens=True).strip()


def _pixels(picture: Image, side_px: int, mean: Any, spread: Any) -> torch.Tensor:
    """(1, 3, side, side), each colour around 0: the whole picture, stretched to a square."""
    import numpy as np
    from PIL import Image

    square = picture.convert("RGB").resize((side_px, side_px), Image.Resampling.BICUBIC)
    levels = np.asarray(square, dtype=np.float32) / 255
    normal = (levels - np.float32(mean)) / np.float32(spread)
    return torch.from_numpy(normal).permute(2, 0, 1)[None]


@lru_cache(maxsize=1)
def _blip(folder: Path, changed_ns: int) -> tuple[Any, Any, int, Any, Any]:
    """Model, tokenizer, side of its pictures, their mean and spread."""
    from transformers import AutoTokenizer, BlipForConditionalGeneration

    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        with torch.inference_mode(False):
            model = BlipForConditionalGeneration.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, **local
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        given = folder / "preprocessor_config.json"
        told = json.loads(given.read_text(encoding="utf-8")) if given.is_file() else {}
        mean, spread = told.get("image_mean", MEAN), told.get("image_std", SPREAD)
        side_px = int(model.config.vision_config.image_size)
    except Exception as error:  # a folder of another model can fail in any way
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(
            f"The folder {folder.name} cannot be read as BLIP: {reason}", fix=f"download {CAPTIONER} again."
        ) from None
    return model.eval().requires_grad_(False), tokenizer, side_px, mean, spread


@lru_cache(maxsize=1)
def _judge(folder: Path) -> Judge:
    from fastsd_lib.generation.judge import load_judge

    return load_judge(folder)


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeio" else f"a {noun}"
