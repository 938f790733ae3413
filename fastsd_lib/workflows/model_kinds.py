"""What kind of model a download must be: refused before the first byte where its source tells, else before it is kept."""

from __future__ import annotations

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.text import escaped
from fastsd_lib.models.kind import KIND_WORDS, Kind

#: What people and sites call one -> what the file can turn out to be.
_MAY_BE = {
    "checkpoint": {"checkpoint", "unet", "transformer"},
    "controlnet": {"controlnet", "control-lora", "t2i-adapter"},
}


def refuse_told(name: str, told: str, wanted: str) -> None:
    """UserError when what is told of a model before it is fetched ("": nothing) rules out the kind that is wanted."""
    if wanted and told and wanted not in _MAY_BE.get(told, {told}):
        raise _another(name, KIND_WORDS[told], wanted, "nothing was fetched")


def check_kind(name: str, found: Kind, wanted: str) -> None:
    """UserError unless a file is what was wanted ("": anything)."""
    if wanted and found.kind != wanted:
        raise _another(name, found.words, wanted, "it was not taken")


def _another(name: str, words: str, wanted: str, state: str) -> UserError:
    return UserError(
        f"{escaped(name)[:300]} is {words}, not {KIND_WORDS[wanted]}: {state}.",
        fix=f"leave the kind out to have {words}, or name another file.",
    )
