"""The user's tokens and passwords: found where people keep them, and never shown."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from fastsd_lib.core.paths import expanded
from fastsd_lib.environment import drive, hosts

NAME = "HF_TOKEN"
CIVITAI_NAMES = ("CIVITAI_TOKEN", "CIVITAI_API_TOKEN", "CIVITAI_API_KEY")
MAX_BYTES = 4096  # a token has some forty letters; a file of more is something else


def hub_token(root: Path | None = None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The first there is of: Colab's Secrets, HF_TOKEN, `hf auth login`, Fast-Dreambooth/token.txt below `root`.

    None when there is none. The text is stripped: the older notebooks' token.txt often ends in a line break.
    """
    places: tuple[Callable[[], str | None], ...] = (
        lambda: drive.colab_secret(NAME),
        lambda: environment.get(NAME),
        lambda: _stored_by_login(environment),
        lambda: _first_word(token_file(root or hosts.default_root())),
    )
    return next((token for find in places if (token := (find() or "").strip())), None)


def civitai_token(root: Path | None = None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The user's API key for CivitAI: the host's Secrets, CIVITAI_TOKEN, civitai_token.txt beside token.txt; or None."""
    file = token_file(root or hosts.default_root()).with_name("civitai_token.txt")
    return secret(*CIVITAI_NAMES, environment=environment) or _first_word(file)


def secret(*names: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """The first of these that the host keeps: Colab's Secrets, Kaggle's Secrets, environment variables; else None."""
    places = (drive.colab_secret, _kaggle_secret, environment.get)
    found = (find(name) for name in names for find in places)
    return next((text for value in found if (text := (value or "").strip())), None)


def _kaggle_secret(name: str) -> str | None:
    if hosts.which() != "kaggle":
        return None
    try:
        return importlib.import_module("kaggle_secrets").UserSecretsClient().get_secret(name)
    except Exception:  # not attached to this notebook, no network, no such package: there is none
        return None


def token_file(root: Path) -> Path:
    """Where the older notebooks keep it."""
    return root / "Fast-Dreambooth" / "token.txt"


def _stored_by_login(environment: Mapping[str, str]) -> str | None:
    """Read from huggingface_hub's own file: its get_token() would ask Colab's Secrets a second time."""
    cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(environment.get("HF_HOME") or cache / "huggingface")
    return _first_word(Path(environment.get("HF_TOKEN_PATH") or home / "token"))


def _first_word(file: Path) -> str | None:
    try:
        with expanded(file).open("rb") as handle:
            text = handle.read(MAX_BYTES).decode("utf-8-sig")
    except (OSError, ValueError):
        return None
    word = next(iter(text.split()), "").strip("\"'")
    return word if word.isascii() and word.isprintable() else None
