"""The VAE: pictures to 4 x 16 x 16 latents of mean 0 and deviation 1, and back."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.tiny_model import world
from benchmarks.tiny_model.pictures import SIDE, as_tensor, pictures_of
from benchmarks.tiny_model.team import Budget, Team, fit

SCALING_FACTOR = 0.18215  # Stable Diffusion 1.x; loaders of single files assume it


def build_vae() -> nn.Module:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE,
        scaling_factor=SCALING_FACTOR,
    )


def train_vae(team: Team, work: Path, budget: Budget) -> None:
    pictures = pictures_of(work, "model")
    torch.manual_seed(0)
    vae = build_vae()
    torch.manual_seed(team.rank)
    draw = team.batches(len(pictures), 4)

    def loss_of(step: int) -> torch.Tensor:
        x = as_tensor(pictures[next(draw)])
        posterior = vae.encode(x).latent_dist
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return unlikeness(x, vae.decode(posterior.sample()).sample) + 1e-5 * kl

    average = fit(
        team, "vae", vae, loss_of, steps=budget.vae_steps, minutes=budget.vae_minutes, rate=2e-3, ema=0.998
    )
    if team.rank == 0:
        vae.load_state_dict(average)
        normalise_latents(vae, as_tensor(pictures[:1024]))
        test = as_tensor(pictures_of(work, "test")[:512])
        team.log(f"vae held-out PSNR {psnr(vae, test):.2f} dB")
        torch.save(vae.state_dict(), work / "vae.pt")


def unlikeness(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error, and the error of the edges, which keeps them sharp."""
    edges = sum((torch.diff(x, dim=d) - torch.diff(y, dim=d)).abs().mean() for d in (2, 3))
    return (x - y).abs().mean() + 2 * F.mse_loss(x, y) + 0.5 * edges


def train_photographs(team: Team, work: Path, budget: Budget) -> None:
    """The VAE once more, last: sharper, and for real photographs, of which the first stage saw few.

    Drawn pictures keep the latents that the U-Net has learned; photographs may find better ones.
    """
    pictures = pictures_of(work, "model")
    photographs = coloured_photographs(4000, seed=team.rank)
    vae, before = build_vae(), build_vae().requires_grad_(False)
    for one in (vae, before):
        one.load_state_dict(torch.load(work / "vae.pt", weights_only=True))
    draw, draw_photo = team.batches(len(pictures), 3), team.batches(len(photographs) * team.size, 3)

    def loss_of(step: int) -> torch.Tensor:
        drawn = as_tensor(pictures[next(draw)])
        x = torch.cat([drawn, as_tensor(photographs[next(draw_photo) // team.size])])
        latents = vae.encode(x).latent_dist.mode()
        with torch.no_grad():
            kept = before.encode(drawn).latent_dist.mode() * SCALING_FACTOR
        moved = F.mse_loss(latents[: len(drawn)] * SCALING_FACTOR, kept)
        return unlikeness(x, vae.decode(latents).sample) + 2 * moved

    average = fit(
        team,
        "photographs",
        vae,
        loss_of,
        steps=budget.photographs_steps,
        minutes=budget.photographs_minutes,
        rate=1e-3,
        ema=0.998,
    )
    if team.rank == 0:
        vae.load_state_dict(average)
        drawn = as_tensor(pictures_of(work, "test")[:512])
        photographs = as_tensor(coloured_photographs(256, seed=10_000))
        with torch.no_grad():
            old, new = (
                torch.cat([one.encode(part).latent_dist.mode() for part in drawn.split(64)]) * SCALING_FACTOR
                for one in (before, vae)
            )
        team.log(
            f"held-out PSNR {psnr(vae, drawn):.2f} dB, photographs {psnr(before, photographs):.2f} -> "
            f"{psnr(vae, photographs):.2f} dB, latents of drawings moved by {F.mse_loss(new, old).sqrt():.3f}"
        )
        torch.save(vae.state_dict(), work / "photographs.pt")


def coloured_photographs(count: int, seed: int) -> np.ndarray:
    """uint8 (count, 64, 64, 3): crops of the few real photographs there are, in any scale and colours."""
    rng = random.Random(f"photographs/{seed}")
    pictures = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for number in range(count):
        photos = world.PHOTOS if rng.random() < 0.6 else world.TEXTURES
        picture = np.asarray(world.draw_photo(rng, smallest=0.15, photos=photos)[0], np.float32)
        channels = rng.sample(range(3), 3) if rng.random() < 0.5 else range(3)
        gain = [rng.uniform(0.6, 1.35) for _ in range(3)]
        pictures[number] = (picture[:, :, list(channels)] * gain).clip(0, 255)
    return pictures


@torch.no_grad()
def normalise_latents(vae: nn.Module, x: torch.Tensor) -> None:
    """Give every latent channel mean 0 and deviation 1 after scaling, without changing what the VAE reconstructs."""
    mean = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(64)])
    shift, deviation = mean.mean((0, 2, 3)), mean.std((0, 2, 3))
    factor = 1 / (SCALING_FACTOR * deviation)  # new = (old - shift) * factor
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:4] *= factor[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - shift) * factor
    quant.bias[4:] += 2 * factor.log()  # the log-variance scales with it
    post.bias += (post.weight[:, :, 0, 0] * shift).sum(1)
    post.weight /= factor[None, :, None, None]


@torch.no_grad()
def psnr(vae: nn.Module, x: torch.Tensor) -> float:
    """Mean over pictures of 10 log10(1 / mse), pictures in [0, 1]."""
    errors = [
        ((vae.decode(vae.encode(part).latent_dist.mode()).sample.clamp(-1, 1) - part) / 2)
        .square()
        .mean((1, 2, 3))
        for part in x.split(64)
    ]
    return (-10 * torch.cat(errors).log10()).mean().item()
