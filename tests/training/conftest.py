"""A small real training job: drawn photos, a narrow pipeline, a dozen steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.formats.parts import Parts, load_parts
from fastsd_lib.images.crop import find_crop
from fastsd_lib.images.instance import InstanceImage
from fastsd_lib.images.load import open_photo
from fastsd_lib.sessions.checkpoints import Checkpoint
from fastsd_lib.training import latents, trainer
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.training.training_set import TrainingSet

CONFIG = DreamBoothConfig(
    "photo of sks cat",
    "photo of a cat",
    class_images=3,
    resolution_px=64,
    text_encoder_steps=4,
    unet_steps=5,
    batch_size=2,
    unet_learning_rate=1e-3,
    text_encoder_learning_rate=1e-3,
    save_every_steps=3,
    sample_every_steps=0,
    flip=True,
)


@dataclass
class Job:
    """One training job whose parts are fresh for each run."""

    parts: Parts
    training_set: TrainingSet
    cache: latents.LatentCache
    folder: Path
    config: DreamBoothConfig = CONFIG

    def run(
        self,
        name: str = "run",
        should_stop: Callable[[], bool] | None = None,
        watch: dict[str, Any] | None = None,
        **changes: Any,
    ) -> tuple[Checkpoint, Parts]:
        """The last checkpoint and the trained parts; `watch`: further arguments of trainer.train."""
        config = replace(self.config, **changes)
        parts = copy.deepcopy(self.parts)
        done = trainer.train(
            parts,
            self.cache,
            self.training_set,
            config,
            run=trainer.run_fingerprint("base", self.training_set, config),
            checkpoints=self.folder / name / "checkpoints",
            logs=self.folder / name / "logs",
            should_stop=should_stop,
            **(watch or {}),
        )
        return done, parts

    def steps_taken(self, name: str) -> int:
        log = self.folder / name / "logs" / "metrics.jsonl"
        return len(log.read_text().splitlines()) if log.is_file() else 0


@pytest.fixture(scope="session")
def training_parts(narrow_sd15: ModelFiles) -> Parts:
    import torch

    torch.set_num_threads(1)
    return load_parts(narrow_sd15, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def training_set(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for number in range(6):
        picture = Image.new("RGB", (96, 64), (40 * number, 90, 200 - 30 * number))
        ImageDraw.Draw(picture).ellipse((20 + number, 10, 60 + number, 50), fill=(250, 200, 20 * number))
        paths.append(folder / f"{number}.png")
        picture.save(paths[-1])
    instances = tuple(
        InstanceImage(path, f"photo of sks cat, {path.stem}", find_crop(open_photo(path)))
        for path in paths[:3]
    )
    return TrainingSet(instances, tuple(paths[3:]), "photo of a cat")


@pytest.fixture
def job(training_parts: Parts, training_set: TrainingSet, tmp_path: Path) -> Job:
    cache = latents.encode(training_parts.vae, training_set, CONFIG.resolution_px, flip=True)
    return Job(training_parts, training_set, cache, tmp_path)
