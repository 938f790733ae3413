"""Adding to a Python that is not ours: only what is missing, and nothing that the host brought moves.

Colab and Kaggle come with the whole stack, built against their own driver. A newer torch from the package index would
bring CUDA libraries that the driver does not know; a newer numpy breaks what was compiled against the old one. So these
names are pinned to what is installed, the rest of our requirements is left alone where it is new enough, and what
really happened is read back afterwards.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import duration
from fastsd_lib.environment import bootstrap, failures, hosts, locks, markers, pip_settings, profiles
from fastsd_lib.environment.bootstrap import Say, Venv

PROTECTED = re.compile(
    r"torch|torchvision|torchaudio|triton|nvidia-.*|cuda-.*|numpy|jax|jaxlib|tensorflow|google-colab|"
    r"ipykernel|ipython|ipywidgets|protobuf|pillow"
)
#: A hosted notebook is its own Jupyter: these would only be ballast there.
HOSTED_ALREADY = {"jupyter", "jupyterlab"}


@dataclass(frozen=True)
class InstallReport:
    """What an install into a foreign Python did."""

    before: dict[str, str]  # name -> version of every package
    after: dict[str, str]
    seconds: float = 0.0
    restart: tuple[str, ...] = field(default=())  # packages that were replaced while they were in use

    @property
    def added(self) -> dict[str, str]:
        return {name: version for name, version in self.after.items() if name not in self.before}

    @property
    def changed(self) -> dict[str, tuple[str, str]]:
        """name -> (version before, version after, "" if it is gone)."""
        return {
            name: (old, self.after.get(name, ""))
            for name, old in self.before.items()
            if self.after.get(name, "") != old
        }


def ensure_here(
    profile: str,
    report: Say = print,
    *,
    python: Path | None = None,
    allow_replace: Collection[str] = (),
    wheels: Path | None = None,
) -> InstallReport:
    """Make a Python (this one, or `python`) hold `profile`; its protected packages stay as they are.

    `wheels` is a folder with what is missing; then the network is left alone.
    Raises UserError, with nothing changed, if the host's own versions do not fit; and with the command that undoes it,
    if an installer touched a protected package all the same.
    """
    started = time.monotonic()
    target = python or Path(sys.executable)
    allowed = {locks.normalised(name) for name in allow_replace}
    before = packages_of(target)
    wanted = _wanted(profile, before, allowed)
    if not wanted:
        report(f"Nothing to do: {profile} is installed here.")
        return InstallReport(before, before, time.monotonic() - started)
    report(f"Installing {len(wanted)} packages that are missing here: {', '.join(wanted)} ...")
    fixed = [
        f"{name}=={version}"
        for name, version in before.items()
        if name not in allowed and (PROTECTED.fullmatch(name) or name in _satisfied(profile, before))
    ]
    _install(
        target, wanted, fixed, [f"{pin.name}=={pin.version}" for pin in locked_for(profile, before)], wheels
    )
    importlib.invalidate_caches()
    done = InstallReport(before, packages_of(target), time.monotonic() - started)
    _check_protected(done, target, allowed)
    in_use = tuple(name for name in done.changed if python is None and _is_imported(name))
    done = InstallReport(done.before, done.after, done.seconds, in_use)
    report(
        f"Installed {len(done.added)} packages in {duration(done.seconds)}; nothing of the host's own was changed."
    )
    for name, (old, new) in done.changed.items():
        report(f"  {name} {old} -> {new}")
    if in_use:
        report(f"Restart the runtime now: {', '.join(in_use)} had been imported before it was replaced.")
    return done


def packages_of(python: Path) -> dict[str, str]:
    """Name -> version, as that Python's import system finds them (the first on its path counts)."""
    program = (
        "import importlib.metadata as m, json, sys\n"
        "found = {}\n"
        "for one in m.distributions():\n"
        "    name = one.metadata['Name']\n"
        "    if name: found.setdefault(name, one.version)\n"
        "json.dump(found, sys.stdout)"
    )
    ran = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise UserError(
            f"{python} does not run: {ran.stderr.strip()[-200:]}", fix="name a working Python 3.10 or newer."
        )
    return {locks.normalised(name): version for name, version in sorted(json.loads(ran.stdout).items())}


def _wanted(profile: str, have: dict[str, str], allowed: set[str]) -> list[str]:
    """The requirements that are not met, as pip reads them; UserError if a protected package is too old for us."""
    wanted = []
    for requirement in profiles.requirements(profile):
        name, floor = profiles.split(requirement)
        if name in HOSTED_ALREADY and hosts.which() in hosts.READY_MADE:
            continue
        version = have.get(name)
        if version is None or name in allowed:
            wanted.append(requirement)
        elif not markers.satisfies(version, floor):
            if PROTECTED.fullmatch(name):
                raise UserError(
                    f"This host's own {name} is {version}, and fastsd needs {name}{floor}. Nothing was changed.",
                    fix=f"choose a newer runtime, or let it be replaced: python3 -m fastsd_lib install {profile} "
                    f"--allow-replace {name}",
                )
            wanted.append(requirement)
    return wanted


def _satisfied(profile: str, have: dict[str, str]) -> set[str]:
    pairs = map(profiles.split, profiles.requirements(profile))
    return {name for name, floor in pairs if name in have and markers.satisfies(have[name], floor)}


def locked_for(profile: str, have: dict[str, str]) -> list[locks.Pin]:
    """The lock's versions of what is not here yet, so that two hosts get the same."""
    pins = locks.pins_for(profile, markers.environment(), "default")
    return [pin for pin in pins if pin.name not in have and not PROTECTED.fullmatch(pin.name)]


def _install(
    python: Path, wanted: list[str], fixed: list[str], locked: list[str], wheels: Path | None
) -> None:
    """Try with the lock's versions first, then with any that agree with the host's."""
    with tempfile.TemporaryDirectory() as scratch:
        limits = Path(scratch, "constraints.txt")
        room = Venv(Path(scratch))
        uv = shutil.which("uv") or (str(room.uv) if bootstrap.fetch_uv(room, wheels) else "")
        where = ["--no-index", "--find-links", str(wheels)] if wheels else []
        if uv:
            command = [uv, "pip", "install", "--python", str(python), "--break-system-packages"]
            command += where or pip_settings.read().uv_options()
        else:
            command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *where]
        for constraints in (fixed + locked, fixed):
            limits.write_text("\n".join(constraints))
            error = bootstrap.attempt([*command, "--constraint", str(limits), *wanted], room)
            if error is None:
                return
            if not failures.UNSATISFIABLE.search(error):
                raise failures.explain(error, python)
    raise UserError(
        f"What is missing does not go together with what this host brings. Nothing was changed.\n{error.strip()[-1500:]}",
        fix="choose a newer runtime, or name a package that may change: --allow-replace NAME",
    )


def _check_protected(done: InstallReport, python: Path, allowed: set[str]) -> None:
    moved = {
        name: versions
        for name, versions in done.changed.items()
        if PROTECTED.fullmatch(name) and name not in allowed
    }
    if moved:
        old = " ".join(f"{name}=={before}" for name, (before, _) in moved.items())
        raise UserError(
            "The installer replaced packages of this host: "
            + ", ".join(
                f"{name} {before} -> {after or 'removed'}" for name, (before, after) in moved.items()
            ),
            fix=f"undo it: {python} -m pip install --no-deps {old}",
        )


def _is_imported(name: str) -> bool:
    module = {"pillow": "PIL", "pyyaml": "yaml", "scikit-image": "skimage"}.get(name, name.replace("-", "_"))
    return module in sys.modules
