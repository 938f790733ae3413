"""Errors that a user can cause, and the sentence that ends them."""

from __future__ import annotations

import importlib.util


class UserError(Exception):
    """Something the user can mend: what was found, then what to do instead.

    The command line prints both lines and exits 2; notebooks print them without a traceback.
    """

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.fix}" if self.fix else self.message

    def _render_traceback_(self) -> list[str]:  # IPython calls this instead of printing a traceback
        return [str(self)]


def require(module: str, *, group: str) -> None:
    """Raise a UserError that names the install command unless `module` can be imported."""
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"{module} is not installed here.",
            fix=f"run the Install cell, or: python3 -m fastsd_lib install {group}",
        )
