"""Every way to lose a checkpoint that we know of, tried on the real code: `python crash_survey.py PROBE [--without X]`.

Prints {"tried": n, "faults": [...], ...}. `--without` takes one safeguard out of the library's source first: then there
must be faults, or the probe would not see them in earnest either. A program of its own, so that it can fork without
torch and mutate without a trace.
"""

from __future__ import annotations

import argparse
import errno
import inspect
import json
import random
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

import crash  # noqa: E402
import lost_writes  # noqa: E402

from fastsd_lib.core import disk  # noqa: E402
from fastsd_lib.sessions import checkpoints, sealed_folder  # noqa: E402

RUN = "r" * 16
STEPS = (1, 2, 2)  # three saves in a row; the third is of a step that there is already, as after a resume
LARGE_WRITE_BYTES = 1024  # where each point is tried fourteen times over
SIZES = {"unet.safetensors": 2000, "optimizer.safetensors": 1500, "ema.safetensors": 1000}


def content(file: str, save: int) -> bytes:
    """Bytes that say of which save and file they are, at every place."""
    line = f"{file} of save {save}. ".encode()
    return (line * (SIZES[file] // len(line) + 1))[: SIZES[file]]


def save_and_prune(folder: Path, save: int, step: int) -> None:
    files = {name: lambda name=name: iter([content(name, save)]) for name in SIZES}
    checkpoints.write_checkpoint(
        folder,
        step=step,
        total_steps=9,
        stage="U-Net",
        run=RUN,
        files=files,
        facts={"save": save, "lr": 1e-05},
    )


def three_saves(folder: Path, announce: Callable[[str], Any]) -> None:
    for save, step in enumerate(STEPS):
        save_and_prune(folder, save, step)
        announce(str(step))
        checkpoints.prune(folder, RUN, keep_last=1)


def record(work: Callable[[Path, Callable[[str], Any]], None], folder: Path) -> list[crash.Call]:
    with crash.watching(crash.Recorder()) as recorder:
        work(folder / "checkpoints", recorder.mark)
    return recorder.calls


def fault(folder: Path, announced: Iterable[str], strict: bool) -> str:
    """What is wrong with what is left: empty, or a mix, damage that is not seen, something older than was announced.

    strict: what is sealed must be intact too (after a kill; a power cut may bring half-deleted ones back).
    """
    newest, _ = checkpoints.newest_intact(folder, RUN)
    if newest is not None:
        try:
            said = newest.facts["save"], newest.step
            found = {name: (newest.path / name).read_bytes() for name in SIZES}
        except (OSError, KeyError) as error:
            return f"{newest.path.name} was taken for intact: {error}"
        if said not in set(enumerate(STEPS)) or found != {name: content(name, said[0]) for name in SIZES}:
            return f"{newest.path.name} is a mix"
    last = max(map(int, announced), default=0)
    if (newest.step if newest else 0) < last:
        return f"step {last} was announced, {newest.path.name if newest else 'nothing'} is left"
    for one in checkpoints.list_checkpoints(folder) if strict else ():
        if damage := checkpoints.find_damage(one.path):
            return f"{one.path.name} is sealed, but {damage}"
    return ""


def fault_of_next_save(folder: Path) -> str:
    """Does work go on there, and is nothing unfinished left after it?"""
    checkpoints.clear_unfinished(folder)
    save_and_prune(folder, len(STEPS) - 1, STEPS[-1])
    checkpoints.prune(folder, RUN, keep_last=1)
    wrong = fault(folder, [str(STEPS[-1])], strict=True)
    left = sorted(path.name for path in folder.iterdir())
    return wrong or (f"left behind: {left}" if len(left) != 1 else "")


# -- probes: each returns {"tried": n, "faults": [...]} and what else is worth knowing -------------------------------


def kill(scratch: Path) -> dict[str, Any]:
    """SIGKILL in a forked child at every change of the disk, before, after and torn."""
    (scratch / "whole").mkdir()
    points = crash.points(record(three_saves, scratch / "whole"))
    faults = []
    for point in points:
        folder = scratch / "killed"
        folder.mkdir()
        said, killed = crash.kill_in_child(
            lambda announce, folder=folder: three_saves(folder / "checkpoints", announce),
            crash.Killer(point),
        )
        wrong = fault(folder / "checkpoints", said, strict=True) if killed else "was not killed"
        wrong = wrong or fault_of_next_save(folder / "checkpoints")
        faults += [f"{point}: {wrong}"] if wrong else []
        shutil.rmtree(folder)
    moments = {moment: sum(one.moment == moment for one in points) for moment in ("before", "after", "torn")}
    return {"tried": len(points), "faults": faults, **moments}


def _read_states(
    states: Iterable[tuple[list[Any], dict[str, bytes]]],
    folder: Path,
    judge: Callable[[list[Any]], list[Any]],
    scratch: Path,
) -> dict[str, Any]:
    """Each different state through the library's own eyes, in memory; every 50th a second time as real files."""
    seen, faults, refused, witnessed = set(), [], 0, 0
    real = disk.os
    for marks, state in states:
        key = hash((tuple(marks), frozenset(state.items())))
        if key in seen:
            continue
        seen.add(key)
        disk.os = lost_writes.MemoryOs(state)  # type: ignore[assignment]
        try:
            newest, lines = checkpoints.newest_intact(folder, RUN)
        finally:
            disk.os = real
        wrong = _fault_in_state(newest, state, judge(marks))
        faults += [wrong] if wrong else []
        refused += newest is None
        if len(seen) % 50 == 0:
            witnessed += 1
            if _as_real_files(state, folder, scratch) != (newest and newest.path.name, lines):
                faults.append("files on a real disk are read otherwise than in memory")
    return {"tried": len(seen), "faults": faults, "nothing to load": refused, "also on disk": witnessed}


def _fault_in_state(newest: Any, state: dict[str, bytes], announced: list[Any]) -> str:
    if newest is not None:
        save = newest.facts.get("save")
        found = {name: state.get(f"{newest.path}/{name}") for name in SIZES}
        if found != {name: content(name, save) for name in SIZES}:
            return f"{newest.path.name} is a mix"
    last = max(map(int, announced), default=0)
    if (newest.step if newest else 0) < last:
        return f"step {last} was safe, {newest.path.name if newest else 'nothing'} is left"
    return ""


def _as_real_files(state: dict[str, bytes], folder: Path, scratch: Path) -> tuple[Any, list[str]]:
    place = Path(tempfile.mkdtemp(dir=scratch))
    for path, data in state.items():
        file = place / Path(path).relative_to(folder.parent)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    newest, lines = checkpoints.newest_intact(place / folder.name, RUN)
    shutil.rmtree(place)
    return newest and newest.path.name, lines


def posix(scratch: Path) -> dict[str, Any]:
    """A power cut after every call: what was not synced is lost, halved or kept. Announced saves must be there."""
    states = lost_writes.posix_states(record(three_saves, scratch), str(scratch), draws=30, seed=1)
    return _read_states(states, scratch / "checkpoints", lambda marks: marks, scratch)


def cloud(scratch: Path) -> dict[str, Any]:
    """Drive shows any of the last three versions of each path, or none: nothing is promised but that no mix loads."""
    states = lost_writes.cloud_states(record(three_saves, scratch), str(scratch), draws=220, seed=2)
    return _read_states(states, scratch / "checkpoints", lambda marks: [], scratch)


def upload(scratch: Path) -> dict[str, Any]:
    """Twelve saves whose uploads lie up to five behind, deleted as confirmed: the newest confirmed one is always there."""
    rng = random.Random(3)
    folder = scratch / "checkpoints"
    uploaded: list[str] = []  # folder names, in order

    def states() -> Iterable[tuple[list[Any], dict[str, bytes]]]:
        waiting: list[Path] = []
        stale: dict[str, bytes] = {}
        for number in range(1, 13):
            files = {name: lambda name=name: iter([content(name, 0)]) for name in SIZES}
            facts = {"save": 0}
            saved = checkpoints.write_checkpoint(
                folder, step=number, total_steps=99, stage="U-Net", run=RUN, files=files, facts=facts
            )
            waiting.append(saved.path)
            while waiting and (len(waiting) > 5 or rng.random() < 0.2):
                uploaded.append(waiting.pop(0).name)
            checkpoints.prune(folder, RUN, 3, confirmed=lambda one: one.path.name in uploaded)
            there = {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
            safe = [str(int(uploaded[-1][5:]))] if uploaded else []
            for _ in range(300):
                state = {}
                for path, data in {**stale, **there}.items():
                    sure = Path(path).parent.name in uploaded and path in there
                    shown = data if sure else rng.choice([data, b"", None])
                    if shown is not None:
                        state[path] = shown
                yield safe, state
            stale = there  # what was deleted since may show for a while

    return _read_states(states(), folder, lambda safe: safe, scratch)


def errors(scratch: Path, names: Iterable[str] = tuple(crash.ERRNOS)) -> dict[str, Any]:
    """Each of seven errors at every call, reading ones too, once and for good: an OSError that names its file, no more."""
    (scratch / "whole").mkdir()
    with crash.watching(crash.Breaker(1 << 30, 0), LARGE_WRITE_BYTES):
        three_saves(scratch / "whole" / "checkpoints", lambda line: None)
        calls = disk.os._count  # type: ignore[attr-defined]
    faults, tried = [], 0
    for name in names:
        code = crash.ERRNOS[name]
        for number in range(calls):
            for for_good in (False, True):
                tried += 1
                folder = scratch / "broken" / "checkpoints"
                wrong = _break(crash.Breaker(number, code, for_good), folder)
                faults += [f"{name} at call {number}, for good: {for_good}: {wrong}"] if wrong else []
                shutil.rmtree(folder.parent)
    return {"tried": tried, "faults": faults, "calls": calls}


def _break(breaker: crash.Breaker, folder: Path) -> str:
    """Save three times as a trainer does, which goes on after an error; then the disk is well again."""
    announced: list[str] = []
    wrong = ""
    folder.parent.mkdir(parents=True)
    with crash.watching(breaker, LARGE_WRITE_BYTES):
        for save, step in enumerate(STEPS):
            try:
                save_and_prune(folder, save, step)
                announced.append(str(step))
                checkpoints.prune(folder, RUN, keep_last=1)
            except OSError as error:
                if not str(error.filename).startswith(str(folder.parent)) or not error.strerror:
                    wrong = f"{error!r} does not name its file"
    return (
        wrong
        or ("" if breaker.hits else "nothing broke")
        or fault(folder, announced, strict=True)
        or fault_of_next_save(folder)
    )


def full(place: Path) -> dict[str, Any]:
    """A real tmpfs of every size from two pages up to enough: no space at a different byte each time."""
    faults, full_disks, sizes = [], 0, range(8, 140, 4)
    for size_kib in sizes:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", place], check=True)
        folder, announced = place / "checkpoints", []
        for save, step in enumerate(STEPS):
            try:
                save_and_prune(folder, save, step)
                announced.append(str(step))
                checkpoints.prune(folder, RUN, keep_last=2)
            except OSError as error:
                full_disks += 1
                if error.errno != errno.ENOSPC or not str(error.filename).startswith(str(place)):
                    faults.append(f"{size_kib} KiB: {error!r}")
        wrong = fault(folder, announced, strict=True)
        subprocess.run(["mount", "-o", "remount,size=1m", place], check=True)
        wrong = wrong or fault_of_next_save(folder)
        faults += [f"{size_kib} KiB: {wrong}"] if wrong else []
        subprocess.run(["umount", place], check=True)
    return {"tried": len(sizes), "faults": faults, "full disks": full_disks}


def flips(scratch: Path) -> dict[str, Any]:
    """Every bit of the manifest, and 400 anywhere: each is found on open."""
    folder = scratch / "checkpoints"
    save_and_prune(folder, 0, 1)
    path = folder / "step_000001"
    rng = random.Random(4)
    files = sorted(file for file in path.iterdir())
    bits = [(path / "manifest.json", bit) for bit in range(8 * (path / "manifest.json").stat().st_size)]
    for _ in range(400):
        file = rng.choices(files, [one.stat().st_size for one in files])[0]
        bits.append((file, rng.randrange(8 * file.stat().st_size)))
    faults = []
    for file, bit in bits:
        whole = file.read_bytes()
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        found = checkpoints.find_damage(path) and checkpoints.newest_intact(folder, RUN)[0] is None
        faults += [] if found else [f"bit {bit} of {file.name} is not found"]
        file.write_bytes(whole)
    return {"tried": len(bits), "faults": faults}


def lies(scratch: Path) -> dict[str, Any]:
    """At each write in turn the disk says yes and stores something else: what is announced must be intact all the same."""
    writes = sum(call.name == "write" for call in record(three_saves, scratch / "whole"))
    faults = []
    for number in range(writes):
        folder, announced = scratch / f"{number}" / "checkpoints", []
        folder.parent.mkdir()
        with crash.watching(crash.Liar(number)):
            for save, step in enumerate(STEPS):
                try:
                    save_and_prune(folder, save, step)
                    announced.append(str(step))
                    checkpoints.prune(folder, RUN, keep_last=1)
                except OSError:
                    continue
        wrong = fault(folder, announced, strict=True)
        faults += [f"write {number}: {wrong}"] if wrong else []
    return {"tried": writes, "faults": faults}


PROBES = {one.__name__: one for one in (kill, posix, cloud, upload, errors, full, flips, lies)}

# -- safeguards, as edits of the source: (function, what stands there, what stands there without it) -------------------

SAFEGUARDS: dict[str, list[tuple[Any, str, str]]] = {
    "file fsync": [(disk.write_file, "os.fsync(handle)", "pass")],
    "folder fsync": [(disk.sync_folder, "os.fsync(handle)", "pass")],
    "seal": [
        (sealed_folder._seal_holds, "return seal == fingerprint(manifest) and text ==", "return True or")
    ],
    "seal of the text": [
        (sealed_folder._seal_holds, 'and text == _as_bytes({**manifest, "seal": seal})', "")
    ],
    "hashes": [(checkpoints._file_fault, "if size != facts[0] or (read and", "if False and (")],
    "read-back": [(sealed_folder._write_checked, "if disk.read_back(path) != written:", "if False:")],
    "new folder per save": [
        (sealed_folder._new_folder, "continue", "pass"),
        (disk.write_file, "os.O_EXCL", "os.O_TRUNC"),
    ],
    "manifest last": [
        (sealed_folder.write_sealed, "_delete_left_behind(folder)\n    path", "path"),
        (
            sealed_folder.write_sealed,
            "        for file, content in contents.items():",
            "        early = {f: [n := sum(map(len, c())), __import__('hashlib').sha256(b''.join(c())).hexdigest()]"
            " for f, c in contents.items()}\n"
            "        disk.write_file(path / MANIFEST, (_sealed(manifest_of(early)),))\n"
            "        for file, content in contents.items():",
        ),
        (sealed_folder.write_sealed, "        _write_checked(path / MANIFEST, (_sealed(manifest),))\n", ""),
    ],
    "delete rule": [(checkpoints.prune, "is_safe = confirmed or _is_proven", "is_safe = lambda one: True")],
    "manifest deleted first": [
        (
            sealed_folder.delete,
            "for file in manifests_in(path):",
            "for name in names:\n        disk.unlink(path / name) if name != BEGUN else None\n"
            "    for file in manifests_in(path):",
        )
    ],
    "begun.json deleted last": [
        (sealed_folder.delete, "if name != BEGUN:", "if True:"),
        (
            sealed_folder.delete,
            "disk.sync_folder(path)",
            "disk.unlink(path / BEGUN)\n    disk.sync_folder(path)",
        ),
    ],
}


def take_out(safeguard: str) -> None:
    """Edit the functions, as a careless maintainer would; AssertionError when the source has moved on."""
    sources: dict[Any, str] = {}
    for function, old, new in SAFEGUARDS[safeguard]:
        source = sources.get(function, textwrap.dedent(inspect.getsource(function)))
        assert old in source, f"{old!r} is no longer in {function.__name__}"
        sources[function] = source.replace(old, new)
    for function, source in sources.items():
        exec(
            compile(source, function.__code__.co_filename, "exec"), sys.modules[function.__module__].__dict__
        )


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("probe", choices=PROBES)
    words.add_argument("--without", choices=SAFEGUARDS)
    words.add_argument("--errors", nargs="+", choices=crash.ERRNOS, help="for the probe `errors`: only these")
    asked = words.parse_args()
    if asked.without:
        take_out(asked.without)
    scratch = Path(tempfile.mkdtemp(prefix="crash-survey-", dir=crash.quick_folder()))
    try:
        probe = PROBES[asked.probe]
        print(json.dumps(probe(scratch, asked.errors) if asked.errors else probe(scratch)))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
