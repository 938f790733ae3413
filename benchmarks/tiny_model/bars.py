"""The bars of the embedded model: does it draw what it is asked for?

    python3 -m fastsd_lib benchmark tiny-model [--prompts 256] [--seeds 3]

The judge's own accuracy on pictures that neither it nor the model has seen stands beside every figure.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from pathlib import Path

import torch

from benchmarks.tiny_model import world
from fastsd_lib.generation import judge as judges
from fastsd_lib.generation.engine import load_engine
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.models.registry import EMBEDDED_FOLDER, base_model

UNTOUCHED_SEED = 4242  # of the judge's test renders: no split of the training uses it


def judge_accuracy(judge: judges.Judge, count: int = 1500) -> dict[str, float]:
    """Share of right answers per trait on fresh renders, photographs included."""
    rng = random.Random(UNTOUCHED_SEED)
    scenes = [world.random_scene(rng) if rng.random() > 0.06 else None for _ in range(count)]
    pictures = [world.draw(scene, rng) if scene else world.draw_photo(rng)[0] for scene in scenes]
    return judge.accuracy(
        judges.as_batch(pictures), torch.tensor([judges.labels_of(scene) for scene in scenes])
    )


def vae_psnr(count: int = 256) -> float:
    """Mean PSNR in dB of reconstructing fresh renders with the weights as shipped."""
    from benchmarks.tiny_model.vae import psnr
    from fastsd_lib.formats.parts import load_parts

    rng = random.Random(UNTOUCHED_SEED + 1)
    pictures = [world.draw(world.random_scene(rng), rng) for _ in range(count)]
    parts = load_parts(base_model("embedded"), torch.device("cpu"), torch.float32)
    return psnr(parts.vae, judges.as_batch(pictures))


def obeyed(
    judge: judges.Judge, prompts: int, seeds: int, guidance: float | None
) -> dict[str, tuple[int, int]]:
    """Right answers and questions per trait, over `prompts` full captions with `seeds` pictures each."""
    engine = load_engine(base_model("embedded"))
    rng = random.Random(UNTOUCHED_SEED + 2)
    right, asked = Counter(), Counter()
    for number in range(prompts):
        scene = world.random_scene(rng)
        request = GenerationRequest(
            world.full_caption(scene), seed=number * 10, count=seeds, guidance_scale=guidance
        )
        for answer in judges.answers(judge, [picture.image for picture in engine.generate(request)]):
            wanted = {"subject": scene.subject, "background": scene.background}
            if scene.colour:
                wanted["colour"] = scene.colour
            for name, value in wanted.items():
                for key in (name, f"{name} of monsters") if scene.subject == "monster" else (name,):
                    asked[key] += 1
                    right[key] += answer[name] == value
    return {name: (right[name], asked[name]) for name in sorted(asked)}


def seconds_per_picture() -> float:
    """One picture, 25 steps, batch 1: the best of five."""
    engine = load_engine(base_model("embedded"))
    best = float("inf")
    for seed in range(5):
        start = time.perf_counter()
        engine.generate(GenerationRequest("a photo of a cat", seed=seed))
        best = min(best, time.perf_counter() - start)
    return best


def shipped_mb(folder: Path = EMBEDDED_FOLDER) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="fastsd benchmark tiny-model", description=__doc__)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--guidance", type=float, default=None, help="default: the model's own")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    judge = judges.load_judge(EMBEDDED_FOLDER)
    shares = judge_accuracy(judge)
    rows = [
        ("VAE PSNR, dB", vae_psnr(), 26.0, ">="),
        *((f"judge: {name}", share, 0.98, ">=") for name, share in shares.items()),
        ("seconds per picture", seconds_per_picture(), 3.0, "<="),
        ("shipped, MB", shipped_mb(), 24.0, "<="),
    ]
    bars = {"subject": 0.92, "colour": 0.97, "background": 0.92, "subject of monsters": 0.85}
    for name, (right, asked) in obeyed(judge, options.prompts, options.seeds, options.guidance).items():
        rows.append((f"obeyed: {name} ({right} of {asked})", right / asked, bars.get(name), ">="))
    if options.json:
        print(
            json.dumps([{"what": what, "value": value, "bar": bar} for what, value, bar, _ in rows], indent=2)
        )
        return 0
    for what, value, bar, way in rows:
        kept = "" if bar is None else "kept" if (value >= bar if way == ">=" else value <= bar) else "MISSED"
        print(f"{what:<48} {value:8.3f}   " + (f"bar {way} {bar:g}  {kept}" if bar is not None else ""))
    return 0
