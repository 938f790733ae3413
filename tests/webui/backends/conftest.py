"""One Python environment for all of these tests: making one takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_backends import make_repository, make_venv

from fastsd_lib.webui.backends.config import BackendConfig


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> Path:
    venv = tmp_path_factory.mktemp("python") / "venv"
    make_venv(venv)
    return venv


@pytest.fixture
def repository(tmp_path) -> Path:
    return make_repository(tmp_path / "upstream")


@pytest.fixture
def config_for(tmp_path, repository, environment):
    """Choices for one back end, whose environment is there already."""

    def make(name: str = "a1111", **more) -> BackendConfig:
        own = tmp_path / "local" / name
        own.mkdir(parents=True, exist_ok=True)
        if not (own / "venv").exists():
            (own / "venv").symlink_to(environment)
        given = {"repository": str(repository), "ref": "v1", "cpu": True, "git_s": 20.0, "ready_s": 20.0}
        return BackendConfig(tmp_path / "local", **given | more)

    return make
