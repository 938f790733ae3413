import os

import pytest

from fastsd_lib.environment import pip_settings


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")) or name == "SSL_CERT_FILE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    pip_settings.read.cache_clear()
    yield
    pip_settings.read.cache_clear()


def _configure(tmp_path, text: str) -> None:
    place = tmp_path / ".config" / "pip" / "pip.conf"
    place.parent.mkdir(parents=True)
    place.write_text(text)


def test_uv_hears_what_pip_was_told_and_the_environment_wins_over_the_file(tmp_path, monkeypatch):
    (tmp_path / "wheels").mkdir()
    _configure(
        tmp_path,
        f"[global]\nindex-url = https://mirror.example/simple\nfind-links = {tmp_path}/wheels\ncert = /file.pem\n"
        "[install]\ntrusted-host = mirror.example\n",
    )
    monkeypatch.setenv("PIP_CERT", "/env.pem")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "99")
    settings = pip_settings.read()
    options = " ".join(settings.uv_options())
    assert "--default-index https://mirror.example/simple" in options
    assert f"--find-links {tmp_path}/wheels" in options
    assert "--allow-insecure-host mirror.example" in options
    assert settings.uv_environment() == {"SSL_CERT_FILE": "/env.pem", "UV_HTTP_TIMEOUT": "99"}
    assert settings.local_folders == (tmp_path / "wheels",)


def test_local_indexes_that_do_not_exist_are_left_out_because_uv_would_stop_at_them(tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    _configure(
        tmp_path,
        f"[global]\nextra-index-url =\n    file://{there}\n    file:///nowhere/simple\n    https://a.example/s\n",
    )
    assert pip_settings.read().extra_index_urls == (f"file://{there}", "https://a.example/s")


def test_what_was_set_for_uv_itself_has_the_last_word(tmp_path, monkeypatch):
    _configure(tmp_path, "[global]\nindex-url = https://mirror.example/simple\n")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://other.example/simple")
    assert "--default-index" not in pip_settings.read().uv_options()


def test_pips_switch_for_no_configuration_is_obeyed(tmp_path, monkeypatch):
    _configure(tmp_path, "[global]\nindex-url = https://mirror.example/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert pip_settings.read().index_url == ""
