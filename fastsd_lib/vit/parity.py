"""Does an export give the model's logits? Asked of every export right after it is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.config import RunnerConfig
from fastsd_lib.vit.model import VitModel, load_torch
from fastsd_lib.vit.outputs import output_module
from fastsd_lib.vit.runner import open_runner

PICTURES = 3  # as a batch of two and a batch of one: every batch must work
FP32_ERROR = 1e-3  # of a logit; measured for ViT, DeiT, DINOv2, Swin and ConvNeXt: below 1e-6
COSINE = 0.999  # of 16-bit logits with the float32 ones


@dataclass(frozen=True)
class Parity:
    max_abs_error: float
    cosine: float
    text: str


def check(model: VitModel, folder: Path, precision: str) -> Parity:
    """Run the export in `folder` on made pictures beside PyTorch in float32; UserError where it is off.

    Integer exports must only give numbers: what they cost is measured on real pictures by the gate.
    """
    pixels = made_pictures(model)
    with torch.inference_mode():
        expected = output_module(load_torch(model))(torch.from_numpy(pixels)).numpy()
    runner = open_runner(folder, config=RunnerConfig(batch_size=2))
    try:
        found = runner.run(pixels)
    finally:
        runner.close()
    return judge(model, folder.name, precision, found, expected)


def judge(model: VitModel, name: str, precision: str, found: np.ndarray, expected: np.ndarray) -> Parity:
    """UserError unless `found` (N, C) is `expected` within what `precision` allows."""
    error = float(np.abs(found - expected).max())
    cosine = float((found * expected).sum() / (np.linalg.norm(found) * np.linalg.norm(expected) + 1e-30))
    fp32_off = precision == "fp32" and not error <= FP32_ERROR * max(1.0, float(np.abs(expected).max()))
    half_off = precision in ("bf16", "fp16") and not cosine >= COSINE
    if found.shape != expected.shape or not np.isfinite(found).all() or fp32_off or half_off:
        raise UserError(
            f"The {precision} export of {model.name} does not give its logits (off by {error:.3g}, cosine {cosine:.5f}).",
            fix="choose a higher precision, or another format.",
        )
    text = f"run on {len(found)} made pictures beside PyTorch fp32: logits within {error:.2g}, cosine {cosine:.6f}"
    return Parity(error, cosine, text)


def made_pictures(model: VitModel, count: int = PICTURES) -> np.ndarray:
    """(count, 3, H, W) float32 in about [-1, 1]: shades with some noise, always the same."""
    height, width = model.image_px
    random = np.random.default_rng(20261121)
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves, shifts = random.uniform(0.5, 3, (2, count, 3, 1, 1)), random.uniform(0, 6.28, (count, 3, 1, 1))
    shades = 0.7 * np.sin(6.28 * (waves[0] * down + waves[1] * across) + shifts)
    return (shades + random.normal(0, 0.1, (count, 3, height, width))).astype(np.float32)
