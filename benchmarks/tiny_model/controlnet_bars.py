"""What the shipped ControlNet is worth: do pictures follow the edges they are given?

    python3 -m benchmarks.tiny_model.controlnet_bars [--pictures 48] [--grid FILE]

Edges are Canny's of the condition and of the drawn picture; F1 counts those that have one of the other within a
pixel. "same": the prompt describes the condition; "other": it describes another subject; "colours": a background
alone. Weight 0 is the model without it.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.tiny_model import world
from fastsd_lib.generation.canny import canny
from fastsd_lib.generation.control_request import ControlUnit
from fastsd_lib.generation.engine import Engine, load_engine
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.generation.resources import Library
from fastsd_lib.models.registry import EXTRAS_FOLDER, base_model

NAME = "tiny_canny"
UNTOUCHED_SEED = 77  # no training uses it
WEIGHTS = (0.0, 0.5, 1.0)
PROMPTS = ("same", "other", "colours")


def edge_agreement(wanted: np.ndarray, drawn: np.ndarray) -> float:
    """F1 of two edge maps (H, W), those within one pixel of each other, 0 to 1."""

    def near(edges: np.ndarray) -> np.ndarray:
        padded = np.pad(edges > 0, 1)
        height, width = edges.shape
        return np.any([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)

    right = (near(wanted) & (drawn > 0)).sum(), (near(drawn) & (wanted > 0)).sum()
    precision, recall = (
        part / max((edges > 0).sum(), 1) for part, edges in zip(right, (drawn, wanted), strict=True)
    )
    return 2 * precision * recall / max(precision + recall, 1e-9)


def prompts_for(scene: world.Scene, other: world.Scene) -> dict[str, str]:
    return {
        "same": world.full_caption(scene),
        "other": world.full_caption(other),
        "colours": f"a photo of {world.article(other.background)} background",
    }


def engine_with(folder: Path) -> Engine:
    engine = load_engine(base_model("embedded"))
    engine.library = Library.of(LibraryFolders(controlnets=(folder,)))
    return engine


def measure(
    engine: Engine, count: int, steps: int, name: str = NAME
) -> tuple[dict[tuple[str, float], float], list]:
    """Mean F1 by prompt and weight, and rows of pictures to be looked at."""
    rng = random.Random(UNTOUCHED_SEED)
    found: dict[tuple[str, float], list[float]] = {(p, w): [] for p in PROMPTS for w in WEIGHTS}
    rows = []
    for number in range(count):
        scene = world.random_scene(rng)
        other = world.random_scene(rng)
        while other.subject == scene.subject:
            other = world.random_scene(rng)
        condition = world.draw(scene, rng)
        wanted = canny(np.asarray(condition))
        row = [condition, Image.fromarray(wanted).convert("RGB")]
        for kind, prompt in prompts_for(scene, other).items():
            for weight in WEIGHTS:
                unit = ControlUnit(condition, name, preprocessor="canny", weight=weight)
                request = GenerationRequest(prompt, seed=number, inference_steps=steps, control=(unit,))
                drawn = engine.generate(request)[0].image
                found[kind, weight].append(edge_agreement(wanted, canny(np.asarray(drawn))))
                row.append(drawn)
        rows.append(row)
    return {key: float(np.mean(values)) for key, values in found.items()}, rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=EXTRAS_FOLDER / "ControlNet")
    parser.add_argument("--grid", type=Path, help="write the pictures of the first ten rows here")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    figures, rows = measure(engine_with(asked.folder), asked.pictures, asked.steps)
    print(f"edge agreement (F1 within 1 px), {asked.pictures} conditions, {asked.steps} steps")
    print("prompt    " + "".join(f"  weight {weight:g}".ljust(12) for weight in WEIGHTS))
    for kind in PROMPTS:
        print(kind.ljust(10) + "".join(f"  {figures[kind, weight]:.3f}".ljust(12) for weight in WEIGHTS))
    if asked.grid:
        lines = [np.concatenate([np.asarray(one) for one in row], axis=1) for row in rows[:10]]
        sheet = Image.fromarray(np.concatenate(lines))
        sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST).save(asked.grid)


if __name__ == "__main__":
    main()
