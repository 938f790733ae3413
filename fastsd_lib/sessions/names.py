"""Session names: any script, and safe as a folder on every system that a Drive is opened on."""

from __future__ import annotations

import unicodedata

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.text import escaped, name_problem, safe_stem

EXAMPLE = "my-cat"


def check_name(name: str) -> str:
    """`name` in NFC when a session may be called so; otherwise UserError: the reason, and an allowed name."""
    if not isinstance(name, str):
        raise UserError(
            f"A session name is text, not {type(name).__name__}.", fix=f"type a name such as {EXAMPLE}."
        )
    name = unicodedata.normalize("NFC", name)
    if problem := name_problem(name):
        # `../x` must not turn into a session by itself: the user is shown a name near to what was typed.
        allowed = safe_stem(name.replace("..", "")) or EXAMPLE
        shown = escaped(name if len(name) <= 60 else name[:57] + "...")
        raise UserError(
            f"A session cannot be called '{shown}': {problem}.",
            fix=f"type a name such as {allowed if len(allowed) < 60 else EXAMPLE}.",
        )
    return name
