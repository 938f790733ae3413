"""What it costs when threads that wait spin for long (environment/threads.py).

    python3 -m fastsd_lib benchmark threads [--seconds 6] [--rounds 3]

The embedded U-Net's forward, eight pictures at once, on all cores: alone, and beside a program that keeps one core busy.
Each cell is the median of rounds that take turns; trust the ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

from fastsd_lib.environment.threads import SPINS

PROGRAM = """
import sys, time, torch
from fastsd_lib.formats.parts import load_parts
from fastsd_lib.workflows import dreambooth
unet = load_parts(dreambooth.base_model(), torch.device("cpu"), torch.float32).unet
noisy, states = torch.randn(8, 4, 16, 16), torch.randn(8, 77, 128)
torch.set_num_threads(int(sys.argv[2]))
seconds, done = float(sys.argv[1]), 0
with torch.inference_mode():
    unet(noisy, 500, states)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        unet(noisy, 500, states)
        done += 8
print(done / (time.perf_counter() - start))
"""
CORES = os.cpu_count() or 1
WAYS = {
    f"{CORES} threads, libgomp's own way": (CORES, {}),
    f"{CORES} threads, spinning briefly": (CORES, {"GOMP_SPINCOUNT": SPINS}),
    f"{CORES} threads, sleeping at once": (CORES, {"OMP_WAIT_POLICY": "PASSIVE"}),
    "1 thread": (1, {}),
}


def _pictures_per_s(seconds: float, threads: int, settings: dict[str, str]) -> float:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", PROGRAM, str(seconds), str(threads)]
    return float(
        subprocess.run(command, env=clean | settings, capture_output=True, text=True, check=True).stdout
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="fastsd benchmark threads", description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    print(f"U-Net forwards in pictures per second, load {os.getloadavg()[0]:.1f} on {CORES} cores")
    for label in ("alone", "beside a busy program"):
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if label != "alone" else None
        try:
            for _ in range(options.rounds):
                for way, (threads, settings) in WAYS.items():
                    found[way].append(_pictures_per_s(options.seconds, threads, settings))
        finally:
            if busy:
                busy.kill()
        first = statistics.median(next(iter(found.values())))
        for way, values in found.items():
            middle = statistics.median(values)
            print(f"  {label:<22} {way:<30} {middle:7.1f}   {middle / first:5.2f}x", flush=True)
    return 0
