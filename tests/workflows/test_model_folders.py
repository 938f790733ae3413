"""The folder of a base model, before a run begins."""

from __future__ import annotations

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.workflows import model_folders


@pytest.mark.parametrize("family", ["sd2", "sdxl", "flux"])
def test_a_family_that_is_only_drawn_with_is_refused_before_any_work(tmp_path, family):
    base = ModelFiles(family, "single_file", tmp_path / "base.safetensors")
    with pytest.raises(UserError, match=f"is a {family} model; only SD 1.x models are trained") as error:
        model_folders.as_folder(base, tmp_path / "cache")
    assert "take an SD 1.x model" in error.value.fix
    assert list(tmp_path.iterdir()) == []
