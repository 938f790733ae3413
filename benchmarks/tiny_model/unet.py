"""The U-Net: epsilon prediction, min-SNR 5 (Hang et al. 2023, arXiv 2303.09556), 10 % empty captions, EMA."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.tiny_model.pictures import SIDE, as_tensor, pictures_of
from benchmarks.tiny_model.team import Budget, Team, fit
from benchmarks.tiny_model.text import build_text_encoder, load_tokenizer, tokens_of
from benchmarks.tiny_model.vae import SCALING_FACTOR, build_vae


def build_unet() -> nn.Module:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIDE // 4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96, 160),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def cache_for_unet(work: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scaled latents (N, 4, 16, 16), text states of the distinct captions, "" first, (C, 77, 128), caption rows (N,)."""
    place = work / "unet_cache.pt"
    if not place.exists():
        vae = build_vae().eval()
        vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True))
        tokenizer = load_tokenizer(work)
        text = build_text_encoder(tokenizer).eval()
        text.load_state_dict(torch.load(work / "text.pt", weights_only=True))
        captions = json.loads((work / "model.captions.json").read_text())
        distinct = ["", *sorted(set(captions))]
        row = {caption: i for i, caption in enumerate(distinct)}
        pictures = pictures_of(work, "model")
        with torch.no_grad():
            latents = torch.cat(
                [
                    vae.encode(as_tensor(pictures[i : i + 64])).latent_dist.mode()
                    for i in range(0, len(pictures), 64)
                ]
            )
            states = torch.cat(
                [text(input_ids=part).last_hidden_state for part in tokens_of(tokenizer, distinct).split(64)]
            )
        torch.save(
            (latents * SCALING_FACTOR, states, torch.tensor([row[c] for c in captions])),
            work / "unet_cache.tmp",
        )
        os.replace(work / "unet_cache.tmp", place)
    return torch.load(place, weights_only=True, mmap=True)


def train_unet(team: Team, work: Path, budget: Budget) -> None:
    if team.rank == 0:
        cache_for_unet(work)
    if team.size > 1:
        dist.barrier()
    latents, states, captions = cache_for_unet(work)
    torch.manual_seed(0)
    unet = build_unet()
    if (work / "unet_start.pt").exists():
        unet.load_state_dict(torch.load(work / "unet_start.pt", weights_only=True))
    torch.manual_seed(team.rank + 100)
    kept = (
        torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
        .square()
        .neg()
        .add(1)
        .cumprod(0)
        .float()
    )
    weight = ((kept / (1 - kept)).clamp(max=5) / (kept / (1 - kept))).float()  # min-SNR 5 for epsilon
    batch = 16
    draw = team.batches(len(latents), batch)

    def loss_of(step: int) -> torch.Tensor:
        rows = torch.from_numpy(next(draw))
        clean = latents[rows]
        text_rows = torch.where(torch.rand(batch) < 0.1, torch.zeros(batch, dtype=torch.long), captions[rows])
        t = (
            (torch.arange(batch) + torch.rand(batch)) / batch * 1000
        ).long()  # stratified: every batch sees the whole range
        t = t[torch.randperm(batch)]
        noise = torch.randn_like(clean)
        a = kept[t][:, None, None, None]
        predicted = unet(a.sqrt() * clean + (1 - a).sqrt() * noise, t, states[text_rows], return_dict=False)[
            0
        ]
        return ((predicted - noise).square().mean((1, 2, 3)) * weight[t]).mean()

    def snapshot(average: dict[str, torch.Tensor], step: int) -> None:
        torch.save(average, work / "unet_snapshot.tmp")
        os.replace(work / "unet_snapshot.tmp", work / "unet_snapshot.pt")

    average = fit(
        team,
        "unet",
        unet,
        loss_of,
        steps=budget.unet_steps,
        minutes=budget.unet_minutes,
        rate=1.2e-3,
        ema=0.9985,
        snapshot=snapshot,
    )
    if team.rank == 0:
        torch.save(average, work / "unet.pt")
