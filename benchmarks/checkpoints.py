"""What checkpoints cost a training run, on the embedded model: time, waiting, memory.

    python3 -m fastsd_lib benchmark checkpoints [--pairs 10] [--saves 15] [--threads 1]

Three questions. How much longer does training take with a save every 50 steps than with none? Stretches of 50 steps
with a save and without alternate in one run. How long does training stand still for one save, beside accelerate's
`save_state` of the same weights and optimizer, and beside copying as many bytes in memory, which is the least it could
take? The three alternate, too. And how much memory do the buffers take? Every figure is a median: a busy machine
disturbs little.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fastsd_lib.core.config import load_config
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.progress import silent
from fastsd_lib.formats.parts import Parts, load_parts
from fastsd_lib.images.crop import find_crop
from fastsd_lib.images.instance import InstanceImage
from fastsd_lib.images.load import open_photo
from fastsd_lib.models.registry import EMBEDDED_FOLDER
from fastsd_lib.training import latents, trainer
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.training.objective import Objective
from fastsd_lib.training.run_log import METRICS
from fastsd_lib.training.saver import Saver
from fastsd_lib.training.stage_state import make_state, snapshot
from fastsd_lib.training.training_set import TrainingSet

EVERY = 50


@dataclass(frozen=True)
class Job:
    parts: Parts
    training_set: TrainingSet
    cache: latents.LatentCache
    config: DreamBoothConfig

    def run(self, unet_steps: int, save_every_steps: int) -> dict[int, float]:
        """Step -> when it was done, in seconds; a save that was due there comes after that."""
        config = replace(self.config, unet_steps=unet_steps, save_every_steps=save_every_steps)
        with tempfile.TemporaryDirectory(prefix="fastsd-benchmark-") as folder:
            trainer.train(
                load(),
                self.cache,
                self.training_set,
                config,
                run="benchmark",
                checkpoints=Path(folder) / "checkpoints",
                logs=Path(folder) / "logs",
            )
            lines = (Path(folder) / "logs" / METRICS).read_text().splitlines()
        return {line["step"]: line["time"] for line in map(json.loads, lines)}


def load() -> Parts:
    return load_parts(ModelFiles("sd1", "diffusers", EMBEDDED_FOLDER), torch.device("cpu"), torch.float32)


def make_job() -> Job:
    """The embedded recipe's U-Net stage; the photos stand for class images, which costs the same."""
    paths = sorted((EMBEDDED_FOLDER / "sample_photos" / "monster").glob("*.png"))
    recipe = load_config(DreamBoothConfig, EMBEDDED_FOLDER / "recipe.yaml")
    config = replace(recipe, text_encoder_steps=0, sample_every_steps=0)
    instances = tuple(InstanceImage(one, config.instance_prompt, find_crop(open_photo(one))) for one in paths)
    training_set = TrainingSet(instances, tuple(paths), config.class_prompt)
    parts = load()
    cache = latents.encode(parts.vae, training_set, config.resolution_px, config.flip)
    return Job(parts, training_set, cache, config)


def time_of_runs(job: Job, pairs: int) -> None:
    """Every other 50 steps begin with a save; those before and after them are what they are compared with."""
    at = job.run(2 * EVERY * pairs + 2 * EVERY, 2 * EVERY)
    spent = {first: at[first + EVERY] - at[first] for first in range(EVERY, max(at), EVERY)}
    ratios = []
    for first in range(2 * EVERY, max(at) - EVERY, 2 * EVERY):
        without = (spent[first - EVERY] + spent[first + EVERY]) / 2
        ratios.append(spent[first] / without)
        print(f"  {EVERY} steps with a save {spent[first]:.2f} s, without {without:.2f} s", flush=True)
    print(
        f"training with a save every {EVERY} steps: {statistics.median(ratios) - 1:+.1%} of the time without "
        f"(median of {len(ratios)}; bar <= +3 %)"
    )


def time_of_waiting(job: Job, times: int) -> None:
    from accelerate import Accelerator

    parts = load()
    (stage,) = trainer.stages_of(job.config)
    objective = Objective(parts, job.cache, job.training_set, job.config)
    objective.begin(stage, None)
    objective.freeze_text_encoder()
    state = make_state(stage, parts.unet, job.config, "cpu")
    objective.loss(stage, 0).backward()
    state.apply_gradients(1e-5)  # from here on the optimizer holds its two moments
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(state.trained, state.optimizer)
    size = snapshot(state, parts, {}, job.config, "cpu").size_bytes
    flat, kept = torch.ones(size // 4), torch.zeros(size // 4)
    with tempfile.TemporaryDirectory(prefix="fastsd-benchmark-") as scratch:
        folder = Path(scratch)
        saver = Saver(folder / "ours", "benchmark", 10_000, job.config, silent)
        numbers = iter(range(1, 10_000))

        def ours() -> None:
            state.step = next(numbers)
            saver.save(snapshot(state, parts, {}, job.config, "cpu"))

        ways: dict[str, Callable[[], object]] = {
            "fastsd, until training goes on": ours,
            "accelerate save_state": lambda: accelerator.save_state(str(folder / "theirs")),
            "one copy in memory": lambda: kept.copy_(flat),
        }
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(times + 1):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                spent[name].append(time.perf_counter() - start)
                saver.wait()  # the disk is idle when the next one begins
    accelerates = statistics.median(spent["accelerate save_state"][1:])
    print(
        f"training stands still for one save of {size / 1e6:.0f} MB (median of {times}; the first is apart):"
    )
    for name, seconds in spent.items():
        median = statistics.median(seconds[1:])
        print(
            f"  {name:<32} {median * 1e3:7.1f} ms   {median / accelerates:5.3f} of accelerate's"
            f"   (least {min(seconds) * 1e3:.1f} ms, first {seconds[0] * 1e3:.1f} ms)"
        )
    print("  bar <= 0.1 of accelerate's")


def peak_of_runs() -> None:
    found = {}
    for every in (0, 4):
        command = [sys.executable, "-m", "benchmarks.checkpoints", "--peak-with-saves-every", str(every)]
        ran = subprocess.run(
            command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
        )
        found[every] = int(ran.stdout.split()[-1])
    print(
        f"peak memory of a run: {found[0]} MiB without saves in its course, {found[4]} MiB with "
        f"({found[4] - found[0]:+d} MiB of buffers)"
    )


def print_peak(every: int) -> None:
    """In a process of its own: MiB at the peak of training, what came before it apart."""
    job = make_job()
    with suppress(OSError):  # of Linux: from here on VmHWM counts afresh
        Path("/proc/self/clear_refs").write_text("5")
    job.run(12, every)
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="fastsd benchmark checkpoints", description=__doc__)
    parser.add_argument("--pairs", type=int, default=10, help="of 50 steps with and 50 without a save")
    parser.add_argument("--saves", type=int, default=15, help="saves of each kind")
    parser.add_argument("--threads", type=int, default=1, help="of training; the disk's thread is another")
    parser.add_argument("--peak-with-saves-every", type=int, default=-1, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.peak_with_saves_every >= 0:
        print_peak(options.peak_with_saves_every)
        return 0
    job = make_job()
    time_of_waiting(job, options.saves)
    peak_of_runs()
    if options.pairs:
        time_of_runs(job, options.pairs)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
