"""Locks with hashes: what exactly gets installed, and how these files are made.

`locks/packages.txt` pins everything that any profile needs, once for all Pythons and systems (uv's universal
resolution: differences are markers). `locks/profiles.json` says which of its names a profile needs. torch stands apart,
because the same release comes as two builds:

- `locks/torch-default.txt`: torch as the package index has it, with its CUDA packages on Linux (several GB);
- `locks/torch-cpu.txt`: the `+cpu` build (190 MB), with the SHA-256 of the wheels that PyTorch publishes at
  https://download.pytorch.org/whl/cpu for Linux and Windows. macOS has one build only, in `torch-default.txt`.

`locks/uv.txt` pins the installer itself. `python3 -m fastsd_lib install --update-locks` writes all of them anew.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import sha256_file, write_json, write_text
from fastsd_lib.environment import markers, pip_settings, profiles
from fastsd_lib.environment.profiles import LOCKS

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA_ONLY = re.compile(r"triton|nvidia-.*|cuda-.*")  # what only the CUDA build of torch needs
OLDEST_PYTHON = "3.10"


@dataclass(frozen=True)
class Pin:
    """One line of a lock."""

    name: str  # normalised: "huggingface-hub"
    version: str
    marker: str = ""
    hashes: tuple[str, ...] = ()  # "sha256:..."

    @property
    def line(self) -> str:
        """As pip and uv read it, without its marker: it is written only where the marker holds."""
        return " ".join([f"{self.name}=={self.version}", *(f"--hash={digest}" for digest in self.hashes)])


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(text: str) -> list[Pin]:
    """The pins of a requirements file as `uv pip compile --generate-hashes` writes it."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        line = line.split(" #")[0].strip()
        if not line or line.startswith(("#", "-")):
            continue
        requirement, *hashes = re.split(r"\s+--hash=", line)
        pin, _, marker = requirement.partition(";")
        name, _, version = pin.partition("==")
        hashes = tuple(digest.strip() for digest in hashes)
        found.append(Pin(normalised(name.strip()), version.strip(), marker.strip(), hashes))
    return found


def read_lock(name: str) -> list[Pin]:
    return read_pins((LOCKS / f"{name}.txt").read_text(encoding="utf-8"))


def pins_for(profile: str, variables: dict[str, str], torch_build: str) -> list[Pin]:
    """What `profile` needs where `variables` hold; `torch_build` is "cpu" or "default"."""
    wanted = profiles.packages(profile)
    chosen = [pin for pin in read_lock("packages") if pin.name in wanted]
    if "torch" in wanted:
        chosen += read_lock(f"torch-{torch_build}")
    return [pin for pin in chosen if markers.holds(pin.marker, variables)]


# -- making the locks -------------------------------------------------------------------------------------------------


def update_locks(uv: Path, pyproject: Path, torch_version: str | None = None) -> None:
    """Resolve pyproject.toml anew and write every file of `locks/`.

    Only the plain package index is asked: hashes must be those of the public files, not of a local copy.
    """
    import tomllib  # Python 3.11+: whoever updates locks has one

    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    wanted = _requirements(project)
    torch_version = torch_version or read_lock("torch-cpu")[0].version.partition("+")[0]
    everything = [*wanted["all"], f"torch=={torch_version}"]
    resolved = _compile(uv, everything, "--generate-hashes")
    pins = read_pins(resolved)
    tail = [pin for pin in pins if CUDA_ONLY.fullmatch(pin.name)]
    torch = [pin for pin in pins if pin.name == "torch"]
    rest = [pin for pin in pins if pin not in tail and pin not in torch]

    with tempfile.TemporaryDirectory() as scratch:
        constraints = Path(scratch, "all.txt")
        constraints.write_text(resolved)
        table = {}
        for profile, requires in wanted.items():
            closure = read_pins(_compile(uv, requires, "--constraint", str(constraints)))
            names = sorted({pin.name for pin in closure if not CUDA_ONLY.fullmatch(pin.name)})
            table[profile] = {"requires": requires, "packages": names}
    cpu = _cpu_torch(torch_version)
    installer = read_pins(_compile(uv, ["uv"], "--generate-hashes"))

    LOCKS.mkdir(exist_ok=True)
    write_json(LOCKS / "profiles.json", table)
    _write_lock("packages", rest)
    _write_lock("torch-default", torch + tail)
    _write_lock("torch-cpu", [cpu])
    _write_lock("uv", installer)


def _requirements(project: dict) -> dict[str, list[str]]:
    """Direct requirements per profile; "fastsd[train,webui]" is spelled out."""
    extras = project["optional-dependencies"]
    wanted = {"core": list(project["dependencies"])}
    for profile in profiles.PROFILES[1:]:
        named: list[str] = []
        for requirement in extras[profile]:
            own = re.fullmatch(rf"{project['name']}\[(.*)\]", requirement)
            named += [one for extra in own[1].split(",") for one in extras[extra]] if own else [requirement]
        wanted[profile] = sorted({*wanted["core"], *named})
    return wanted


def _compile(uv: Path, requirements: Iterable[str], *options: str) -> str:
    index = pip_settings.read().index_url or "https://pypi.org/simple"
    command = [str(uv), "pip", "compile", "--universal", "--quiet", "--no-header", "--no-annotate"]
    command += ["--python-version", OLDEST_PYTHON, "--default-index", index, *options, "-"]
    with tempfile.TemporaryDirectory() as elsewhere:  # away from any pyproject.toml
        ran = subprocess.run(
            command, input="\n".join(requirements), capture_output=True, text=True, cwd=elsewhere, check=False
        )
    if ran.returncode:
        raise UserError(
            f"The requirements cannot be resolved:\n{ran.stderr.strip()}", fix="mend pyproject.toml."
        )
    return ran.stdout


def _cpu_torch(version: str) -> Pin:
    """The `+cpu` build with every published hash: the old lock's, the official index's, local wheels'."""
    name = f"torch-{version}+cpu-"
    known = {
        digest for pin in read_lock("torch-cpu") if pin.version == f"{version}+cpu" for digest in pin.hashes
    }
    try:
        with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=20) as answer:
            page = urllib.request.unquote(answer.read().decode())
        known |= {
            f"sha256:{digest}" for digest in re.findall(re.escape(name) + r"[^\"<]*#sha256=(\w{64})", page)
        }
    except OSError as error:
        print(f"{CPU_INDEX} cannot be reached ({error}): the hashes known so far are kept.")
    for folder in pip_settings.read().local_folders:
        known |= {f"sha256:{sha256_file(wheel)}" for wheel in folder.glob(f"{name}*.whl")}
    if not known:
        raise UserError(
            f"No CPU wheel of torch {version} is known.", fix=f"run it where {CPU_INDEX} can be reached."
        )
    return Pin("torch", f"{version}+cpu", "sys_platform != 'darwin'", tuple(sorted(known)))


def _write_lock(name: str, pins: list[Pin]) -> None:
    text = "# Generated by: python3 -m fastsd_lib install --update-locks\n"
    for pin in pins:
        marker = f" ; {pin.marker}" if pin.marker else ""
        text += (
            " \\\n    ".join([f"{pin.name}=={pin.version}{marker}", *(f"--hash={one}" for one in pin.hashes)])
            + "\n"
        )
    write_text(LOCKS / f"{name}.txt", text)


def as_requirements(pins: Iterable[Pin]) -> str:
    return "".join(pin.line + "\n" for pin in pins)
