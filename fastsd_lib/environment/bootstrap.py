"""The project's own `.venv/`: made, filled from the locks, repaired. Standard library only.

uv does the work: it is fetched first (one wheel, pinned with its hash) by the pip of the running Python, or straight
from the package index where Python came without pip, as on Debian. Where uv has no wheel, pip installs the same pins.
A run that was killed is repaired by the next one: what is wholly there is kept, the rest is installed again.
"""

from __future__ import annotations

import hashlib
import html
import importlib.util
import io
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path, write_text
from fastsd_lib.core.progress import duration
from fastsd_lib.environment import failures, hosts, installed, locks, markers, pip_settings, profiles
from fastsd_lib.environment.locks import Pin

Say = Callable[[str], None]
REPOSITORY = Path(__file__).resolve().parents[2]
NEEDED_MIB = {"cpu": 2200, "default": 9000}  # a fresh "all" with each build of torch, measured


@dataclass(frozen=True)
class Venv:
    """A virtual environment of the project."""

    path: Path

    @property
    def python(self) -> Path:
        return self.path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def packages(self) -> Path | None:
        return installed.site_packages(self.path)

    @property
    def uv(self) -> Path:
        return self.path / "uv" / ("Scripts/uv.exe" if os.name == "nt" else "bin/uv")

    @property
    def python_version(self) -> str:
        """The version of its Python, "" if there is no working environment."""
        try:
            text = (self.path / "pyvenv.cfg").read_text(encoding="utf-8")
        except OSError:
            return ""
        found = re.search(r"^version(?:_info)?\s*=\s*(\d+\.\d+\.\d+)", text, re.MULTILINE)
        return found[1] if found and self.python.exists() and self.packages else ""

    @property
    def is_running(self) -> bool:
        """True inside this environment's own Python."""
        return Path(sys.prefix).resolve() == self.path.resolve()


def is_checkout() -> bool:
    """False where the package was installed by pip: then the Python it lies in is the one to use."""
    return (REPOSITORY / "pyproject.toml").is_file()


def project_venv() -> Venv:
    return Venv(REPOSITORY / ".venv")


def missing(venv: Venv, profile: str, *, build: str = "", replace: Collection[str] = ()) -> list[Pin]:
    """The pins of `profile` that `venv` does not have in exactly that version.

    A torch that is there and new enough stays, whatever its build and however it came, unless `replace` names it.
    """
    version = venv.python_version
    have = installed.versions(venv.packages) if version else {}
    for name in replace:
        have.pop(name, None)
    torch = have.get("torch", "")
    builds = {locks.read_lock(f"torch-{one}")[0].version: one for one in ("cpu", "default")}
    if not build:
        needs_torch = "torch" in profiles.packages(profile)
        build = builds.get(torch, "") or (torch_build(venv) if needs_torch and not torch else "default")
    wanted = locks.pins_for(profile, markers.environment(version or None), build)
    locked = next((pin.version for pin in wanted if pin.name == "torch"), torch)
    if torch and torch != locked and markers.satisfies(torch, profiles.floor("torch", profile)):
        wanted = [pin for pin in wanted if pin.name != "torch" and not locks.CUDA_ONLY.fullmatch(pin.name)]
    return [pin for pin in wanted if have.get(pin.name) != pin.version]


def meets_floors(venv: Venv, profile: str) -> bool:
    """True if `venv` has what the commands of `profile` ask for, be it in other versions than the lock's."""
    have = installed.versions(venv.packages) if venv.python_version else {}
    asked = map(profiles.split, profiles.requirements(profile))
    return all(name in have and markers.satisfies(have[name], floor) for name, floor in asked)


def torch_build(venv: Venv) -> str:
    """ "default" (CUDA on Linux) where an NVIDIA GPU is present or no CPU wheel can be had, else "cpu"."""
    if sys.platform == "darwin" or hosts.has_nvidia_gpu():
        return "default"
    return "cpu" if cpu_torch_source(venv) is not None else "default"


def cpu_torch_source(venv: Venv) -> str | None:
    """Where a CPU wheel of torch comes from: "" = where pip already looks, a URL = that index, None = nowhere."""
    pin = locks.read_lock("torch-cpu")[0]
    version = venv.python_version or platform.python_version()
    tag = "cp" + "".join(version.split(".")[:2])
    wheels = f"torch-{pin.version}-{tag}-{tag}-*{platform.machine().lower()}.whl"
    settings = pip_settings.read()
    if any(next(folder.glob(wheels), None) for folder in settings.local_folders):
        return ""
    if any("download.pytorch.org/whl/cpu" in url for url in (*settings.extra_index_urls, settings.index_url)):
        return ""
    return locks.CPU_INDEX if not settings.no_index and _answers(locks.CPU_INDEX + "/torch/") else None


def _answers(url: str) -> bool:
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=5, context=_tls()):
            return True
    except OSError:
        return False


def _tls() -> ssl.SSLContext:
    cert = pip_settings.read().cert
    return ssl.create_default_context(cafile=cert if cert and Path(cert).is_file() else None)


def ensure(
    profile: str,
    venv: Venv,
    say: Say,
    installer: str = "uv",
    *,
    replace: Collection[str] = (),
    wheels: Path | None = None,
    build: str = "",
) -> bool:
    """Make `venv` hold `profile`; False if there was nothing to do. UserError for whatever a user can mend.

    `wheels` is a folder that has everything (then the network is left alone), with torch's `build` in it.
    """
    started = time.monotonic()
    try:
        broken = installed.clear_broken(venv.packages)
        todo = missing(venv, profile, build=build, replace=replace)
        if not todo and venv.python_version:
            _open_door(venv, profile)
            return False
        if broken:
            say(f"Repairing an interrupted install ({', '.join(broken[:5])}).")
        _check_space(venv, todo)
        installer = make(venv, installer, wheels)
        todo = missing(venv, profile, build=build, replace=replace)
        why = _about_torch(next((pin for pin in todo if pin.name == "torch"), None))
        say(f"Installing {profile} into {venv.path}: {len(todo)} packages{why} ...")
        install(venv, todo, installer, wheels)
        _open_door(venv, profile)
    except OSError as error:
        raise failures.from_os_error(error, venv.path) from None
    if left := missing(venv, profile, build=build):
        names = ", ".join(pin.name for pin in left[:5])
        raise UserError(
            f"After the install, {names} are still missing.", fix=f"delete {venv.path} and run it again."
        )
    say(f"Installed {len(todo)} packages in {duration(time.monotonic() - started)}.")
    return True


def _about_torch(torch: Pin | None) -> str:
    """Why this build of torch, in brackets: it decides between 200 MB and several GB."""
    if torch is None or sys.platform == "darwin":
        return ""
    if torch.version.endswith("+cpu"):
        return " (torch for the CPU: no NVIDIA GPU here)"
    if hosts.has_nvidia_gpu():
        return " (torch with CUDA, several GB)"
    return f" (torch with CUDA, several GB, although there is no GPU: {locks.CPU_INDEX} cannot be reached)"


def _check_space(venv: Venv, todo: list[Pin]) -> None:
    """Refuse before the download what would fail after it: only torch is big enough to be worth asking."""
    torch = next((pin for pin in todo if pin.name == "torch"), None)
    place = next(path for path in (venv.path, *venv.path.parents) if path.exists())
    if torch is not None:
        needed = NEEDED_MIB["cpu" if torch.version.endswith("+cpu") else "default"]
        if shutil.disk_usage(place).free >> 20 < needed // 2:
            raise failures.disk_full(venv.path)


# -- the environment and its installer ----------------------------------------------------------------------------------


def make(venv: Venv, installer: str = "uv", wheels: Path | None = None) -> str:
    """Create `venv` if it does not work yet; returns the installer to use, "uv" or "pip"."""
    venv.path.mkdir(parents=True, exist_ok=True)
    (venv.path / ".writable").write_text("")  # a read-only place is found out here, not after a download
    (venv.path / ".writable").unlink()
    if installer == "uv" and not _works(venv.uv) and not fetch_uv(venv, wheels):
        installer = "pip"
    if venv.python_version:
        return installer
    if installer == "uv":
        options = ["venv", "--allow-existing", "--no-project", "--python", sys.executable, str(venv.path)]
        run([str(venv.uv), "--quiet", *options], venv)
    else:
        if importlib.util.find_spec("ensurepip") is None:
            raise no_pip()
        run([sys.executable, "-m", "venv", str(venv.path)], venv)
    return installer


def _works(uv: Path) -> bool:
    """True if uv is whole: a full disk or a kill can leave half of it."""
    try:
        return subprocess.run([uv, "--version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def no_pip() -> UserError:
    return UserError(
        f"This Python ({sys.executable}) has neither pip nor ensurepip, and uv could not be fetched.",
        fix="sudo apt install python3-venv python3-pip (Debian, Ubuntu), then run the same command again.",
    )


def fetch_uv(venv: Venv, wheels: Path | None = None) -> bool:
    """Put uv into the environment's folder; False if this system has no uv."""
    if wheels is not None:
        found = next(wheels.glob("uv-*.whl"), None)
        return found is not None and _unpack_uv(found.name, found.read_bytes(), venv)
    if importlib.util.find_spec("pip") is None:
        return _download_uv(venv)
    with tempfile.TemporaryDirectory(dir=venv.path) as scratch:
        wanted = Path(scratch, "uv.txt")
        wanted.write_text(locks.as_requirements(locks.read_lock("uv")))
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        command += ["--only-binary", ":all:", "--require-hashes", "--no-warn-script-location"]
        command += ["--target", str(venv.path / "uv"), "--upgrade", "-r", str(wanted)]
        ran = _run_quietly(command, venv)
    if ran.returncode == 0:
        return True
    if failures.NOT_FOUND.search(ran.stderr) and not failures.NO_NETWORK.search(ran.stderr):
        return False
    raise failures.explain(ran.stderr + ran.stdout, venv.path)


def _download_uv(venv: Venv) -> bool:
    """As pip would, for a Python without pip: the index page, then the wheel for this system."""
    index = (pip_settings.read().index_url or "https://pypi.org/simple").rstrip("/") + "/uv/"
    try:
        page = _get(index).decode()
        links = re.findall(r'<a[^>]*href="([^"]+)"[^>]*>\s*([^<]+?)\s*</a>', page)
        version = locks.read_lock("uv")[0].version
        fitting = [
            (link, name) for link, name in links if name.startswith(f"uv-{version}-") and _fits_here(name)
        ]
        if not fitting:
            return False
        link, name = fitting[0]
        wheel = _get(urllib.parse.urljoin(index, html.unescape(link)))
    except OSError as error:
        raise failures.explain(f"Failed to fetch `{index}` {error}", venv.path) from None
    return _unpack_uv(name, wheel, venv)


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60, context=_tls()) as answer:
        return answer.read()


def _unpack_uv(name: str, wheel: bytes, venv: Venv) -> bool:
    """Check a uv wheel against the lock and put its program in place."""
    if f"sha256:{hashlib.sha256(wheel).hexdigest()}" not in locks.read_lock("uv")[0].hashes:
        raise failures.explain(f"Hash mismatch for `{name}`", venv.path)
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        program = next(one for one in archive.namelist() if one.endswith(("/uv", "/uv.exe")))
        with atomic_path(venv.uv) as scratch:
            scratch.write_bytes(archive.read(program))
            scratch.chmod(0o755)
    return True


def _fits_here(wheel: str) -> bool:
    machine = platform.machine().lower()
    system = {"linux": "manylinux", "darwin": "macosx", "win32": "win"}.get(sys.platform, sys.platform)
    return machine in wheel and system in wheel


# -- installing -----------------------------------------------------------------------------------------------------------


def install(venv: Venv, pins: list[Pin], installer: str, wheels: Path | None = None) -> None:
    """Install exactly `pins`, each checked against its hashes; torch's CPU build from its own index if need be."""
    if wheels is not None:
        _install_some(venv, pins, installer, ["--no-index", "--find-links", str(wheels)])
        return
    settings = pip_settings.read().uv_options() if installer == "uv" else []
    source = cpu_torch_source(venv) if any(pin.version.endswith("+cpu") for pin in pins) else ""
    apart = [pin for pin in pins if source and pin.name == "torch"]
    if apart:
        _install_some(venv, apart, installer, ["--index-url", source])
    _install_some(venv, [pin for pin in pins if pin not in apart], installer, settings)


def _install_some(venv: Venv, pins: list[Pin], installer: str, where: list[str]) -> None:
    if not pins:
        return
    with tempfile.TemporaryDirectory(dir=venv.path) as scratch:
        wanted = Path(scratch, "pins.txt")
        wanted.write_text(locks.as_requirements(pins))
        options = [*where, "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(wanted)]
        if installer == "uv":
            run([str(venv.uv), "pip", "install", "--python", str(venv.python), *options], venv)
        else:
            pip = [str(venv.python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
            run([*pip, *options], venv)


def run(command: list[str], venv: Venv) -> None:
    """Run an installer; what it says in the end is explained if it fails."""
    error = attempt(command, venv)
    if error is not None:
        raise failures.explain(error, venv.path)


def attempt(command: list[str], venv: Venv) -> str | None:
    """Run an installer; None if it worked, else all that it wrote."""
    ran = _run_quietly(command, venv)
    return ran.stderr + ran.stdout if ran.returncode else None


def _run_quietly(command: list[str], venv: Venv) -> subprocess.CompletedProcess[str]:
    surroundings = {**os.environ, **pip_settings.read().uv_environment()}
    surroundings.pop("VIRTUAL_ENV", None)
    if "UV_CACHE_DIR" not in surroundings and not _writable(Path.home() / ".cache"):
        surroundings["UV_CACHE_DIR"] = str(venv.path / "uv" / "cache")
    with _clock():
        return subprocess.run(command, capture_output=True, text=True, env=surroundings, check=False)


@contextmanager
def _clock() -> Iterator[None]:
    """Seconds running on a terminal, so that a long download does not look like a dead program."""
    if not sys.stderr.isatty():
        yield
        return
    done, started = threading.Event(), time.monotonic()

    def tick() -> None:
        while not done.wait(0.5):
            sys.stderr.write(f"\r\033[K  {duration(time.monotonic() - started)}")
            sys.stderr.flush()

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        done.set()
        ticker.join()
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()


def _writable(folder: Path) -> bool:
    place = next(path for path in (folder, *folder.parents) if path.exists())
    return os.access(place, os.W_OK)


def _open_door(venv: Venv, profile: str) -> None:
    """Let the environment import this repository, give it the `fastsd` command, and note the profile."""
    _write_once(venv.packages / "fastsd.pth", f"{REPOSITORY}\n")
    if os.name == "nt":
        _write_once(venv.python.with_name("fastsd.cmd"), f'@"{venv.python}" -m fastsd_lib %*\n')
    else:
        command = venv.python.with_name("fastsd")
        _write_once(command, f'#!/bin/sh\nexec "{venv.python}" -m fastsd_lib "$@"\n')
        command.chmod(0o755)
    noted = noted_profiles(venv)
    if profile not in noted:
        write_text(
            venv.path / "fastsd-profiles.txt", "".join(f"{one}\n" for one in sorted({*noted, profile}))
        )


def noted_profiles(venv: Venv) -> list[str]:
    """The profiles that were installed into `venv`: what `doctor` expects to be whole."""
    try:
        return (venv.path / "fastsd-profiles.txt").read_text(encoding="utf-8").split()
    except OSError:
        return []


def _write_once(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
