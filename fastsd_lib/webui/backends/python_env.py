"""A Python of its own for each back end, on the local disk: found, made, and filled with what it asks for."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path
from fastsd_lib.webui.backends.config import Backend, BackendConfig
from fastsd_lib.webui.backends.flags import Places

MAKING_S = 600.0
_ASK = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"


def python_of(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_environment(backend: Backend, config: BackendConfig, places: Places) -> Path:
    """The interpreter of the back end's environment, made now unless it is there and runs. UserError without a Python
    that the back end works with.
    """
    python = python_of(places.venv)
    wanted = {f"{major}.{minor}" for major, minor in backend.pythons}
    if _version(python, "import sys; print('%d.%d' % sys.version_info[:2])") in wanted:
        return python
    shutil.rmtree(places.venv, ignore_errors=True)  # half made, or of a Python that is gone
    uv = None if config.python else shutil.which("uv")
    if uv:  # fetches a Python where there is none
        newest = ".".join(str(part) for part in backend.pythons[0])
        command = [uv, "venv", "--seed", "--python", newest, str(places.venv)]
    else:
        command = [str(_interpreter(backend, config)), "-m", "venv", str(places.venv)]
    places.venv.parent.mkdir(parents=True, exist_ok=True)
    code, said = run_limited(command, MAKING_S)
    if code or _version(python, "import pip; print(1)") != "1":
        shutil.rmtree(places.venv, ignore_errors=True)
        last = said.strip().splitlines()[-1:] or ["it did not say why"]
        raise UserError(
            f"The Python environment of {backend.title} could not be made: {last[0][:300]}",
            fix=_advice(backend),
        )
    return python


def install_requirements(
    backend: Backend, config: BackendConfig, places: Places, python: Path, file: Path
) -> None:
    """Install `file` into the environment, once for each content of it. UserError with the log's place."""
    if not file.is_file():
        return
    stamp = places.venv / "fastsd-installed.txt"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with suppress(OSError):
        if digest in stamp.read_text().split():
            return
    uv = shutil.which("uv")
    command = [uv, "pip", "install", "--python", str(python)] if uv else [str(python), "-m", "pip", "install"]
    command += ["-r", str(file)]
    with places.log.open("ab") as log:
        log.write(f"\n# {' '.join(command)}\n".encode())
        log.flush()
        code, _ = run_limited(command, config.install_s, log.fileno(), variables=dict(config.environment))
    if code:
        reason = f"took longer than {config.install_s:g} s" if code == _LATE else f"ended with {code}"
        raise UserError(
            f"Installing what {backend.title} needs {reason}.",
            fix=f"the end of {places.log} says why; start again to go on.",
        )
    with atomic_path(stamp) as scratch:
        scratch.write_text(digest + "\n")


_LATE = 124


def run_limited(
    command: Sequence[str], limit_s: float, log: int | None = None, variables: dict[str, str] | None = None
) -> tuple[int, str]:
    """Exit status and output (empty with `log`, a file's handle); 124 after `limit_s`, with its whole group ended."""
    running = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if log is None else log,
        stderr=subprocess.STDOUT,
        env=clean_variables() | (variables or {}),
        start_new_session=True,
    )
    try:
        said, _ = running.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return _LATE, ""
    finally:
        if running.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.communicate()
    return running.returncode, (said or b"").decode("utf-8", "replace")


def clean_variables() -> dict[str, str]:
    """Our environment without what would lead another Python to our own packages, or tell it our passwords."""
    leading = ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "MPLBACKEND", "COMMANDLINE_ARGS")
    return {
        name: value
        for name, value in os.environ.items()
        if name not in leading and not name.startswith(("FASTSD_", "NGROK"))
    }


def _interpreter(backend: Backend, config: BackendConfig) -> Path:
    wanted = [f"{major}.{minor}" for major, minor in backend.pythons]
    if config.python:
        version = _version(config.python, _ASK)
        if version in wanted:
            return config.python
        said = f"is Python {version}" if version else "does not run, or cannot make environments"
        raise UserError(
            f"{config.python} {said}; {backend.title} needs {_listed(wanted)}.", fix=_advice(backend)
        )
    there = []
    for name in [*(f"python{version}" for version in wanted), sys.executable, "python3"]:
        found = shutil.which(name)
        version = _version(Path(found), _ASK) if found else ""
        if version in wanted:
            return Path(found)
        there += [version] if version else []
    here = f"here is {', '.join(sorted(set(there)))}" if there else "here is none that can make environments"
    raise UserError(f"{backend.title} needs Python {_listed(wanted)}; {here}.", fix=_advice(backend))


def _version(python: Path, question: str) -> str:
    """What this Python answers; empty when it does not run or lacks something."""
    try:
        asked = subprocess.run(
            [str(python), "-I", "-c", question], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip() if asked.returncode == 0 else ""


def _listed(versions: Sequence[str]) -> str:
    return f"{', '.join(versions[:-1])} or {versions[-1]}"


def _advice(backend: Backend) -> str:
    version = ".".join(str(part) for part in backend.pythons[0])
    return f"install uv, which fetches one (pip install uv), or: apt-get install python{version}-venv."
