from __future__ import annotations

import sys

import pytest

from fastsd_lib.environment.tokens import civitai_token, hub_token, token_file
from fastsd_lib.models import registry

USERDATA = """
class SecretNotFoundError(Exception): pass
def get(name):
    if name != "HF_TOKEN" or not {value!r}:
        raise SecretNotFoundError(name)
    return {value!r}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A machine with no token anywhere; `HOME` is an empty folder."""
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    yield tmp_path
    for name in [name for name in sys.modules if name == "google" or name.startswith("google.")]:
        sys.modules.pop(name)


def keep(place, text: str | bytes) -> None:
    file = token_file(place)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())


def on_colab(place, monkeypatch, value: str) -> None:
    package = place / "google" / "colab"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "userdata.py").write_text(USERDATA.format(value=value))
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    for name in [name for name in sys.modules if name == "google" or name.startswith("google.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(place))


def test_each_place_is_asked_in_its_order(place, monkeypatch):
    assert hub_token(place, {}) is None
    keep(place, "hf_file\n")
    assert hub_token(place, {}) == "hf_file"
    login = place / "home" / ".cache" / "huggingface"
    login.mkdir(parents=True)
    (login / "token").write_text("hf_login")
    assert hub_token(place, {}) == "hf_login"
    assert hub_token(place, {"HF_TOKEN": " hf_variable\n"}) == "hf_variable"
    on_colab(place, monkeypatch, "hf_secret")
    assert hub_token(place, {"HF_TOKEN": "hf_variable"}) == "hf_secret"


def test_without_a_secret_colab_falls_back_to_the_next_place(place, monkeypatch):
    on_colab(place, monkeypatch, "")
    keep(place, "hf_file")
    assert hub_token(place, {}) == "hf_file"


@pytest.mark.parametrize(
    ("content", "token"),
    [
        ("  hf_abc\r\n", "hf_abc"), ("\ufeffhf_abc\n", "hf_abc"), ("'hf_abc'", "hf_abc"), ("hf_abc\nnotes", "hf_abc"),
        ("", None), (" \n", None), (b"\xff\xfe\x00", None), ("hf_\x1b[31m", None), ("t\u00f6ken", None),
    ],
)  # fmt: skip
def test_what_people_wrote_into_token_txt_is_stripped_or_passed_over(place, content, token):
    keep(place, content)
    assert hub_token(place, {}) == token


def test_nothing_is_asked_while_nothing_is_downloaded():
    def asked():
        raise AssertionError("asked for a token")

    assert registry.base_model("embedded", token=asked).family == "sd1"


def test_the_key_for_civitai_is_found_in_a_secret_a_variable_or_a_file_beside_token_txt(place):
    assert civitai_token(place, {}) is None
    file = token_file(place).with_name("civitai_token.txt")
    file.parent.mkdir(parents=True)
    file.write_text("from-file\n")
    assert civitai_token(place, {}) == "from-file"
    assert civitai_token(place, {"CIVITAI_TOKEN": " from-variable "}) == "from-variable"
    assert civitai_token(place, {"CIVITAI_API_KEY": "of-others"}) == "of-others"
