"""`ensure(profile)`: the one door for setup cells and for `fastsd install`."""

from __future__ import annotations

import sys
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path

from fastsd_lib.environment import bootstrap, hosts, protect, threads, wheelhouse
from fastsd_lib.environment.bootstrap import Say, Venv


def ensure(
    profile: str = "train",
    report: Say = print,
    *,
    venv: Venv | None = None,
    installer: str = "uv",
    wheels_in: Path | None = None,
    allow_replace: Collection[str] = (),
) -> None:
    """Make `profile` usable where this is called from; a second call does nothing and takes a moment.

    In a notebook, and on a host that comes with the stack (Colab, Kaggle), that is the running Python, to which only
    what is missing is added. Elsewhere it is the project's `.venv/` (or `venv`), filled from the locks, or from the
    wheelhouse in the folder `wheels_in`.
    """
    threads.spin_briefly()
    project = venv or bootstrap.project_venv()
    foreign = venv is None and _is_foreign(project)
    with wheelhouse.opened(wheels_in, profile, project) if wheels_in else nullcontext() as house:
        wheels, build = (house.folder, house.torch_build) if house else (None, "")
        if foreign:
            protect.ensure_here(profile, report, allow_replace=allow_replace, wheels=wheels)
        else:
            _fill(profile, project, report, installer, allow_replace, wheels, build)


def make_wheelhouse(profile: str, folder: Path, report: Say = print, *, venv: Venv | None = None) -> Path:
    """Write the archive that `ensure(wheels_in=folder)` reads; on a host with the stack it holds only what lacks."""
    project = venv or bootstrap.project_venv()
    if venv is None and _is_foreign(project):
        lacking = protect.locked_for(profile, protect.packages_of(Path(sys.executable)))
        return wheelhouse.make(profile, folder, project, report, lacking)
    return wheelhouse.make(profile, folder, project, report)


def _is_foreign(project: Venv) -> bool:
    """True where the running Python is the one to add to: a notebook's, a host's with the stack, pip's own."""
    here = hosts.which() in hosts.READY_MADE or "ipykernel" in sys.modules or not bootstrap.is_checkout()
    return here and not project.is_running


def _fill(
    profile: str,
    venv: Venv,
    report: Say,
    installer: str,
    replace: Collection[str],
    wheels: Path | None = None,
    build: str = "",
) -> None:
    if not bootstrap.ensure(profile, venv, report, installer, replace=replace, wheels=wheels, build=build):
        report(f"Nothing to do: {profile} is installed in {venv.path}.")
