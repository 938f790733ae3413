"""What is learned from: prepared pictures with their prompts, and which of them each step sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ImageOps

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import fingerprint, sha256_file
from fastsd_lib.images.crop import crop_to
from fastsd_lib.images.instance import InstanceImage
from fastsd_lib.images.load import open_photo
from fastsd_lib.training.config import DreamBoothConfig


@dataclass(frozen=True)
class TrainingSet:
    """Instance images with prompt and crop; class images are already square and share the class prompt."""

    instances: tuple[InstanceImage, ...]
    class_images: tuple[Path, ...] = ()
    class_prompt: str = ""

    def __post_init__(self) -> None:
        if not self.instances:
            raise UserError(
                "There is no photo to learn from: instance_images/ is empty.",
                fix="add three to twenty photos of your subject: python3 -m fastsd_lib session add-images NAME FOLDER",
            )

    @property
    def fingerprint(self) -> str:
        """Changes with any picture, crop or prompt."""
        rows = [[sha256_file(one.path), one.prompt, list(one.crop.edges)] for one in self.instances]
        return fingerprint([rows, [sha256_file(path) for path in self.class_images], self.class_prompt])

    @property
    def prompts(self) -> list[str]:
        """One prompt per row of the latent cache: the instances, then the class images."""
        return [one.prompt for one in self.instances] + [self.class_prompt] * len(self.class_images)

    def pixels(self, row: int, resolution_px: int) -> torch.Tensor:
        """(3, H, W) in [-1, 1]; rows count the instances first, then the class images."""
        if row < len(self.instances):
            one = self.instances[row]
            picture = crop_to(open_photo(one.path), one.crop, resolution_px)
        else:
            picture = ImageOps.fit(
                open_photo(self.class_images[row - len(self.instances)]), (resolution_px, resolution_px)
            )
        array = np.asarray(picture, dtype=np.float32) / 127.5 - 1
        return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def rows_of_step(
    stage: str, step: int, config: DreamBoothConfig, instances: int, class_images: int
) -> list[int]:
    """The cache rows of one forward: `batch_size` instances, then as many class images with prior preservation.

    A pure function of the step (every picture once per epoch, in a fresh order), so that a resumed run
    sees exactly what the uninterrupted one would have seen.
    """
    rows = _pick(f"{stage}/instances", step, config.batch_size, instances, config.seed)
    if config.prior_preservation:
        rows += [
            instances + row
            for row in _pick(f"{stage}/class", step, config.batch_size, class_images, config.seed)
        ]
    return rows


def _pick(stream: str, step: int, batch: int, count: int, seed: int) -> list[int]:
    rows: list[int] = []
    for position in range(step * batch, (step + 1) * batch):
        epoch, place = divmod(position, count)
        order = torch.randperm(count, generator=generator(seed, stream, epoch))
        rows.append(int(order[place]))
    return rows


def generator(seed: int, *stream: object) -> torch.Generator:
    """Random numbers on the CPU that depend on nothing but the seed and the name of the stream."""
    name = fingerprint([seed, *map(str, stream)])
    return torch.Generator().manual_seed(int(name[:15], 16))
