"""`fastsd doctor`: what this machine has, what is broken, and one line to type per fault.

Everything is read from files and from the driver, so it takes a second at most; only `--deep` imports torch.
Exit status 0 if nothing is wrong, 1 if a fault was found.
"""

from __future__ import annotations

import csv
import ctypes
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from email.parser import HeaderParser
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.heap import physical_bytes
from fastsd_lib.environment import bootstrap, hosts, installed, locks, markers, profiles
from fastsd_lib.environment.bootstrap import Venv

LOW_DISK_MIB = 3000  # one SD 1.5 checkpoint with its optimizer does not fit in less
LOW_RAM_MIB = 3500


@dataclass(frozen=True)
class Finding:
    topic: str
    text: str
    fault: bool = False
    fix: str = ""  # what to type


def main(profile: str | None, *, fix: bool = False, as_json: bool = False, deep: bool = False) -> int:
    """Print the findings; 0 if all is well, 1 if not."""
    findings = examine(profile, deep=deep)
    if fix and any(one.fault for one in findings):
        _mend(profile, findings)
        findings = examine(profile, deep=deep)
    faults = [one for one in findings if one.fault]
    if as_json:
        print(json.dumps({"ok": not faults, "findings": [asdict(one) for one in findings]}, indent=2))
    else:
        for one in findings:
            mark = "FAULT" if one.fault else "" if one.fix else "ok"
            print(f"{mark:<5}  {one.topic:<9} {one.text}")
            if one.fix:
                print(f"{'':17}-> {one.fix}")
        print(f"{len(faults)} fault{'s' if len(faults) != 1 else ''} found." if faults else "All is well.")
    return 1 if faults else 0


def examine(profile: str | None = None, *, deep: bool = False) -> list[Finding]:
    """Look at everything; `profile` must be whole (default: every profile that was ever installed here)."""
    if profile is not None:
        profiles.check_profile(profile)
    venv = bootstrap.project_venv()
    folders = _package_folders(venv)
    found = [one for folder in folders for one in installed.read(folder)]
    findings = [*_place(venv), *_memory_and_disk(venv)]
    findings += _gpu_and_torch(folders, found)
    findings += _profiles(profile, venv, found)
    findings += [*_twice(found), *_broken(found), *_unmet(found, venv)]
    findings += [*_root(), *_programs()]
    if deep:
        findings += _imports(venv, profile)
    return findings


def _package_folders(venv: Venv) -> list[Path]:
    """Where packages are looked for: the project's environment, or this Python where there is none."""
    if venv.python_version:
        return [venv.packages]
    return [Path(place) for place in sys.path if place and Path(place).is_dir() and "-packages" in place]


def _place(venv: Venv) -> Iterator[Finding]:
    own = venv.python_version
    yield Finding("python", f"{own or platform.python_version()} ({venv.python if own else sys.executable})")
    yield Finding(
        "place", f"{hosts.which()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    )


def _memory_and_disk(venv: Venv) -> Iterator[Finding]:
    total, free = memory_mib()
    low = 0 < total < LOW_RAM_MIB
    yield Finding(
        "memory", f"{total} MiB, {free} MiB free", low, "close other programs; train LoRA" if low else ""
    )
    left = shutil.disk_usage(bootstrap.REPOSITORY).free >> 20
    low = left < LOW_DISK_MIB
    yield Finding(
        "disk",
        f"{left} MiB free at {bootstrap.REPOSITORY}",
        low,
        f"rm -r {venv.path / 'uv' / 'cache'} ~/.cache/uv ~/.cache/pip, or free some space" if low else "",
    )


def memory_mib() -> tuple[int, int]:
    """(total, available) memory; (0, 0) where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        values = {key: int(kib) >> 10 for key, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
        return values["MemTotal"], values["MemAvailable"]
    except (OSError, KeyError):
        return physical_bytes() >> 20, 0


# -- GPU ------------------------------------------------------------------------------------------------------------


def _gpu_and_torch(folders: list[Path], found: list[installed.Installed]) -> Iterator[Finding]:
    gpus, driver_cuda = gpus_and_driver()
    for gpu in gpus:
        yield Finding(
            "gpu", gpu + (f", driver for CUDA {driver_cuda[0]}.{driver_cuda[1]}" if driver_cuda else "")
        )
    if not gpus:
        silent = hosts.has_nvidia_gpu()
        yield Finding(
            "gpu",
            "a driver is loaded, but nvidia-smi does not answer"
            if silent
            else "no NVIDIA GPU: torch uses the CPU",
            silent,
            "nvidia-smi" if silent else "",
        )
    torch = next((one for one in found if one.name == "torch"), None)
    if torch is None:
        return
    built_for = torch_cuda(folders)
    name = f"{torch.version}, built for {'CUDA ' + built_for if built_for else 'the CPU'}"
    trouble, fix = torch_against_driver(built_for, driver_cuda, bool(gpus))
    yield Finding("torch", f"{name}{trouble}", bool(trouble), fix)


def torch_against_driver(
    built_for: str, driver_cuda: tuple[int, int] | None, has_gpu: bool
) -> tuple[str, str]:
    """(what is wrong, what to type), both empty if torch and driver go together.

    A driver runs every CUDA of its own major version and older ones, never a newer major (NVIDIA, "CUDA Compatibility").
    """
    if has_gpu and not built_for:
        return ", although a GPU is here", "python3 -m fastsd_lib install train --allow-replace torch"
    if built_for and driver_cuda and int(built_for.split(".")[0]) > driver_cuda[0]:
        return (
            f", newer than the driver's CUDA {driver_cuda[0]}.{driver_cuda[1]}",
            "update the NVIDIA driver, or: .venv/uv/bin/uv pip install --python .venv/bin/python --reinstall torch "
            "--index-url https://download.pytorch.org/whl/cu126",
        )
    return "", ""


def torch_cuda(folders: list[Path]) -> str:
    """The CUDA version that the installed torch was built for, from its version file; "" for a CPU build."""
    for folder in folders:
        try:
            text = (folder / "torch" / "version.py").read_text(encoding="utf-8")
        except OSError:
            continue
        build = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)", text, re.MULTILINE)
        return build[1] if build else ""
    return ""


def gpus_and_driver() -> tuple[list[str], tuple[int, int] | None]:
    """(["NVIDIA H200, 143771 MiB, driver 570.1"], (12, 8)) from nvidia-smi and the driver library."""
    gpus = []
    if shutil.which("nvidia-smi"):
        command = [
            "nvidia-smi",
            "--query-gpu=name,memory.total,driver_version",
            "--format=csv,noheader,nounits",
        ]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
        except (OSError, subprocess.TimeoutExpired):
            ran = None
        if ran is not None and ran.returncode == 0:
            for row in csv.reader(ran.stdout.splitlines(), skipinitialspace=True):
                gpus.append(f"{row[0]}, {row[1]} MiB, driver {row[2]}")
    with suppress(OSError, AttributeError):  # no such library: no driver
        library = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        version = ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value:
            return gpus, (version.value // 1000, version.value % 1000 // 10)
    return gpus, None


# -- packages -------------------------------------------------------------------------------------------------------


def _profiles(profile: str | None, venv: Venv, found: list[installed.Installed]) -> Iterator[Finding]:
    have = {one.name: one.version for one in found}
    expected = [profile] if profile else (bootstrap.noted_profiles(venv) if venv.python_version else [])
    if not expected and hosts.which() not in hosts.READY_MADE:
        yield Finding("packages", "nothing is installed yet", True, "python3 -m fastsd_lib install train")
    for name in profiles.PROFILES:
        lacking = []
        for requirement in profiles.requirements(name):
            package, floor = profiles.split(requirement)
            if package not in have:
                lacking.append(package)
            elif not markers.satisfies(have[package], floor):
                lacking.append(f"{package} {have[package]} (needs {floor})")
        more = f" and {len(lacking) - 4} more" if len(lacking) > 4 else ""
        text = f"{name}: " + (f"lacks {', '.join(lacking[:4])}{more}" if lacking else "complete")
        fault = bool(lacking) and name in expected
        yield Finding("packages", text, fault, f"python3 -m fastsd_lib install {name}" if lacking else "")


def _twice(found: list[installed.Installed]) -> Iterator[Finding]:
    """Two versions in one folder, or two packages that own the same module and overwrite each other."""
    seen: dict[tuple[str, Path], installed.Installed] = {}
    for one in found:
        other = seen.setdefault((one.name, one.folder.parent), one)
        if other is not one:
            yield Finding(
                "packages",
                f"{one.name} is there twice: {other.version} and {one.version}",
                True,
                f"rm -r '{min(other, one, key=lambda each: markers.version_key(each.version)).folder}'"
                f" && {_reinstall(one.name)}",
            )
    for shared, module in (("opencv-", "cv2"), ("onnxruntime", "onnxruntime")):
        names = sorted(
            {
                one.name
                for one in found
                if re.fullmatch(rf"{shared}(python|contrib).*|{shared}(-gpu)?", one.name)
            }
        )
        if len(names) > 1:
            yield Finding(
                "packages",
                f"{' and '.join(names)} overwrite each other's {module}",
                True,
                f"{_python()} -m pip uninstall -y {' '.join(names[:-1])} && {_reinstall(names[-1])}",
            )


def _broken(found: list[installed.Installed]) -> Iterator[Finding]:
    """Packages whose install was interrupted, or whose files are gone."""
    for one in found:
        record = one.folder / "RECORD"
        if not one.whole or not record.is_file():
            yield Finding(
                "packages", f"{one.name} {one.version} is half installed", True, _reinstall(one.name)
            )
            continue
        # The top of each package is enough to notice a deleted folder; reading all 60,000 files takes too long.
        files = [line.split(",")[0].strip('"') for line in record.read_text(encoding="utf-8").splitlines()]
        top = [name for name in files if name.count("/") <= 1 and name.endswith(".py")]
        lost = [name for name in top if not (one.folder.parent / name).exists()]
        if lost:
            text = f"{one.name} {one.version} has lost {len(lost)} files, {lost[0]} among them"
            yield Finding("packages", text, True, _reinstall(one.name))


def _unmet(found: list[installed.Installed], venv: Venv) -> Iterator[Finding]:
    """What `pip check` says: requirements of installed packages that are not met."""
    have = {one.name: one.version for one in found}
    variables = markers.environment(venv.python_version or None)
    for one in found:
        try:
            headers = HeaderParser().parsestr((one.folder / "METADATA").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            continue
        for requirement in headers.get_all("Requires-Dist") or ():
            name, floor, marker = _parts(requirement)
            try:
                if not markers.holds(marker, variables):
                    continue
            except (ValueError, KeyError):
                continue  # a marker beyond what our lock files use
            if name not in have:
                text = f"{one.name} {one.version} needs {name}, which is not there"
            elif not markers.satisfies(have[name], floor):
                text = f"{one.name} {one.version} needs {name}{floor}, but {have[name]} is there"
            else:
                continue
            yield Finding("packages", text, True, _reinstall(name))


def _parts(requirement: str) -> tuple[str, str, str]:
    """("urllib3", ">=1.21,<3", "extra == 'x'") of "urllib3[socks] (<3,>=1.21) ; extra == 'x'"."""
    before, _, marker = requirement.partition(";")
    found = re.match(r"\s*([A-Za-z0-9_.-]+)\s*(?:\[[^\]]*\])?\s*\(?([^)@]*)\)?", before)
    return locks.normalised(found[1]), found[2].strip(), marker


def _python() -> str:
    venv = bootstrap.project_venv()
    return str(venv.python) if venv.python_version else sys.executable


def _reinstall(name: str) -> str:
    if bootstrap.project_venv().python_version:
        return "python3 -m fastsd_lib doctor --fix"
    return f"{_python()} -m pip install --force-reinstall --no-deps {name}"


# -- the rest -------------------------------------------------------------------------------------------------------


def _root() -> Iterator[Finding]:
    """Whether sessions can be kept: a file is written, renamed and read back where they lie."""
    root = hosts.default_root()
    if hosts.which() == "colab" and hosts.mounted_drive() is None:
        mount = "from google.colab import drive; drive.mount('/content/drive')"
        yield Finding("drive", "not mounted: sessions are lost with this machine", True, mount)
    trouble = write_trouble(root)
    free = shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free >> 20
    fix = "python3 -m fastsd_lib session list --root DIR (a folder of your own)" if trouble else ""
    yield Finding("sessions", trouble or f"{root}, {free} MiB free", bool(trouble), fix)


def write_trouble(root: Path) -> str:
    """Why `root` cannot keep files, "" if it can. A root that does not exist yet is judged by its parent."""
    place = next(path for path in (root, *root.parents) if path.exists())
    first, second = place / f".fastsd-doctor-{os.getpid()}", place / f".fastsd-doctor-{os.getpid()}-renamed"
    try:
        first.write_bytes(b"fastsd")
        os.replace(first, second)
        return "" if second.read_bytes() == b"fastsd" else f"{place} does not keep what is written to it"
    except OSError as error:
        return f"{place} cannot be written: {error.strerror}"
    finally:
        for path in (first, second):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _programs() -> Iterator[Finding]:
    have = [name for name in ("ssh", "cloudflared", "ngrok", "node", "git") if shutil.which(name)]
    yield Finding("programs", f"found: {', '.join(have) or 'none of ssh, cloudflared, ngrok, node, git'}")


def _imports(venv: Venv, profile: str | None) -> Iterator[Finding]:
    """Really import what the profiles need, in the environment's own Python."""
    names = [profile] if profile else bootstrap.noted_profiles(venv) or ["core"]
    modules = sorted({module for name in names for module in profiles.SIGN_OF[name]})
    program = (
        "import importlib, json, sys\n"
        "said = {}\n"
        "for name in sys.argv[1:]:\n"
        "    try: said[name] = str(getattr(importlib.import_module(name), '__version__', ''))\n"
        "    except BaseException as error: said[name] = 'FAULT ' + repr(error)\n"
        "torch = sys.modules.get('torch')\n"
        "if torch: said['torch'] += ', CUDA ' + ('works' if torch.cuda.is_available() else 'is not in use')\n"
        "json.dump(said, sys.__stdout__)"
    )
    ran = subprocess.run([_python(), "-c", program, *modules], capture_output=True, text=True, check=False)
    try:
        said = json.loads(ran.stdout)
    except json.JSONDecodeError:
        last = (ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"])[-1]
        said = {"python": f"FAULT {last}"}
    for name, text in said.items():
        fault = text.startswith("FAULT")
        fix = f"python3 -m fastsd_lib install {names[0]}" if fault else ""
        yield Finding("import", f"{name} {text.removeprefix('FAULT ')}", fault, fix)


def _mend(profile: str | None, findings: list[Finding]) -> None:
    """What can be done without asking: complete and repair the project's own environment. A host's Python is left."""
    venv = bootstrap.project_venv()
    if not venv.python_version and hosts.which() in hosts.READY_MADE:
        raise UserError("This Python belongs to the host.", fix="type the lines that doctor prints.")
    for folder in _package_folders(venv) if venv.python_version else []:
        found = installed.read(folder)
        spoiled = [*_twice(found), *_broken(found), *_unmet(found, venv)]
        named = {word for one in spoiled for word in re.findall(r"[a-z0-9.-]+", one.text)}
        for one in found:
            if one.name in named:
                shutil.rmtree(one.folder, ignore_errors=True)
    for name in [profile] if profile else bootstrap.noted_profiles(venv) or ["train"]:
        bootstrap.ensure(name, venv, lambda line: print(line, file=sys.stderr))
