"""One archive with everything a profile needs, so that a session restarts without the package index.

`fastsd-wheelhouse-PROFILE.zip` holds the wheels as they came from the index (uv's too), the lock they were chosen from
and `manifest.json` with the SHA-256 of each. One large file, because Drive is slow with many small ones. The archive is
trusted no more than the index: what is installed must still have the hash that the project's own lock names.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import CHUNK_BYTES, atomic_path, sha256_file
from fastsd_lib.core.progress import duration
from fastsd_lib.environment import bootstrap, failures, locks, markers
from fastsd_lib.environment.bootstrap import Say, Venv

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class House:
    """An archive, unpacked and checked."""

    folder: Path  # the wheels
    torch_build: str  # "cpu", "default", or "" if it holds no torch


def archive_in(folder: Path, profile: str) -> Path:
    return folder / f"fastsd-wheelhouse-{profile}.zip"


def here() -> str:
    """What the wheels were made for: interpreter version and system."""
    return f"Python {'.'.join(platform.python_version_tuple()[:2])}, {sys.platform} {platform.machine()}"


def make(profile: str, folder: Path, venv: Venv, say: Say, pins: list[locks.Pin] | None = None) -> Path:
    """Download what `profile` needs here (or only `pins`) and write the archive into `folder`."""
    started = time.monotonic()
    build = bootstrap.torch_build(venv)
    pins = locks.pins_for(profile, markers.environment(), build) if pins is None else pins
    pins = [*pins, *locks.read_lock("uv")]
    say(f"Downloading {len(pins)} wheels for {profile} ({here()}) ...")
    source = bootstrap.cpu_torch_source(venv) if build == "cpu" else ""
    with tempfile.TemporaryDirectory() as scratch:
        wheels = Path(scratch)
        apart = [pin for pin in pins if source and pin.name == "torch"]
        _download(apart, wheels, ["--index-url", source] if source else [])
        _download([pin for pin in pins if pin not in apart], wheels, [])
        archive = archive_in(folder, profile)
        try:
            _pack(archive, wheels, profile, build, pins)
        except OSError as error:
            raise failures.from_os_error(error, folder) from None
    size = archive.stat().st_size >> 20
    say(f"Wrote {archive} ({size} MiB) in {duration(time.monotonic() - started)}.")
    return archive


def _download(pins: list[locks.Pin], folder: Path, where: list[str]) -> None:
    """Fetch wheels as they are: uv keeps only unpacked ones, so this is pip's part."""
    if not pins:
        return
    wanted = folder / "pins.txt"
    wanted.write_text(locks.as_requirements(pins))
    command = [
        _python_with_pip(),
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    command += [
        "--only-binary",
        ":all:",
        "--require-hashes",
        *where,
        "-r",
        str(wanted),
        "--dest",
        str(folder),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    wanted.unlink()
    if ran.returncode:
        raise failures.explain(ran.stderr + ran.stdout, folder)


def _python_with_pip() -> str:
    """This Python, or the one that its environment was made from: environments made by uv have no pip."""
    for python in dict.fromkeys((sys.executable, getattr(sys, "_base_executable", sys.executable))):
        if (
            subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode
            == 0
        ):
            return python
    raise UserError("Making a wheelhouse needs pip in this Python.", fix="sudo apt install python3-pip")


def _pack(archive: Path, wheels: Path, profile: str, build: str, pins: list[locks.Pin]) -> None:
    files = sorted(wheels.glob("*.whl"))
    manifest = {
        "profile": profile,
        "made_for": here(),
        "torch_build": build if any(pin.name == "torch" for pin in pins) else "",
        "sha256": {wheel.name: sha256_file(wheel) for wheel in files},
    }
    with (
        atomic_path(archive) as scratch,
        zipfile.ZipFile(scratch, "w") as out,
    ):  # stored: wheels are compressed
        for wheel in files:
            out.write(wheel, f"wheels/{wheel.name}")
        out.writestr("lock.txt", locks.as_requirements(pins))
        out.writestr(MANIFEST, json.dumps(manifest, indent=2))


@contextmanager
def opened(folder: Path, profile: str, venv: Venv) -> Iterator[House]:
    """Unpack the archive beside `venv`, check every wheel, and clean up afterwards."""
    archive = archive_in(folder, profile)
    if not archive.is_file():
        there = ", ".join(sorted(path.name for path in folder.glob("fastsd-wheelhouse-*.zip"))) or "none"
        raise UserError(
            f"There is no {archive.name} in {folder} (wheelhouses there: {there}).",
            fix=f"with network: python3 -m fastsd_lib install {profile} --make-wheelhouse {folder}",
        )
    again = f"make it again: python3 -m fastsd_lib install {profile} --make-wheelhouse {folder}"
    try:
        venv.path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=venv.path) as scratch:
            with zipfile.ZipFile(archive) as stored:
                manifest = json.loads(stored.read(MANIFEST))
                if manifest["made_for"] != here():
                    raise UserError(
                        f"{archive.name} was made for {manifest['made_for']}; this is {here()}.", fix=again
                    )
                _unpack(stored, manifest["sha256"], Path(scratch), archive.name, again)
            yield House(Path(scratch), manifest["torch_build"])
    except (zipfile.BadZipFile, KeyError, EOFError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{archive} is not a whole wheelhouse ({error}). Nothing was installed.", fix=again
        ) from None
    except OSError as error:
        raise failures.from_os_error(error, venv.path) from None


def _unpack(stored: zipfile.ZipFile, hashes: dict[str, str], folder: Path, archive: str, again: str) -> None:
    listed = {f"wheels/{name}" for name in hashes}
    found = {name for name in stored.namelist() if name.startswith("wheels/")}
    for name in sorted(listed ^ found):
        raise UserError(
            f"{archive} and its manifest disagree about {name}. Nothing was installed.", fix=again
        )
    for name, expected in hashes.items():
        digest = hashlib.sha256()
        try:
            with stored.open(f"wheels/{name}") as source, (folder / Path(name).name).open("wb") as wheel:
                while chunk := source.read(CHUNK_BYTES):
                    digest.update(chunk)
                    wheel.write(chunk)
        except zipfile.BadZipFile:
            raise _changed(archive, name, again) from None
        if digest.hexdigest() != expected:
            raise _changed(archive, name, again)


def _changed(archive: str, wheel: str, again: str) -> UserError:
    return UserError(
        f"{wheel} in {archive} is damaged: its SHA-256 differs. Nothing was installed.", fix=again
    )
