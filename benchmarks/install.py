"""Installing, beside pip: `fastsd benchmark install [PROFILE]`.

Each figure stands beside pip's for the same set of packages, in the same run, from the same index: nothing to do, a
fresh machine (empty caches, no uv yet), and a wheelhouse without network. It takes some minutes and about 6 GB of disk
in a temporary folder. Trust the ratios, and on a busy machine those of CPU time: load slows the longer run more.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.environment import bootstrap, locks, markers, profiles, wheelhouse

#: A closed port: what reaches for the network here fails instead of helping.
NO_NETWORK = {
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_FIND_LINKS": "",
}


@dataclass(frozen=True)
class Spent:
    wall_s: float
    cpu_s: float


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fastsd benchmark install", description=__doc__)
    parser.add_argument("profile", nargs="?", default="train", choices=profiles.PROFILES)
    parser.add_argument(
        "--light", action="store_true", help="only import, doctor and nothing-to-do: some seconds"
    )
    options = parser.parse_args(argv)
    print(
        f"profile {options.profile}, {wheelhouse.here()}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    print(f"{'measure':<16}{'fastsd wall (CPU) s':>22}{'pip wall (CPU) s':>20}{'ratio (of CPU)':>16}   goal")
    _row("import", _import_time(), None, "about a millisecond")
    with tempfile.TemporaryDirectory() as scratch:
        if options.light:
            _light(options.profile, bootstrap.project_venv(), Path(scratch))
        else:
            _heavy(options.profile, Path(scratch))
    return 0


def _light(profile: str, venv: bootstrap.Venv, room: Path) -> None:
    ours = _median([*_fastsd("install", profile, "--venv", str(venv.path))])
    pip = _median([*_pip(venv, profile, room)], rounds=3)
    _row("nothing to do", ours, pip, "at most 0.5 s, at least 10x")
    _row("doctor", _median([*_fastsd("doctor")]), None, "at most 2 s")


def _heavy(profile: str, room: Path) -> None:
    ours, theirs = bootstrap.Venv(room / "ours"), bootstrap.Venv(room / "theirs")
    empty = {"UV_CACHE_DIR": str(room / "uv-cache"), "PIP_CACHE_DIR": str(room / "pip-cache")}
    fast = _spent([*_fastsd("install", profile, "--venv", str(ours.path))], empty)
    slow = _spent([sys.executable, "-m", "venv", "--without-pip", str(theirs.path)])
    slow = _sum(slow, _spent(_pip(theirs, profile, room), empty))
    _row("fresh machine", fast, slow, "at least 3x")
    _light(profile, ours, room)

    made = _spent([*_fastsd("install", profile, "--venv", str(ours.path), "--make-wheelhouse", str(room))])
    size = wheelhouse.archive_in(room, profile).stat().st_size >> 20
    _row("make wheelhouse", made, None, f"{size} MiB")
    shut = {
        **NO_NETWORK,
        "UV_CACHE_DIR": str(room / "uv-cache-2"),
        "PIP_CACHE_DIR": str(room / "pip-cache-2"),
    }
    again, pips = bootstrap.Venv(room / "again"), bootstrap.Venv(room / "pips")
    fast = _spent([*_fastsd("install", profile, "--venv", str(again.path), "--wheelhouse", str(room))], shut)
    started = time.perf_counter()
    with zipfile.ZipFile(wheelhouse.archive_in(room, profile)) as archive:
        archive.extractall(room / "unpacked")
    unpacked = time.perf_counter() - started
    slow = _sum(
        Spent(unpacked, unpacked), _spent([sys.executable, "-m", "venv", "--without-pip", str(pips.path)])
    )
    offline = [*_pip(pips, profile, room), "--no-index", "--find-links", str(room / "unpacked" / "wheels")]
    _row("wheelhouse", fast, _sum(slow, _spent(offline, shut)), "at least 4x")


def _fastsd(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "fastsd_lib", *arguments)


def _pip(venv: bootstrap.Venv, profile: str, room: Path) -> list[str]:
    """pip's command for the same packages, pinned alike, so that it need not search for versions."""
    wanted = room / "pins.txt"
    pins = locks.pins_for(profile, markers.environment(), bootstrap.torch_build(venv))
    wanted.write_text("".join(f"{pin.name}=={pin.version}\n" for pin in pins))
    command = [_with_pip(), "-m", "pip", "--python", str(venv.python), "install", "--quiet"]
    source = bootstrap.cpu_torch_source(venv)
    return [*command, *(["--extra-index-url", source] if source else []), "-r", str(wanted)]


def _with_pip() -> str:
    for python in (sys.executable, getattr(sys, "_base_executable", "")):
        if (
            python
            and subprocess.run(
                [python, "-m", "pip", "--version"], capture_output=True, check=False
            ).returncode
            == 0
        ):
            return python
    raise UserError("This comparison needs pip.", fix="sudo apt install python3-pip")


def _spent(command: list[str], surroundings: dict[str, str] | None = None) -> Spent:
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    ran = subprocess.run(
        command,
        cwd=bootstrap.REPOSITORY,
        env={**os.environ, **(surroundings or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if ran.returncode not in {0, 1}:  # 1: doctor found a fault
        raise UserError(f"{' '.join(command)} failed:\n{ran.stderr.strip()[-800:]}")
    return Spent(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def _median(command: list[str], rounds: int = 5) -> Spent:
    runs = [_spent(command) for _ in range(rounds)]
    return Spent(statistics.median(run.wall_s for run in runs), statistics.median(run.cpu_s for run in runs))


def _sum(first: Spent, second: Spent) -> Spent:
    return Spent(first.wall_s + second.wall_s, first.cpu_s + second.cpu_s)


def _import_time() -> Spent:
    """`import fastsd_lib` inside a running Python, without the start of that Python."""
    program = (
        "import time; start = time.perf_counter(); import fastsd_lib; print(time.perf_counter() - start)"
    )
    runs = [
        float(
            subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        )
        for _ in range(7)
    ]
    return Spent(statistics.median(runs), statistics.median(runs))


def _row(name: str, ours: Spent, pip: Spent | None, goal: str) -> None:
    theirs = f"{pip.wall_s:.1f} ({pip.cpu_s:.1f})" if pip else ""
    ratio = f"{pip.wall_s / ours.wall_s:.1f}x ({pip.cpu_s / ours.cpu_s:.1f}x)" if pip else ""
    print(
        f"{name:<16}{f'{ours.wall_s:.4g} ({ours.cpu_s:.4g})':>22}{theirs:>20}{ratio:>16}   {goal}", flush=True
    )
