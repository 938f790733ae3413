"""Paths as users type them: no name that can be typed is a crash."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.paths import expanded, is_there


def test_a_tilde_is_the_home_folder_and_that_of_nobody_is_a_mistake(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/models") == tmp_path / "models" and expanded("models/~x") == Path("models/~x")
    with pytest.raises(UserError, match="home folder ~nosuchuser") as caught:
        expanded("~nosuchuser/models")
    assert "~ stands for your home folder" in caught.value.fix


def test_a_name_that_no_file_can_have_is_not_there(tmp_path):
    assert is_there(tmp_path)
    assert not is_there(tmp_path / ("x" * 5000)) and not is_there(tmp_path / "a\0b")
