"""`ensure(profile)`: the one door for setup cells and for `fastsd install`."""

from __future__ import annotations

from fastsd_lib.environment import bootstrap
from fastsd_lib.environment.bootstrap import Say, Venv


def ensure(profile: str = "train", *, venv: Venv | None = None, report: Say = print, installer: str = "uv") -> None:
    venv = venv or bootstrap.project_venv()
    if not bootstrap.ensure(profile, venv, report, installer):
        report(f"Nothing to do: {profile} is installed in {venv.path}.")
