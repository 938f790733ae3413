"""The pictures of a training run as tensors, in an order that is a function of the seed alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

from fastsd_lib.core.progress import ProgressEvent, Report
from fastsd_lib.images.load import WHITE, read_photo
from fastsd_lib.vit import augment
from fastsd_lib.vit.folder_data import LIMITS, Sample
from fastsd_lib.vit.geometry import Geometry
from fastsd_lib.vit.train_config import VitTrainConfig

_LARGER = (
    1.15  # what is kept of a picture over what the model sees, so that turning and cropping cost no sharpness
)
_SMALL_PX = 64  # tiny pictures are kept as they are: enlarging them adds nothing


class Draw(NamedTuple):
    """One picture of one batch."""

    index: int
    epoch: int
    weight: float  # 1 on average; 0 for one that only fills up


def fitted(image: Image.Image, geometry: Geometry) -> Image.Image:
    """The picture as the model sees it, before its values are scaled."""
    resized = image.resize(geometry.resized(*image.size), Image.Resampling(geometry.resample))
    height, width = geometry.size
    if geometry.pad:
        canvas = Image.new("RGB", (width, height), WHITE)
        canvas.paste(resized, ((width - resized.width) // 2, (height - resized.height) // 2))
        return canvas
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return resized.crop((left, top, left + width, top + height))


class Pictures:
    """Decoded pictures by index, (H, W, 3) uint8: kept in memory when they fit there, else read each time."""

    def __init__(self, samples: Sequence[Sample], geometry: Geometry, cache_mib: int) -> None:
        self.geometry = geometry
        self._files = [file for file, _ in samples]
        self._shape = (*geometry.size, 3)
        fits = len(samples) * np.prod(self._shape) <= cache_mib << 20
        self._kept = np.zeros((len(samples), *self._shape), np.uint8) if fits else None
        self._there = np.zeros(len(samples), bool)

    def fill(self, report: Report) -> None:
        """Read all that is kept, so that the first epoch is as fast as the others."""
        if self._kept is None:
            return
        for begin in range(0, len(self._files), 256):
            self(np.arange(begin, min(begin + 256, len(self._files))))
            report(ProgressEvent("read pictures", min(begin + 256, len(self._files)), len(self._files)))

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """(len(indices), H, W, 3) uint8"""
        if self._kept is not None:
            missing = indices[~self._there[indices]]
            if len(missing):
                self._kept[missing] = self._read(missing)
                self._there[missing] = True
            return self._kept[indices]
        return self._read(indices)

    def _read(self, indices: np.ndarray) -> np.ndarray:
        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(self._one, indices)))

    def _one(self, index: int) -> np.ndarray:
        # A JPEG far larger than needed is already decoded smaller; four times leaves the resampling its say.
        image = read_photo(
            self._files[index], limits=LIMITS, max_side_px=max(1024, 4 * max(self.geometry.size))
        ).image
        return np.asarray(fitted(image, self.geometry))


def larger(geometry: Geometry, config: VitTrainConfig) -> Geometry:
    """What is kept of each training picture: somewhat more pixels than the model sees where they will be moved."""
    if config.augment == "none" or max(geometry.size) <= _SMALL_PX:
        return geometry
    size = tuple(round(side * _LARGER) for side in geometry.size)
    resize = geometry.resize
    if isinstance(resize, tuple):
        resize = tuple(round(side * _LARGER) for side in resize)
    elif resize is not None:
        resize = round(resize * _LARGER)
    return replace(geometry, size=size, resize=resize)


@dataclass(frozen=True)
class Scale:
    """Values of [0, 1] as the model wants them, and back."""

    mean: torch.Tensor  # (1, 3, 1, 1)
    std: torch.Tensor

    @classmethod
    def of(cls, geometry: Geometry) -> Scale:
        return cls(*(torch.tensor(values).view(1, 3, 1, 1) for values in (geometry.mean, geometry.std)))

    def apply(self, values: torch.Tensor) -> torch.Tensor:
        return (values - self.mean.to(values)) / self.std.to(values)

    def undo(self, values: torch.Tensor) -> torch.Tensor:
        return values * self.std.to(values) + self.mean.to(values)


class TrainingSet(Dataset):
    """Whole batches: a list of `Draw` becomes pixel_values (B, 3, H, W), targets (B, classes), weights (B,)."""

    def __init__(
        self,
        samples: Sequence[Sample],
        classes: int,
        geometry: Geometry,
        config: VitTrainConfig,
        report: Report,
    ) -> None:
        self.labels = np.array([label for _, label in samples])
        self.classes, self._config = classes, config
        self._pictures = Pictures(samples, larger(geometry, config), config.cache_mib)
        self._pictures.fill(report)
        self._size, self._scale = geometry.size, Scale.of(geometry)
        self._strength = augment.STRENGTHS[config.augment]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, draw: Draw) -> Draw:
        raise TypeError("a batch at a time")

    def __getitems__(self, draws: Sequence[Draw]) -> dict[str, torch.Tensor]:
        indices = np.array([draw.index for draw in draws])
        epoch = draws[0].epoch
        values = self._changed(indices, epoch)
        targets = torch.eye(self.classes)[self.labels[indices]]
        config = self._config
        if config.mixup or config.cutmix:
            mixture = augment.draw_mixture(
                config.mixup, config.cutmix, len(self), config.seed, epoch, indices
            )
            values, kept = augment.mix(values, self._changed(mixture.partners, epoch), mixture)
            share = torch.from_numpy(kept).float().unsqueeze(1)
            other = torch.eye(self.classes)[self.labels[mixture.partners]]
            targets = share * targets + (1 - share) * other
        values = self._scale.apply(values)
        if config.erase:
            values = augment.erase(values, config.erase, config.seed, epoch, indices)
        weights = torch.tensor([draw.weight for draw in draws])
        return {"pixel_values": values, "targets": targets, "weights": weights}

    def _changed(self, indices: np.ndarray, epoch: int) -> torch.Tensor:
        config = self._config
        flip = config.flip and config.augment != "none"
        return augment.changed(
            self._pictures(indices), self._size, self._strength, flip, config.seed, epoch, indices
        )


class ValidationSet:
    """Pictures as they will be classified later, in batches of pixel_values and labels."""

    def __init__(self, samples: Sequence[Sample], geometry: Geometry, config: VitTrainConfig) -> None:
        self._labels = np.array([label for _, label in samples], dtype=np.int64)
        self._pictures = Pictures(samples, geometry, config.cache_mib)
        self._scale = Scale.of(geometry)

    def __len__(self) -> int:
        return len(self._labels)

    def batches(self, size: int, rank: int = 0, processes: int = 1) -> Iterator[tuple[torch.Tensor, ...]]:
        """Every `processes`-th picture from `rank` on: together they are all of them, once."""
        mine = np.arange(rank, len(self), processes)
        for begin in range(0, len(mine), size):
            indices = mine[begin : begin + size]
            values = torch.from_numpy(self._pictures(indices)).permute(0, 3, 1, 2).float() / 255
            yield self._scale.apply(values), torch.from_numpy(self._labels[indices])


class Batches(Sampler):
    """The batches of one process: each step's pictures are the same however many processes and parts share them.

    A step of `config.batch_size * config.gradient_accumulation` pictures is cut into `parts` parts for each of
    `processes` processes. Where the count does not divide, pictures of weight 0 fill up and the others weigh more, so
    that the mean over all parts and processes is the mean over the step's own pictures.
    """

    def __init__(
        self, labels: np.ndarray, config: VitTrainConfig, parts: int, processes: int, rank: int
    ) -> None:
        self._labels, self._config = labels, config
        self._parts, self._processes, self._rank = parts, processes, rank
        self._step = config.batch_size * config.gradient_accumulation
        self.epoch = 0  # the trainer says which one comes next

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self._labels) // self._step)

    def __len__(self) -> int:
        return self.steps_per_epoch * self._parts

    def __iter__(self) -> Iterator[list[Draw]]:
        order = self._order()
        for begin in range(0, len(order), self._step):
            chosen = order[begin : begin + self._step]
            shares = self._parts * self._processes
            size = -(-len(chosen) // shares)
            weight = size * shares / len(chosen)
            draws = [Draw(int(index), self.epoch, weight) for index in chosen]
            draws += [Draw(int(chosen[0]), self.epoch, 0.0)] * (size * shares - len(chosen))
            for part in range(self._parts):
                at = (part * self._processes + self._rank) * size
                yield draws[at : at + size]

    def _order(self) -> np.ndarray:
        random = np.random.default_rng([self._config.seed, self.epoch])
        if self._config.balance == "sampler":
            chances = 1 / np.bincount(self._labels)[self._labels]
            return random.choice(len(self._labels), len(self._labels), p=chances / chances.sum())
        return random.permutation(len(self._labels))


def as_batch(batch: Any) -> Any:
    """The collate function of a set that hands out whole batches."""
    return batch
