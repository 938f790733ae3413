"""What the tests of formats have in common."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every tiny model, saved when it is first asked for."""
    from transformer_folders import MODELS

    root, made = tmp_path_factory.mktemp("transformers"), {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = MODELS[name](root / name.replace(" ", "_")).path
        return made[name]

    return folder
