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

The bars that ours must not exceed stand beside the figures; exit status 1 when one is. Times have none in the tables
until the command ends: outside of this comparison our program always waits for the disk.

`--equality` compares instead: our single file with that of diffusers' script, our .ckpt as PyTorch reads it with our
.safetensors, and the folder with what becomes of it by way of a single file; exit status 1 for every difference that
is not explained.
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
from benchmarks._convert_equality import all_explained, differences, folder_differences, unexplained
from fastsd_lib.core.errors import UserError

LABELS = {"sd15": "SD 1.5", "sdxl": "SDXL"}
SIZES_GB = {"sd15": 2.14, "sdxl": 6.95}  # in fp16
RATIO_BARS = {".safetensors": 1.10, ".ckpt": 2.0, "fp32 -> ": 1.3}  # a row, or how its name begins; times cp
PEAK_BAR_MB = 64  # of every row of ours
IDENTIFY_BAR_MS = 50  # the first time
_OTHERS = ("cp", "diffusers")  # how the names of rows begin that are not ours
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
    exceeded: list[str] = []
    for place in places:
        for model in models:
            with _workplace(place, options.folder, SIZES_GB[model] * 2.1, f"{model} on {place}") as work:
                if work:
                    exceeded += _speed(model, place, work, options.rounds, options.diffusers)
            if model == "sd15":
                need = SIZES_GB[model] * 2 * 2.1
                with _workplace(place, options.folder, need, f"{model} in fp32 on {place}") as work:
                    if work:
                        exceeded += _casting(model, place, work, options.rounds, options.diffusers)
    for line in exceeded:
        print(f"Over the bar: {line}")
    return 1 if exceeded else 0


def _speed(model: str, place: str, work: Path, rounds: int, checkout: Path | None) -> list[str]:
    """Show the tables of a model; the bars that were exceeded, a line each."""
    folder, file = work / "model", work / "out" / "model.safetensors"
    size, exceeded = cases.make_model(model, folder), list[str]()
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
        exceeded += _table(f"{LABELS[model]} fp16", place, size, fsync, given, folder, rounds)
    single = cases.ours(".safetensors", folder, file, fsync=False)
    cases.measure(single)
    family, bytes_, first, later = cases.identification(file, work / "sparse.safetensors")
    print(
        f"  identify {bytes_ / 1e9:.1f} GB ({family}): {first:.1f} ms the first time (bar {IDENTIFY_BAR_MS}), "
        f"{later:.1f} ms after\n"
    )
    if first > IDENTIFY_BAR_MS:
        exceeded.append(f"{LABELS[model]} on {place}: identify takes {first:.1f} ms, bar {IDENTIFY_BAR_MS}")
    cases.remove(folder)
    for fsync in (False, True) if place == "disk" else (False,):
        given = [
            cases.cp(file, work, fsync),
            cases.ours("file -> folder", file, work / "out" / "folder", fsync),
        ]
        exceeded += _table(f"{LABELS[model]} fp16, single file", place, size, fsync, given, file, rounds)
    return exceeded


def _casting(model: str, place: str, work: Path, rounds: int, checkout: Path | None) -> list[str]:
    folder, out, exceeded = work / "model", work / "out", list[str]()
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
        exceeded += _table(f"{LABELS[model]} fp32", place, size, fsync, given, folder, rounds)
    return exceeded


def _table(
    what: str,
    place: str,
    size: int,
    fsync: bool,
    given: list[cases.Case],
    source: Path,
    rounds: int,
) -> list[str]:
    """Time the cases and show them; the bars that were exceeded, a line each."""
    _read_once(source)
    spent = cases.take_turns(given, rounds, os.sync if place == "disk" else int, _tell)
    until = "" if place == "tmpfs" else ", until it is on the disk" if fsync else ", until the command ends"
    title, exceeded = f"{what}, {size / 1e9:.2f} GB, {place}{until}", []
    _tell("")
    print(f"{title} (median of {rounds})")
    print(f"  {'':<28}{'s':>8}{'x cp':>8}{'':>10}{'CPU s':>8}{'peak MB':>9}")
    copied = spent["cp -r"]
    for name, runs in spent.items():
        ratio = statistics.median(
            run.seconds / beside.seconds for run, beside in zip(runs, copied, strict=True)
        )
        seconds, cpu, peak = (
            statistics.median(getattr(run, what) for run in runs)
            for what in ("seconds", "cpu_seconds", "peak_mb")
        )
        ratio_bar, peak_bar = bars(name, timed=place == "tmpfs" or fsync)
        shown = [f"bar {ratio_bar:.2f}" if ratio_bar else "", f"  bar {peak_bar}" if peak_bar else ""]
        print(
            f"  {name:<28}{seconds:8.2f}{ratio:8.2f}{shown[0]:>10}{cpu:8.2f}{peak:9.0f}{shown[1]}", flush=True
        )
        exceeded += [f"{title}: {line}" for line in bars_exceeded(name, ratio, peak, ratio_bar, peak_bar)]
    print()
    return exceeded


def bars(name: str, timed: bool) -> tuple[float, int]:
    """What the row may take, times cp, and the MB it may hold; 0: no bar. `timed`: whether times have one here."""
    if name.startswith(_OTHERS):
        return 0.0, 0
    found = (
        bar for row, bar in RATIO_BARS.items() if name == row or (row.endswith(" ") and name.startswith(row))
    )
    return next(found, 0.0) if timed else 0.0, PEAK_BAR_MB


def bars_exceeded(name: str, ratio: float, peak_mb: float, ratio_bar: float, peak_bar: int) -> list[str]:
    lines = []
    if ratio_bar and ratio > ratio_bar:
        lines.append(f"{name} takes {ratio:.2f} x cp, bar {ratio_bar:.2f}")
    if peak_bar and peak_mb > peak_bar:
        lines.append(f"{name} holds {peak_mb:.0f} MB, bar {peak_bar}")
    return lines


def _equality(model: str, given: Path | None, checkout: Path | None) -> bool:
    with _workplace("disk", given, SIZES_GB[model] * 3.1, f"{model} twice") as work:
        if not work:
            return False
        folder, file, again = work / "model", work / "ours.safetensors", work / "again"
        cases.make_model(model, folder)
        cases.measure(cases.ours("to a file", folder, file, fsync=False))
        lines: list[str] = []
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
        _tell_differences(f"{LABELS[model]}: folder -> file -> folder", back, more, model)
        return all_explained(model, lines, more)


def _tell_differences(what: str, same: int, lines: list[str], model: str | None = None) -> None:
    """`model`: whose explained differences are to be told apart."""
    wrong = unexplained(lines, model)
    print(
        f"{what}: {same} tensors are the same bit for bit, {len(lines)} differences, {len(wrong)} of them unexplained"
    )
    shown = wrong + [line for line in lines if line not in wrong]
    for line in shown[:_SHOWN]:
        print(f"  {line}")
    if len(shown) > _SHOWN:
        print(f"  ... and {len(shown) - _SHOWN} more")


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
