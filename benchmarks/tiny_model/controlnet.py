"""Trains the embedded model's ControlNet on Canny's edges (Zhang et al. 2023, arXiv 2302.05543).

    python3 -m benchmarks.tiny_model.controlnet --work build/control [--minutes 35]
    python3 -m benchmarks.tiny_model.controlnet_bars       # what it is worth

Pictures of the small world, their captions (half of them empty, so that the edges alone must do), and the
edges of the very pictures. The U-Net is frozen; the encoder half of it is copied and its answers are added
through convolutions that begin at zero. The best average of the weights so far is kept as it goes.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.tiny_model import world
from benchmarks.tiny_model.pictures import PHOTO_SHARE, as_tensor
from benchmarks.tiny_model.team import Team, fit
from fastsd_lib.formats.parts import Parts, load_parts
from fastsd_lib.generation.canny import canny
from fastsd_lib.models.registry import base_model

OUT = Path(__file__).parents[2] / "fastsd_lib/models/embedded_extras/ControlNet/tiny_canny.safetensors"
BATCH = 16
SEED = 11  # no split of the model or its judge
EMPTY_SHARE = 0.5
HIGH_NOISE_WEIGHT = 10.0  # where shapes are decided, the error of the picture counts, up to so much
CONDITION_CHANNELS = (16, 32, 64)  # two halvings: the VAE's factor of 4


def build_controlnet(unet: nn.Module) -> nn.Module:
    """The U-Net's encoder half; its middle without attention, which saves a third of the file."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    whole = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=CONDITION_CHANNELS)
    small = ControlNetModel.from_config({**whole.config, "mid_block_type": "UNetMidBlock2D"})
    small.load_state_dict({k: v for k, v in whole.state_dict().items() if k in small.state_dict()})
    return small


def render(work: Path, parts: Parts, count: int) -> None:
    """Pictures (N, 64, 64, 3), their edges (N, 64, 64), latents (N, 4, 16, 16) and text states."""
    rng = random.Random(SEED)
    pictures, captions = [], []
    for _ in range(count):
        if rng.random() < PHOTO_SHARE:
            picture, caption, _ = world.draw_photo(rng)
        else:
            scene = world.random_scene(rng)
            picture, caption = world.draw(scene, rng), world.caption(scene, rng)
        pictures.append(np.asarray(picture))
        captions.append(caption)
    distinct = ["", *sorted(set(captions))]
    row = {caption: i for i, caption in enumerate(distinct)}
    with torch.no_grad():
        latents = torch.cat(
            [
                parts.vae.encode(as_tensor(np.stack(pictures[i : i + 64]))).latent_dist.mode()
                for i in range(0, count, 64)
            ]
        )
        tokens = parts.tokenizer(distinct, padding="max_length", max_length=77, return_tensors="pt").input_ids
        states = torch.cat([parts.text_encoder(part).last_hidden_state for part in tokens.split(64)])
    torch.save(
        {
            "edges": torch.from_numpy(np.stack([canny(picture) for picture in pictures])),
            "latents": latents * parts.vae.config.scaling_factor,
            "states": states,
            "captions": torch.tensor([row[caption] for caption in captions]),
        },
        work / "control_pictures.pt",
    )


def train(work: Path, out: Path, pictures: int, steps: int, minutes: float, rate: float) -> None:
    parts = load_parts(base_model("embedded"), torch.device("cpu"), torch.float32)
    unet = parts.unet.requires_grad_(False).eval()
    if not (work / "control_pictures.pt").exists():
        render(work, parts, pictures)
    data = torch.load(work / "control_pictures.pt", weights_only=True)
    torch.manual_seed(0)
    control = build_controlnet(unet).train()
    kept = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double().square().neg().add(1).cumprod(0).float()
    weight = 1 + ((1 - kept) / kept).clamp(max=HIGH_NOISE_WEIGHT)
    team = Team(0, 1, work / "log.txt")
    draw = team.batches(len(data["latents"]), BATCH)
    done = 0

    def loss_of(step: int) -> torch.Tensor:
        nonlocal done
        done = step + 1
        rows = torch.from_numpy(next(draw))
        clean = data["latents"][rows]
        edges = (data["edges"][rows].float() / 255)[:, None].expand(-1, 3, -1, -1)
        empty = torch.rand(BATCH) < EMPTY_SHARE
        texts = data["states"][data["captions"][rows].masked_fill(empty, 0)]
        t = ((torch.randperm(BATCH) + torch.rand(BATCH)) / BATCH * 1000).long()  # stratified
        noise = torch.randn_like(clean)
        a = kept[t][:, None, None, None]
        noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
        down, middle = control(noisy, t, texts, edges, return_dict=False)
        predicted = unet(
            noisy,
            t,
            texts,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
        return ((predicted - noise).square().mean((1, 2, 3)) * weight[t]).mean()

    def keep(average: dict[str, torch.Tensor], step: int) -> None:
        save(control, average, out, step)
        team.log(f"kept after {step} steps")

    average = fit(
        team,
        "controlnet",
        control,
        loss_of,
        steps=steps,
        minutes=minutes,
        rate=rate,
        ema=0.998,
        snapshot=keep,
    )
    keep(average, done)


def save(control: nn.Module, weights: dict[str, torch.Tensor], out: Path, steps: int) -> None:
    """One .safetensors in fp16 with diffusers' names; config and origin in its metadata."""
    from safetensors.torch import save_file

    from fastsd_lib.core.files import atomic_path

    metadata = {
        "format": "pt",
        "config": json.dumps({k: v for k, v in control.config.items() if not k.startswith("_use")}),
        "base_model": "embedded",
        "preprocessor": "canny",
        "license": "Apache-2.0",
        "recipe": "python3 -m benchmarks.tiny_model.controlnet",
        "training_steps": str(steps),
    }
    with atomic_path(out) as scratch:
        save_file({k: v.half().contiguous() for k, v in weights.items()}, str(scratch), metadata)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("build/control"), help="scratch folder")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--pictures", type=int, default=12_000)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--minutes", type=float, default=35)
    parser.add_argument("--rate", type=float, default=1e-3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.work.mkdir(parents=True, exist_ok=True)
    train(asked.work, asked.out, asked.pictures, asked.steps, asked.minutes, asked.rate)
    print(f"The ControlNet stands in {asked.out}; what was done is in {asked.work / 'log.txt'}.")


if __name__ == "__main__":
    main()
