"""The ways of conversion that `benchmark convert` compares, each a command, and what one run of a command costs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = {
    "sd15": "convert_diffusers_to_original_stable_diffusion.py",
    "sdxl": "convert_diffusers_to_original_sdxl.py",
}
MODELS = ("sd15", "sdxl")
# Ours, in a process of its own. A case without fsync leaves the disk to the kernel, as `cp` does.
OURS = """
import json, os, sys
given = json.loads(sys.argv[1])
if not given["fsync"]:
    os.fsync = os.posix_fadvise = lambda *given: None
from pathlib import Path
from fastsd_lib.formats.conversion import ConversionChoices, convert_model
choices = ConversionChoices(dtype=given["dtype"], sha256=given["sha256"])
convert_model(Path(given["source"]), Path(given["target"]), choices)
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""
# As users have it: compiled modules are kept (the first, unmeasured conversion writes them).
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
MAKE = """
import sys
from pathlib import Path
from benchmarks._random_sd15 import save_random_sd15
from benchmarks._random_sdxl import save_random_sdxl
{"sd15": save_random_sd15, "sdxl": save_random_sdxl}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])
"""
IDENTIFY = """
import json, statistics, sys, time
from pathlib import Path
from fastsd_lib.models.identify import identify
times = []
for _ in range(21):
    began = time.perf_counter()
    found = identify(Path(sys.argv[1]))
    times.append((time.perf_counter() - began) * 1000)
print(json.dumps([found.family, times[0], statistics.median(times[1:])]))
"""
# Whether a .ckpt is sound: checksums of the zip, PyTorch's safe reading of the mapped file, every bit of every tensor.
COMPARE = """
import sys, zipfile
import torch
from safetensors import safe_open
with zipfile.ZipFile(sys.argv[1]) as archive:
    assert archive.testzip() is None
weights = torch.load(sys.argv[1], map_location="cpu", weights_only=True, mmap=True)["state_dict"]
with safe_open(sys.argv[2], framework="pt") as other:
    assert set(other.keys()) == set(weights)
    for name, weight in weights.items():
        one, two = (tensor.reshape(-1).view(torch.uint8) for tensor in (weight, other.get_tensor(name)))
        assert torch.equal(one, two), name
print(len(weights))
"""


@dataclass(frozen=True)
class Case:
    """A command that writes `out`, timed as a whole."""

    name: str
    command: list[str]
    out: Path


@dataclass(frozen=True)
class Run:
    seconds: float
    cpu_seconds: float
    peak_mb: float  # the most memory the process held


def cp(source: Path, work: Path, fsync: bool) -> Case:
    """What everything else is compared with; `sync FILES` is fsync(2) of each, as ours does it."""
    out = work / "copy"
    command = ["cp", "-r", str(source), str(out)]
    if fsync:
        script = 'cp -r "$0" "$1" && find "$1" -type f -exec sync {} + && find "$1" -type d -exec sync {} +'
        command = ["sh", "-c", script, str(source), str(out)]
    return Case("cp -r", command, out)


def ours(
    name: str, source: Path, out: Path, fsync: bool, dtype: str | None = None, sha256: bool = False
) -> Case:
    given = {"source": str(source), "target": str(out), "fsync": fsync, "dtype": dtype, "sha256": sha256}
    return Case(name, [sys.executable, "-c", OURS, json.dumps(given)], out)


def diffusers(name: str, checkout: Path, model: str, source: Path, out: Path, half: bool = False) -> Case:
    """Their script as it is, with the packages that are installed here."""
    command = [sys.executable, str(checkout / "scripts" / SCRIPTS[model])]
    command += ["--model_path", str(source), "--checkpoint_path", str(out)]
    command += ["--use_safetensors"] * (out.suffix == ".safetensors") + ["--half"] * half
    return Case(name, command, out)


def make_model(model: str, folder: Path, dtype: str = "fp16") -> int:
    """Write a random one; returns its bytes. In a process of its own: ours stays small, so that peaks are right."""
    command = [sys.executable, "-c", MAKE, model, str(folder), dtype]
    subprocess.run(command, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(case: Case) -> Run:
    """Run it; a command that fails ends the benchmark with what it said. The output stays until `remove`.

    Memory is what the process says of itself at its end; of others what the kernel says, which is never less than
    what this process held when it started them (some 25 MB).
    """
    began = time.perf_counter()
    with subprocess.Popen(
        case.command,
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{case.name} failed:\n{said[-2000:]}")
    peak_kib = int(said) if said.strip().isdecimal() else used.ru_maxrss
    return Run(seconds, used.ru_utime + used.ru_stime, peak_kib / 1024)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def take_turns(
    cases: list[Case], rounds: int, settle: Callable[[], object], tell: Callable[[str], object]
) -> dict[str, list[Run]]:
    """Every case once in each round; `settle` before each: the disk has nothing else to write.

    Of two runs in a row the second counts. The host of a virtual machine may have taken the memory that it had free:
    the first run waits for it then, up to twice as long as for all its work, and whichever came before decides that.
    """
    spent: dict[str, list[Run]] = {case.name: [] for case in cases}
    for number in range(rounds):
        for case in cases:
            tell(f"round {number + 1} of {rounds}: {case.name}")
            for _ in range(2):
                remove(case.out)
                settle()
                try:
                    run = measure(case)
                finally:
                    remove(case.out)
            spent[case.name].append(run)
    return spent


def same_in_ckpt(ckpt: Path, file: Path) -> int:
    """How many tensors `ckpt` holds just as the .safetensors `file` does: all, or the benchmark ends here."""
    command = [sys.executable, "-c", COMPARE, str(ckpt), str(file)]
    told = subprocess.run(
        command, check=True, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True
    )
    return int(told.stdout)


def identification(file: Path, sparse: Path) -> tuple[str, int, float, float]:
    """Family, bytes, ms of the first call in a fresh process and of later ones, for a file that is all header.

    `sparse` gets the header of `file` and its size; the weights are a hole.
    """
    with file.open("rb") as source, sparse.open("wb") as out:
        start = source.read(8)
        out.write(start + source.read(int.from_bytes(start, "little")))
        out.truncate(file.stat().st_size)
    command = [sys.executable, "-c", IDENTIFY, str(sparse)]
    told = subprocess.run(
        command, check=True, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True
    ).stdout
    family, first, later = json.loads(told)
    size = sparse.stat().st_size
    sparse.unlink()
    return family, size, first, later
