"""Paths as users type them."""

from __future__ import annotations

from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.text import escaped


def expanded(path: str | Path) -> Path:
    """`path` with ~ as the home folder. UserError for ~NAME where nobody is called so."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        first = Path(path).parts[0]
        raise UserError(
            f"Nobody on this machine has the home folder {escaped(first)[:300]}.",
            fix="check the path; ~ stands for your home folder.",
        ) from None


def is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name longer than any file's, or with a NUL in it
        return False
