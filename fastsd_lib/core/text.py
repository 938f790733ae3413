"""Text that people typed or downloaded, made safe to print, and file names made safe to store."""

from __future__ import annotations

import re
import unicodedata

NAME_BYTES = 150  # leaves room for "_step_000500.safetensors" below the 255 bytes of every file system
_JOINERS = "\u200c\u200d"  # Persian, Hindi and family emoji are written with them
_BLANK = "\u115f\u1160\u2800\u3164\uffa0\u034f"  # letters, says Unicode, that nobody can see
_FOR_NEW_SIGNS = ((0x1F000, 0x1FAFF), (0x20000, 0x2FFFD), (0x30000, 0x3FFFD))  # kept for emoji and Han
_ANSI_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_FORBIDDEN = '/\\:*?"<>|'  # Windows refuses them, and half of the users open their Drive there
_RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"
}


def one_line(text: str) -> str:
    """`text` as one line of visible characters: no escapes, controls or zero-width characters; NFC.

    Line breaks and tabs become spaces; runs of spaces become one. A clean line stays as it is.
    """
    while (cleaner := _cleaned_once(text)) != text:  # what is taken away can bare an escape or a joiner
        text = cleaner
    return text


def _cleaned_once(text: str) -> str:
    text = unicodedata.normalize("NFC", _ANSI_ESCAPE.sub("", text))
    text = "".join(" " if character.isspace() else character for character in text)
    kept = [character for at, character in enumerate(text) if not _is_invisible(text, at)]
    return " ".join("".join(kept).split())


def escaped(text: str) -> str:
    """`text` for a message: readable letters of any script stay, what steers a terminal is spelled out."""
    return "".join(
        character.encode("unicode_escape").decode("ascii") if _is_invisible(text, at) else character
        for at, character in enumerate(text)
    )


def name_problem(name: str) -> str:
    """Why `name` cannot name a file or folder everywhere (Linux, Windows, macOS, Drive); "" when it can."""
    if not name.strip():
        return "it is empty"
    if unicodedata.category(name[0]) in {"Mn", "Me"}:
        return "it begins with a mark that has no letter to sit on"
    if set(name) <= {"."}:
        return "it is a way to another folder"
    if name != name.strip() or name.endswith("."):
        return "it begins or ends with a space, or ends with a dot"
    if name[0] in ".-~":
        return f"it begins with {name[0]!r}"
    if bad := sorted(set(name) & set(_FORBIDDEN)):
        return f"it contains {' '.join(bad)}"
    if any(_is_invisible(name, at) for at in range(len(name))):
        return "it contains invisible characters"
    if name.split(".")[0].strip().casefold() in _RESERVED:
        return "Windows keeps this name for a device"
    if len(name.encode()) > NAME_BYTES:
        return f"it is {len(name.encode())} bytes long, more than {NAME_BYTES}"
    return ""


def safe_stem(text: str) -> str:
    """The readable part of `text` as a file name without suffix: any script is kept; "" if nothing is left.

    The result has no `name_problem`, unless it is empty.
    """
    text = one_line("".join("-" if character in _FORBIDDEN else character for character in text))
    text = text.lstrip(" .-~").rstrip(" .")
    while text and unicodedata.category(text[0]) in {"Mn", "Me"}:  # a mark whose letter was taken away
        text = text[1:].lstrip(" .-~")
    while len(text.encode()) > NAME_BYTES:
        text = text[:-1].rstrip(" .")
    # One cut can bare a joiner or a reserved word, so the verdict is asked for, not assumed.
    if text and name_problem(text):
        text = safe_stem(text.strip(_JOINERS)) if text[-1] in _JOINERS else f"photo {text}"
    return text


def same_name(name: str) -> str:
    """Equal for names that some file system takes for one: case and Unicode spelling do not count."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", name).casefold())


def _is_invisible(text: str, at: int) -> bool:
    character = text[at]
    if character in _JOINERS:
        beside = text[max(at - 1, 0) : at] + text[at + 1 : at + 2]
        return len(beside) < 2 or any(ord(one) < 128 or one in _JOINERS for one in beside)
    category = unicodedata.category(character)
    if category == "Cn":  # a letter or emoji that is newer than this Python
        return not any(first <= ord(character) <= last for first, last in _FOR_NEW_SIGNS)
    return category in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} or character in _BLANK
