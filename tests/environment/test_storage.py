from __future__ import annotations

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.environment import hosts
from fastsd_lib.environment.storage import open_storage


def test_a_named_folder_is_made_and_said(tmp_path):
    said = []
    assert open_storage(f" {tmp_path / 'a' / 'b'} ", report=said.append) == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()
    assert said == [f"Sessions are kept in {tmp_path / 'a' / 'b'}."]


def test_without_a_name_it_is_the_default_of_the_host(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert open_storage(report=lambda line: None) == hosts.default_root()


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken") as error:
        open_storage(tmp_path / "taken")
    assert error.value.fix == "choose another storage folder."


def test_on_colab_a_drive_that_cannot_be_opened_says_what_to_do(monkeypatch):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")  # no google.colab here: mounting must fail
    with pytest.raises(UserError, match="Google Drive could not be opened") as error:
        open_storage()
    assert "untick use_drive" in error.value.fix


def test_on_colab_a_folder_that_will_be_forgotten_is_said_to_be(monkeypatch, tmp_path):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    said = []
    open_storage(tmp_path, report=said.append)
    assert "forgets them" in said[1]
