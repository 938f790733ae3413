"""Trains the embedded base model from nothing: pictures, VAE, text encoder, judge, U-Net, package data.

    python3 -m benchmarks.tiny_model.train --work build/tiny

One command, resumable stage by stage (a finished stage left its file in `--work`). The stages, and why in
this order (measured: trained jointly from scratch the same network reached 14 % instead of over 90 %):

1. render   pictures with captions; separate seeds for the model, the judge and the test split
2. vae      AutoencoderKL, f=4; latents normalised per channel, folded into (post_)quant_conv
3. clip     the text encoder, by contrast with a small picture network (Radford et al. 2021, arXiv 2103.00020)
4. judge    the picture network, now classifying subject, colours and monster traits
5. unet     epsilon prediction, min-SNR 5 (Hang et al. 2023, arXiv 2303.09556), 10 % empty captions, EMA
6. decoder  the VAE's decoder once more, alone, for sharpness
7. assemble fp16 diffusers folder into fastsd_lib/models/embedded

Each stage runs as one-thread processes that average gradients: on two loaded cores that is far faster than
one process with two threads.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from benchmarks.tiny_model import world
from fastsd_lib.generation.judge import BELOW, Judge, labels_of

SPLITS = {"model": (36_000, 1), "judge": (20_000, 2), "test": (2_000, 3)}  # pictures, seed
SIDE = 64
PHOTO_SHARE = 0.06
SCALING_FACTOR = 0.18215  # Stable Diffusion 1.x; loaders of single files assume it
GUIDANCE_SCALE = 4.0  # what the model is best asked with, by its bars
PHOTO_BACKGROUNDS = (
    "green",
    "orange",
    "white",
    "blue",
    "gray",
)  # of the sample photos; the other seven are new contexts
UNKNOWN_WORDS = (
    "zwx",
    "ohwx",
    "xjy",
    "vrk",
)  # the model meets meaningless words, as real captions contain them


# ------------------------------------------------------------------ pictures


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


# ------------------------------------------------------------------ one loop for every stage


class Team:
    """Processes that train one network: they draw different batches and average their gradients."""

    def __init__(self, rank: int, size: int, log: Path) -> None:
        self.rank, self.size, self.log_path = rank, size, log
        torch.manual_seed(rank)

    def batches(self, count: int, batch: int) -> Iterator[np.ndarray]:
        """Endless index batches; every picture once per epoch over the whole team."""
        epoch = 0
        while True:
            order = np.random.default_rng(epoch).permutation(count)[self.rank :: self.size]
            for start in range(0, len(order) - batch + 1, batch):
                yield np.sort(order[start : start + batch])
            epoch += 1

    def average(self, parameters: list[nn.Parameter], extra: torch.Tensor) -> torch.Tensor:
        if self.size == 1:
            return extra
        flat = torch.cat([p.grad.reshape(-1) for p in parameters] + [extra])
        dist.all_reduce(flat)
        flat /= self.size
        offset = 0
        for p in parameters:
            p.grad.copy_(flat[offset : offset + p.numel()].view_as(p))
            offset += p.numel()
        return flat[offset:]

    def log(self, text: str) -> None:
        if self.rank == 0:
            with self.log_path.open("a") as handle:
                handle.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def fit(
    team: Team,
    name: str,
    module: nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    *,
    steps: int,
    minutes: float,
    rate: float,
    ema: float = 0.0,
    weight_decay: float = 0.01,
    snapshot: Callable[[dict[str, torch.Tensor], int], None] | None = None,
) -> dict[str, torch.Tensor]:
    """AdamW with warm-up and cosine down to nothing; ends after `steps` or `minutes`, whichever is nearer.

    Returns the EMA of the weights where `ema` > 0, else the weights.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    for p in parameters:  # every process starts from the first one's weights
        if team.size > 1:
            dist.broadcast(p.data, 0)
    optimizer = torch.optim.AdamW(
        parameters, lr=rate, weight_decay=weight_decay, betas=(0.9, 0.99), fused=True
    )
    average = {k: v.detach().clone() for k, v in module.state_dict().items()}
    started = last_log = last_snapshot = time.monotonic()
    progress, smooth = 0.0, None
    step = 0
    while progress < 1:
        now = time.monotonic()
        warm = min(1.0, (step + 1) / 150)
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        mine = max((step + 1) / steps, (now - started) / (60 * minutes))
        value, progress = team.average(parameters, torch.tensor([loss.item(), mine])).tolist()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        decay = min(ema, (1 + step) / (10 + step))
        for key, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                average[key].lerp_(tensor, 1 - decay)
            else:
                average[key].copy_(tensor)
        smooth = value if smooth is None else smooth * 0.98 + value * 0.02
        if now - last_log > 20:
            last_log = now
            team.log(
                f"{name} step {step} progress {progress:.3f} loss {smooth:.4f} {step / (now - started):.2f} steps/s"
            )
        if snapshot and team.rank == 0 and now - last_snapshot > 420:
            last_snapshot = now
            snapshot(average, step)
    team.log(f"{name} done: {step} steps in {(time.monotonic() - started) / 60:.1f} min, loss {smooth:.4f}")
    return average


# ------------------------------------------------------------------ VAE


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


# ------------------------------------------------------------------ text encoder


def build_tokenizer(work: Path) -> None:
    """A byte-level BPE of CLIP's kind over the world's captions: vocab.json and merges.txt."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    words = [
        "sks",
        "zwx",
        "ohwx",
        "xjy",
        "vrk",
        "style",
        "drawing",
        "picture",
        "photo",
        "real",
        "cartoon",
        "toy",
        "with",
        "and",
        "the",
    ]
    corpus = json.loads((work / "model.captions.json").read_text()) + [" ".join(words)] * 400
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=900, end_of_word_suffix="</w>", special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # CLIP's order: bytes, bytes that end a word, merges, the two special tokens.
    vocab = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in learned["merges"]]
    vocab += ["".join(pair) for pair in merges]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    place = work / "tokenizer"
    place.mkdir(exist_ok=True)
    (place / "vocab.json").write_text(
        json.dumps({token: i for i, token in enumerate(dict.fromkeys(vocab))}, ensure_ascii=False)
    )
    (place / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "do_lower_case": True,
        "errors": "replace",
        "add_prefix_space": False,
    }
    (place / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    special = {key: config[key] for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
    (place / "special_tokens_map.json").write_text(json.dumps(special, indent=2))


def load_tokenizer(work: Path):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(work / "tokenizer")


def tokens_of(tokenizer, captions: list[str]) -> torch.Tensor:
    return tokenizer(
        captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids


def build_text_encoder(tokenizer) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            projection_dim=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train_clip(team: Team, work: Path, budget: Budget) -> None:
    """Text and picture of one pair agree, those of different pairs do not; the picture side also classifies."""
    pictures, labels = pictures_of(work, "model"), torch.from_numpy(np.load(work / "model.labels.npy"))
    captions = json.loads((work / "model.captions.json").read_text())
    if team.rank == 0:
        build_tokenizer(work)
    if team.size > 1:
        dist.barrier()
    tokenizer = load_tokenizer(work)
    ids = tokens_of(tokenizer, captions)
    torch.manual_seed(0)
    pair = nn.ModuleDict(
        {
            "text": build_text_encoder(tokenizer),
            "judge": Judge(),
            "text_head": nn.Linear(128, 128),
            "picture_head": nn.Linear(Judge.width, 128),
        }
    )
    pair["scale"] = nn.Linear(1, 1)  # its weight is the learned temperature
    pair["scale"].weight.data.fill_(math.log(10))
    draw = team.batches(len(pictures), 96)

    def loss_of(step: int) -> torch.Tensor:
        rows = next(draw)
        features = pair["judge"].features(as_tensor(pictures[rows]))
        longest = (
            int((ids[rows] != tokenizer.eos_token_id).sum(1).max()) + 1
        )  # causal: what follows the end changes nothing
        text = pair["text"](input_ids=ids[rows, :longest]).pooler_output
        a = F.normalize(pair["text_head"](text), dim=-1)
        b = F.normalize(pair["picture_head"](features), dim=-1)
        logits = pair["scale"].weight.exp().clamp(max=60).squeeze() * a @ b.T
        # Equal captions in a batch are not each other's negatives.
        same = torch.tensor([[captions[i] == captions[j] for j in rows] for i in rows], dtype=torch.float32)
        target = same / same.sum(1, keepdim=True)
        contrast = (
            -(target * logits.log_softmax(1)).sum(1).mean() - (target.T * logits.log_softmax(0)).sum(0).mean()
        )
        return contrast / 2 + pair["judge"].loss(features, labels[rows])

    average = fit(
        team, "clip", pair, loss_of, steps=budget.clip_steps, minutes=budget.clip_minutes, rate=2e-3, ema=0.99
    )
    if team.rank == 0:
        pair.load_state_dict(average)
        torch.save(pair["text"].state_dict(), work / "text.pt")
        torch.save(pair["judge"].state_dict(), work / "judge_start.pt")


# ------------------------------------------------------------------ judge


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


# ------------------------------------------------------------------ U-Net


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


# ------------------------------------------------------------------ package data


def assemble(work: Path, out: Path, unet_file: str = "unet.pt") -> None:
    """A diffusers folder in fp16 that StableDiffusionPipeline.from_pretrained loads, and the judge beside it."""
    import shutil

    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from safetensors.torch import save_file

    vae, unet = build_vae(), build_unet()
    tokenizer = load_tokenizer(work)
    text = build_text_encoder(tokenizer)
    vae_file = "decoder.pt" if (work / "decoder.pt").exists() else "vae.pt"
    for module, name in ((vae, vae_file), (unet, unet_file), (text, "text.pt")):
        module.load_state_dict(torch.load(work / name, weights_only=True))
    vae.half().save_pretrained(out / "vae")
    unet.half().save_pretrained(out / "unet")
    text.half().save_pretrained(out / "text_encoder")
    config = json.loads((out / "text_encoder" / "config.json").read_text())
    config["dtype"] = (
        "float32"  # or transformers computes in the half precision of the file, and diffusers does not
    )
    (out / "text_encoder" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.copytree(work / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(out / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.39.0",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (out / "fastsd.json").write_text(json.dumps({"guidance_scale": GUIDANCE_SCALE}, indent=2) + "\n")
    photos = out / "sample_photos" / "monster"
    photos.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(
        world.subject_pictures(5, seed=5, size_px=256, backgrounds=PHOTO_BACKGROUNDS), 1
    ):
        picture.save(photos / f"monster ({number}).png")
    judge = torch.load(work / "judge.pt", weights_only=True)
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in judge.items()},
        str(out / "judge.safetensors"),
    )


class Budget(argparse.Namespace):
    """Steps and minutes per stage; a stage ends with the one it reaches first."""


STAGES = {
    "vae": (train_vae, "vae.pt"),
    "clip": (train_clip, "text.pt"),
    "judge": (train_judge, "judge.pt"),
    "unet": (train_unet, "unet.pt"),
    "decoder": (train_decoder, "decoder.pt"),
}


def run_stage(rank: int, name: str, work: Path, size: int, budget: Budget, meeting: str) -> None:
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    STAGES[name][0](Team(rank, size, work / "log.txt"), work, budget)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/tiny"), help="scratch folder; finished stages are kept there"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[2] / "fastsd_lib" / "models" / "embedded"
    )
    parser.add_argument("--processes", type=int, default=min(os.cpu_count() or 1, 8))
    for stage, steps, minutes in (
        ("vae", 9000, 17),
        ("clip", 1500, 4.5),
        ("judge", 1500, 3.5),
        ("unet", 12000, 58),
        ("decoder", 9000, 4),
    ):
        parser.add_argument(f"--{stage}-steps", type=int, default=steps)
        parser.add_argument(f"--{stage}-minutes", type=float, default=minutes)
    budget = parser.parse_args(namespace=Budget())
    work: Path = budget.work
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "test.captions.json").exists():
        render(work)
    for name, (_, product) in STAGES.items():
        if not (work / product).exists():
            meeting = work.resolve() / f"meeting.{os.getpid()}.{name}"
            torch.multiprocessing.spawn(
                run_stage, (name, work, budget.processes, budget, str(meeting)), nprocs=budget.processes
            )
    assemble(work, budget.out)
    print(f"The embedded model stands in {budget.out}; what was done is in {work / 'log.txt'}.")


if __name__ == "__main__":
    main()
