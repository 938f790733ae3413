"""The pictures that everything is trained on, rendered once; one seed per split."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import torch

from benchmarks.tiny_model import world
from fastsd_lib.generation.judge import BELOW, labels_of

SPLITS = {"model": (36_000, 1), "judge": (20_000, 2), "test": (2_000, 3)}  # pictures, seed
SIDE = 64
PHOTO_SHARE = 0.06
UNKNOWN_WORDS = (
    "zwx",
    "ohwx",
    "xjy",
    "vrk",
)  # the model meets meaningless words, as real captions contain them


def render_chunk(job: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    seed, start, count = job
    rng = random.Random(f"{seed}/{start}")
    pictures = np.empty((count, SIDE, SIDE, 3), np.uint8)
    labels = np.empty((count, len(BELOW)), np.int64)
    captions = []
    for i in range(count):
        if rng.random() < PHOTO_SHARE:
            picture, caption, _ = world.draw_photo(rng)
            scene = None
        else:
            scene = world.random_scene(rng)
            picture, caption = world.draw(scene, rng), world.caption(scene, rng)
            if rng.random() < 0.04:
                caption = caption.replace("photo of a ", f"photo of {rng.choice(UNKNOWN_WORDS)} ")
        pictures[i] = np.asarray(picture)
        labels[i] = labels_of(scene)
        captions.append(caption)
    return pictures, labels, captions


def render(work: Path) -> None:
    from multiprocessing import Pool

    for split, (count, seed) in SPLITS.items():
        jobs = [(seed, start, min(500, count - start)) for start in range(0, count, 500)]
        with Pool(os.cpu_count()) as pool:
            parts = pool.map(render_chunk, jobs)
        np.save(work / f"{split}.pictures.npy", np.concatenate([p for p, _, _ in parts]))
        np.save(work / f"{split}.labels.npy", np.concatenate([lab for _, lab, _ in parts]))
        (work / f"{split}.captions.json").write_text(json.dumps([c for _, _, cs in parts for c in cs]))


def pictures_of(work: Path, split: str) -> np.ndarray:
    return np.load(work / f"{split}.pictures.npy", mmap_mode="r")


def as_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 (B, 64, 64, 3) -> float (B, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
