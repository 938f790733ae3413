"""The demo's own subjects: real photographs of a cat, and a drawn character.

The cat is scikit-image's sample photograph (Chelsea, by Stéfan van der Walt, CC0), cropped as if it had been
photographed several times; the character is of the class "monster", which the embedded model knows, and was
never drawn for its training.
"""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.models.registry import EMBEDDED_FOLDER

if TYPE_CHECKING:
    from PIL.Image import Image

# Regions of the photograph, 451 x 300 pixels: the user's "photos", and those held back to compare with.
CAT_PHOTOS = (
    (20, 0, 420, 300),
    (60, 0, 360, 300),
    (100, 20, 380, 300),
    (40, 30, 320, 290),
    (110, 60, 370, 290),
    (80, 0, 400, 270),
)
CAT_HELD_BACK = ((30, 10, 320, 300), (90, 40, 350, 300), (70, 20, 330, 280), (120, 30, 380, 290))


@dataclass(frozen=True)
class SampleSubject:
    instance_prompt: str
    class_prompt: str
    traits: dict[str, str]  # what the judge must see in it; empty where only likeness tells


SUBJECTS = {
    "monster": SampleSubject(
        "a photo of sks monster",
        "a photo of a monster",
        {"subject": "monster", "colour": "purple", "eyes": "1", "headgear": "antennae"},
    ),
    "cat": SampleSubject("a photo of sks cat", "a photo of a cat", {}),
}


def sample_subject(name: str) -> SampleSubject:
    if name not in SUBJECTS:
        raise UserError(f"There is no sample subject {name!r}.", fix=f"choose one of: {', '.join(SUBJECTS)}.")
    return SUBJECTS[name]


def sample_photos(name: str, into: Path) -> list[Path]:
    """Write the photos of a sample subject into the folder `into`, as a user would bring them."""
    sample_subject(name)
    into.mkdir(parents=True, exist_ok=True)
    if name == "monster":
        photos = sorted((EMBEDDED_FOLDER / "sample_photos" / "monster").glob("*.png"))
        return [Path(shutil.copy(photo, into / photo.name)) for photo in photos]
    written = []
    for number, picture in enumerate(_cat(CAT_PHOTOS), 1):
        written.append(into / f"cat ({number}).jpg")
        picture.save(written[-1], quality=95)
    return written


def held_back_cat() -> list[Image]:
    """Crops of the cat that training never sees; they overlap with those it sees, as one photograph is all there is."""
    return _cat(CAT_HELD_BACK)


def _cat(regions: tuple[tuple[int, int, int, int], ...]) -> list[Image]:
    from PIL import Image

    require("skimage", group="train")
    package = importlib.util.find_spec("skimage")
    photograph = Image.open(Path(str(package.origin)).parent / "data" / "chelsea.png").convert("RGB")
    return [photograph.crop(region) for region in regions]
