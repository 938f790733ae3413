"""What a merge of two checkpoints costs in memory and time, beside doing it with whole state dicts.

    python3 -m fastsd_lib benchmark merging [--rounds 3]

Two files of Stable Diffusion 1.5's shape in half precision, 2 GB each, with random weights. Each way runs in a process
of its own; memory is the most that the process held (VmHWM of Linux), less what it held before it began. Both ways read the
same warm files; ours also reads its result back, and hashes both models for the recipe. A copy of one file on the same
disk is timed beside them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks._random_sd15 import save_random_sd15
from fastsd_lib.core.model_files import ModelFiles

WAYS = ("ours", "ours, no recipe", "whole state dicts", "copy")


def run_way(way: str, folder: Path) -> dict[str, float]:
    """In a process of its own: seconds and MiB."""
    import torch  # noqa: F401  its own memory counts for nobody
    from safetensors.torch import load_file, save_file

    from fastsd_lib.formats.merge import MergeConfig, merge

    a, b, out = (folder / f"{name}.safetensors" for name in ("a", "b", "out"))
    out.unlink(missing_ok=True)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: a child inherits its parent's
    before, began = _held_kib("VmRSS"), time.perf_counter()
    if way == "copy":
        shutil.copyfile(a, out)
    elif way == "whole state dicts":
        first, second = load_file(a), load_file(b)
        merged = {
            name: (0.7 * value.float() + 0.3 * second[name].float()).half()
            if value.is_floating_point()
            else value
            for name, value in first.items()
        }
        save_file(merged, out)
    else:
        models = [ModelFiles("sd1", "single_file", one) for one in (a, b)]
        merge(MergeConfig(models[0], out, models[1], multiplier=0.3, recipe="recipe" not in way))
    spent = time.perf_counter() - began
    most = _held_kib("VmHWM")
    return {"seconds": spent, "mib": (most - before) / 1024}


def _held_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.way:
        print(json.dumps(run_way(options.way, options.folder)))
        return 0
    with tempfile.TemporaryDirectory(prefix="fastsd-benchmark-") as scratch:
        folder = Path(scratch)
        _make_models(folder)
        spent: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(options.rounds):
            for way in WAYS:
                command = [sys.executable, "-m", "benchmarks.merging", "--way", way, "--folder", scratch]
                told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                spent[way].append(json.loads(told.splitlines()[-1]))
        size = (folder / "a.safetensors").stat().st_size
    print(f"two models of {size / 1e9:.2f} GB in fp16 (median of {options.rounds}; ways take turns)")
    theirs = {key: _median(spent["whole state dicts"], key) for key in ("seconds", "mib")}
    copied = _median(spent["copy"], "seconds")
    for way, runs in spent.items():
        seconds, mib = _median(runs, "seconds"), _median(runs, "mib")
        print(
            f"  {way:<20} {mib:8.0f} MiB ({mib / theirs['mib']:6.4f} of whole state dicts)"
            f"  {seconds:6.1f} s ({seconds / theirs['seconds']:.2f} of theirs, {seconds / copied:.1f} copies)"
        )
    return 0


def _median(runs: list[dict[str, float]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def _make_models(folder: Path) -> None:
    from fastsd_lib.formats.single_file import export_single_file

    model = save_random_sd15(folder / "sd15")
    export_single_file(ModelFiles("sd1", "diffusers", model), folder / "a.safetensors", dtype=None)
    shutil.copyfile(folder / "a.safetensors", folder / "b.safetensors")
    shutil.rmtree(folder / "sd15")


if __name__ == "__main__":
    sys.exit(main())
