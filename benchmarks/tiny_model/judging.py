"""The judge's training, on renders of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.tiny_model.pictures import as_tensor, pictures_of
from benchmarks.tiny_model.team import Budget, Team, fit
from benchmarks.tiny_model.vae import SCALING_FACTOR, build_vae
from fastsd_lib.generation.judge import Judge


def train_judge(team: Team, work: Path, budget: Budget) -> None:
    """Classify renders, half of them through the VAE and a little spoiled, so that a generator's blur is no surprise."""
    pictures, labels = pictures_of(work, "judge"), torch.from_numpy(np.load(work / "judge.labels.npy"))
    vae = build_vae().eval().requires_grad_(False)
    vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True))
    judge = Judge()
    judge.load_state_dict(torch.load(work / "judge_start.pt", weights_only=True))
    draw = team.batches(len(pictures), 48)

    def loss_of(step: int) -> torch.Tensor:
        rows = next(draw)
        return judge.loss(judge.features(spoil(as_tensor(pictures[rows]), vae)), labels[rows])

    average = fit(
        team,
        "judge",
        judge,
        loss_of,
        steps=budget.judge_steps,
        minutes=budget.judge_minutes,
        rate=1e-3,
        ema=0.99,
        weight_decay=0.05,
    )
    if team.rank == 0:
        judge.load_state_dict(average)
        torch.save(judge.state_dict(), work / "judge.pt")
        test = torch.from_numpy(np.load(work / "test.labels.npy"))
        shares = judge.accuracy(as_tensor(pictures_of(work, "test")), test)
        team.log("judge held-out " + json.dumps({k: round(v, 4) for k, v in shares.items()}))


@torch.no_grad()
def spoil(x: torch.Tensor, vae: nn.Module) -> torch.Tensor:
    quarter = len(x) // 4
    latents = vae.encode(x[:quarter]).latent_dist.mode()
    latents = latents + torch.randn_like(latents) * torch.rand(quarter, 1, 1, 1) * 0.3 / SCALING_FACTOR
    x = x.clone()
    x[:quarter] = vae.decode(latents).sample
    blurred = F.avg_pool2d(F.pad(x[quarter : 2 * quarter], (1, 1, 1, 1), mode="reflect"), 3, 1)
    x[quarter : 2 * quarter] = blurred
    contrast = 1 + (torch.rand(len(x), 1, 1, 1) - 0.5) * 0.2
    return (x * contrast + torch.randn_like(x) * torch.rand(len(x), 1, 1, 1) * 0.06).clamp(-1, 1)
