"""The VAE: pictures to 4 x 16 x 16 latents of mean 0 and deviation 1, and back."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

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


def train_decoder(team: Team, work: Path, budget: Budget) -> None:
    """Sharpen the decoder alone, last: latents, and so the U-Net, are not touched by it."""
    pictures = pictures_of(work, "model")
    vae = build_vae()
    vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True))
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    draw = team.batches(len(pictures), 4)

    def loss_of(step: int) -> torch.Tensor:
        x = as_tensor(pictures[next(draw)])
        with torch.no_grad():
            latents = vae.encode(x).latent_dist.mode()
        return unlikeness(x, vae.decode(latents).sample)

    average = fit(
        team,
        "decoder",
        vae,
        loss_of,
        steps=budget.decoder_steps,
        minutes=budget.decoder_minutes,
        rate=1e-3,
        ema=0.998,
    )
    if team.rank == 0:
        vae.load_state_dict(average)
        team.log(f"decoder held-out PSNR {psnr(vae, as_tensor(pictures_of(work, 'test')[:512])):.2f} dB")
        torch.save(vae.state_dict(), work / "decoder.pt")


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
