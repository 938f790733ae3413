"""Conversion of full-size models, beside copying them and beside diffusers' scripts.

    python3 -m fastsd_lib benchmark convert [--models sd15,sdxl] [--where tmpfs,disk] [--rounds 3]
                                            [--diffusers CHECKOUT] [--folder DIR]
    python3 -m fastsd_lib benchmark convert --equality --diffusers CHECKOUT [--models sd15,sdxl]

Models of the shape of Stable Diffusion 1.5 (2.1 GB) and SDXL (6.9 GB) with random weights are made, converted in every
way in turn, and removed. Each way runs in a process of its own; its start and its imports count, and its memory is the
most it held. Of two runs in a row the second counts, and a ratio is the median of those within each round. All sources
are read once before, so that they lie in memory, as for `cp`. On a disk everything is shown twice: until the data is on
the disk (`cp` and fsync of each file; ours as it always is), and until the command ends (`cp` leaves the rest to the
kernel; so does ours then, for this comparison only).
Verification belongs to ours in every row; `cp` and diffusers do not verify.

`--equality` compares instead: our single file with that of diffusers' script, our .ckpt as PyTorch reads it with our
.safetensors, and the folder with what becomes of it by way of a single file.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import _convert_cases as cases
from benchmarks._convert_equality import differences, folder_differences
from fastsd_lib.core.errors import UserError

LABELS = {"sd15": "SD 1.5", "sdxl": "SDXL"}
SIZES_GB = {"sd15": 2.14, "sdxl": 6.95}  # in fp16
_SHOWN = 12  # differences


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="sd15,sdxl", help="of sd15, sdxl")
    parser.add_argument("--where", default="tmpfs,disk", help="of tmpfs (/dev/shm), disk")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--diffusers", type=Path, metavar="CHECKOUT", help="a copy of diffusers' repository")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default: a temporary one")
    parser.add_argument("--equality", action="store_true", help="compare the results instead of the time")
    options = parser.parse_args(arguments)
    models = _chosen(options.models, cases.MODELS, "--models")
    places = _chosen(options.where, ("tmpfs", "disk"), "--where")
    if options.diffusers and not (options.diffusers / "scripts").is_dir():
        raise UserError(
            f"{options.diffusers} has no folder scripts.", fix="name a copy of diffusers' repository."
        )
    if options.equality:
        results = [_equality(model, options.folder, options.diffusers) for model in models]
        return 0 if all(results) else 1
    for place in places:
        for model in models:
            with _workplace(place, options.folder, SIZES_GB[model] * 2.1, f"{model} on {place}") as work:
                if work:
                    _speed(model, place, work, options.rounds, options.diffusers)
            if model == "sd15":
                need = SIZES_GB[model] * 2 * 2.1
                with _workplace(place, options.folder, need, f"{model} in fp32 on {place}") as work:
                    if work:
                        _casting(model, place, work, options.rounds, options.diffusers)
    return 0


def _speed(model: str, place: str, work: Path, rounds: int, checkout: Path | None) -> None:
    folder, file = work / "model", work / "out" / "model.safetensors"
    size = cases.make_model(model, folder)
    file.parent.mkdir()
    cases.measure(cases.ours("not counted", folder, file, fsync=False))
    cases.remove(file)
    for fsync in (False, True) if place == "disk" else (False,):
        given = [
            cases.cp(folder, work, fsync),
            cases.ours(".safetensors", folder, file, fsync),
            cases.ours(".safetensors, sha256", folder, work / "out" / "sha.safetensors", fsync, sha256=True),
            cases.ours(".ckpt", folder, work / "out" / "model.ckpt", fsync),
        ]
        if checkout and not fsync and _has_memory(place, SIZES_GB[model] * 1.2):
            theirs = work / "out" / "theirs.safetensors"
            given.append(cases.diffusers("diffusers .safetensors", checkout, model, folder, theirs))
            given.append(
                cases.diffusers("diffusers .ckpt", checkout, model, folder, theirs.with_suffix(".ckpt"))
            )
        _table(f"{LABELS[model]} fp16", place, size, fsync, given, folder, rounds)
    single = cases.ours(".safetensors", folder, file, fsync=False)
    cases.measure(single)
    family, bytes_, first, later = cases.identification(file, work / "sparse.safetensors")
    print(
        f"  identify {bytes_ / 1e9:.1f} GB ({family}): {first:.1f} ms the first time, {later:.1f} ms after\n"
    )
    cases.remove(folder)
    for fsync in (False, True) if place == "disk" else (False,):
        given = [
            cases.cp(file, work, fsync),
            cases.ours("file -> folder", file, work / "out" / "folder", fsync),
        ]
        _table(f"{LABELS[model]} fp16, single file", place, size, fsync, given, file, rounds)


def _casting(model: str, place: str, work: Path, rounds: int, checkout: Path | None) -> None:
    folder, out = work / "model", work / "out"
    size = cases.make_model(model, folder, "fp32")
    out.mkdir()
    for fsync in (False, True) if place == "disk" else (False,):
        given = [cases.cp(folder, work, fsync)]
        for dtype in ("fp16", "bf16"):
            target = out / f"{dtype}.safetensors"
            given.append(cases.ours(f"fp32 -> {dtype} .safetensors", folder, target, fsync, dtype))
        if checkout and not fsync and _has_memory(place, SIZES_GB[model] * 3.2):
            theirs = out / "theirs.safetensors"
            given.append(cases.diffusers("diffusers --half", checkout, model, folder, theirs, half=True))
        _table(f"{LABELS[model]} fp32", place, size, fsync, given, folder, rounds)


def _table(
    what: str,
    place: str,
    size: int,
    fsync: bool,
    given: list[cases.Case],
    source: Path,
    rounds: int,
) -> None:
    _read_once(source)
    spent = cases.take_turns(given, rounds, os.sync if place == "disk" else int, _tell)
    until = "" if place == "tmpfs" else ", until it is on the disk" if fsync else ", until the command ends"
    _tell("")
    print(f"{what}, {size / 1e9:.2f} GB, {place}{until} (median of {rounds})")
    print(f"  {'':<28}{'s':>8}{'x cp':>8}{'CPU s':>8}{'peak MB':>9}")
    copied = spent["cp -r"]
    for name, runs in spent.items():
        ratio = statistics.median(
            run.seconds / beside.seconds for run, beside in zip(runs, copied, strict=True)
        )
        seconds, cpu, peak = (
            statistics.median(getattr(run, what) for run in runs)
            for what in ("seconds", "cpu_seconds", "peak_mb")
        )
        print(f"  {name:<28}{seconds:8.2f}{ratio:8.2f}{cpu:8.2f}{peak:9.0f}", flush=True)
    print()


def _equality(model: str, given: Path | None, checkout: Path | None) -> bool:
    with _workplace("disk", given, SIZES_GB[model] * 3.1, f"{model} twice") as work:
        if not work:
            return False
        folder, file, again = work / "model", work / "ours.safetensors", work / "again"
        cases.make_model(model, folder)
        cases.measure(cases.ours("to a file", folder, file, fsync=False))
        same, lines = 0, []
        if checkout:
            theirs = work / "theirs.safetensors"
            cases.measure(cases.diffusers("diffusers", checkout, model, folder, theirs))
            same, lines = differences(file, theirs)
            theirs.unlink()
            _tell_differences(f"{LABELS[model]}: our file and that of diffusers' script", same, lines)
        ckpt = work / "ours.ckpt"
        cases.measure(cases.ours("to a .ckpt", folder, ckpt, fsync=False))
        count = cases.same_in_ckpt(ckpt, file)
        print(
            f"{LABELS[model]}: .ckpt of {ckpt.stat().st_size / 1e9:.1f} GB: {count} tensors are those of .safetensors"
        )
        ckpt.unlink()
        cases.measure(cases.ours("back to a folder", file, again, fsync=False))
        back, more = folder_differences(again, folder)
        _tell_differences(f"{LABELS[model]}: folder -> file -> folder", back, more)
        return not any("bits" in line for line in lines + more)


def _tell_differences(what: str, same: int, lines: list[str]) -> None:
    print(f"{what}: {same} tensors are the same bit for bit, {len(lines)} differences")
    for line in lines[:_SHOWN]:
        print(f"  {line}")
    if len(lines) > _SHOWN:
        print(f"  ... and {len(lines) - _SHOWN} more")


@contextmanager
def _workplace(place: str, given: Path | None, needed_gb: float, what: str) -> Iterator[Path | None]:
    """A folder that is gone in the end, or None with a line when there is no room for it."""
    parent = Path("/dev/shm") if place == "tmpfs" else given or Path(tempfile.gettempdir())
    if not parent.is_dir():
        print(f"{what}: left out, there is no folder {parent}.")
        yield None
        return
    free_gb = _free_gb(parent)
    if place == "tmpfs":
        free_gb = min(free_gb, _available_gb())
    if free_gb < needed_gb + 1:
        print(f"{what}: left out, it needs {needed_gb + 1:.0f} GB in {parent}; {free_gb:.0f} GB are free.")
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="fastsd-benchmark-", dir=parent) as work:
        yield Path(work)


def _free_gb(folder: Path) -> float:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize / 1e9


def _available_gb() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) / 1e6


def _has_memory(place: str, needed_gb: float) -> bool:
    """Whether diffusers' script, which holds the whole model, finds room beside the files in memory."""
    files_gb = needed_gb if place == "tmpfs" else 0.0  # its output
    enough = _available_gb() > needed_gb + files_gb + 0.5
    if not enough:
        print(f"(diffusers' script is left out: it needs {needed_gb + files_gb:.0f} GB of memory)")
    return enough


def _read_once(source: Path) -> None:
    buffer = bytearray(1 << 20)
    for path in [source] if source.is_file() else sorted(source.rglob("*")):
        if path.is_file():
            with path.open("rb", buffering=0) as handle:
                while handle.readinto(buffer):
                    pass


def _chosen(text: str, there: tuple[str, ...], option: str) -> list[str]:
    chosen = [word.strip() for word in text.split(",") if word.strip()]
    for word in chosen:
        if word not in there:
            raise UserError(f"{option} {word!r} is not there.", fix=f"take of: {', '.join(there)}.")
    return chosen


def _tell(line: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{line}")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
