"""Trains the embedded base model from nothing: pictures, VAE, text encoder, judge, U-Net, package data.

    python3 -m benchmarks.tiny_model.train --work build/tiny

One command, resumable stage by stage (a finished stage left its file in `--work`). The stages, and why in
this order (measured: trained jointly from scratch the same network reached 14 % instead of over 90 %):

1. render   pictures with captions; separate seeds for the model, the judge and the test split
2. vae      AutoencoderKL, f=4; latents normalised per channel, folded into (post_)quant_conv
3. clip     the text encoder, by contrast with a small picture network (Radford et al. 2021, arXiv 2103.00020)
4. judge    the picture network, now classifying subject, colours and monster traits
5. unet     epsilon prediction, min-SNR 5 (Hang et al. 2023, arXiv 2303.09556), 10 % empty captions, EMA
6. photographs  the VAE once more, for sharpness and real photographs; latents of drawings are held
7. assemble fp16 diffusers folder into fastsd_lib/models/embedded

Each stage runs as one-thread processes that average gradients: on two loaded cores that is far faster than
one process with two threads.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.tiny_model.judging import train_judge
from benchmarks.tiny_model.package_data import assemble
from benchmarks.tiny_model.pictures import render
from benchmarks.tiny_model.team import Budget, Team
from benchmarks.tiny_model.text import train_clip
from benchmarks.tiny_model.unet import train_unet
from benchmarks.tiny_model.vae import train_photographs, train_vae

STAGES = {
    "vae": (train_vae, "vae.pt"),
    "clip": (train_clip, "text.pt"),
    "judge": (train_judge, "judge.pt"),
    "unet": (train_unet, "unet.pt"),
    "photographs": (train_photographs, "photographs.pt"),
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
        ("photographs", 9000, 20),
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
