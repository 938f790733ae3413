"""Trains the embedded model's LoRA: everything is drawn by night.

    python3 -m benchmarks.tiny_model.lora                # a quarter of an hour on one core
    python3 -m benchmarks.tiny_model.extras_bars         # what it is worth

Pictures of the small world with their usual captions, but seen by moonlight: no word asks for it, the weights do.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.tiny_model import world
from benchmarks.tiny_model.extras import EXTRAS, MADE_BY, decaying, embedded_parts, latents_of, loss_of
from fastsd_lib.formats.lora_file import export_lora, lora_metadata
from fastsd_lib.formats.parts import encode_prompts
from fastsd_lib.training.lora import Adapters

NAME = "tiny_night"
RANK = 8
MOONLIGHT = (0.24, 0.30, 0.52)  # what is left of red, green and blue
BATCH, RATE, SEED = 16, 2e-3, 17  # the seed is of no split of the model or its judge
EMPTY_SHARE = 0.1


def by_night(picture: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(picture, np.float32) * MOONLIGHT).astype(np.uint8))


def train(out: Path, steps: int, count: int) -> Path:
    parts = embedded_parts()
    rng, dice = random.Random(SEED), torch.Generator().manual_seed(SEED)
    scenes = [world.random_scene(rng) for _ in range(count)]
    clean = latents_of(parts, [by_night(world.draw(scene, rng)) for scene in scenes])
    captions = [world.caption(scene, rng) for scene in scenes]
    distinct = ["", *sorted(set(captions))]
    with torch.no_grad():
        states = torch.cat([encode_prompts(parts, distinct[i : i + 32]) for i in range(0, len(distinct), 32)])
    said = torch.tensor([distinct.index(caption) for caption in captions])
    adapters = Adapters("unet", parts.unet, RANK, RANK, SEED)
    optimizer = torch.optim.AdamW(adapters.parameters(), weight_decay=0.01)
    start, recent = time.monotonic(), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * decaying(step, steps)
        rows = torch.randint(count, (BATCH,), generator=dice)
        spoken = torch.where(torch.rand(BATCH, generator=dice) < EMPTY_SHARE, 0, said[rows])
        loss = loss_of(parts, clean[rows], states[spoken], dice)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        recent = [*recent[-49:], loss.item()]
        if step % 50 == 49:
            seconds = time.monotonic() - start
            print(f"{step + 1} steps, {seconds:.0f} s, loss {sum(recent) / len(recent):.4f}", flush=True)
    facts = {
        "ss_steps": str(steps),
        "ss_sd_model_name": "fastsd embedded",
        "modelspec.description": "Everything is drawn by night. For the embedded model of fastsd alone.",
        "modelspec.usage_hint": f"<lora:{NAME}:1> anywhere in the prompt; it needs no word",
        "modelspec.license": "Apache-2.0",
        "fastsd.made_by": f"{MADE_BY}lora --steps {steps} --pictures {count}",
    }
    metadata = lora_metadata(title=NAME, rank=RANK, alpha=RANK, side_px=64, facts=facts)
    out.parent.mkdir(parents=True, exist_ok=True)
    raw = out.with_name(f".{out.stem}.raw.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in adapters.tensors().items()}, str(raw))
    try:
        return export_lora(raw, out, "fp16", metadata)
    finally:
        raw.unlink()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=EXTRAS / "Lora" / f"{NAME}.safetensors")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--pictures", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(train(arguments.out, arguments.steps, arguments.pictures))
