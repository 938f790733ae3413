"""GGUF files: weights packed into a few bits each. They are told by their first bytes, and refused with what they are.

The format: "GGUF", version, count of tensors, count of entries, then entries of (key, type, value); little-endian.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.text import escaped

_TEXT = 8  # the number of the type "string"


def refuse_gguf(path: Path) -> None:
    """UserError that says of what a GGUF file is, if `path` is one; any other file passes."""
    try:
        if not path.is_file():
            return
        with path.open("rb") as handle:
            start = handle.read(512)
    except OSError:
        return  # who reads it says why not
    if start[:4] != b"GGUF":
        return
    what = ""
    if len(start) >= 24:
        version, tensors = struct.unpack("<IQ", start[4:16])
        what = f" (version {version}, {tensors:,} tensors{_architecture(start)})"
    raise UserError(
        f"{path} is a GGUF file{what}: weights packed into few bits, which are not read here.",
        fix="take the model as .safetensors; fp8 files are small as well.",
    )


def _architecture(start: bytes) -> str:
    """The first entry says whose weights they are: "flux", "sd3", "sdxl" ..."""
    key, after = _text(start, 24)
    if key != "general.architecture" or start[after : after + 4] != struct.pack("<I", _TEXT):
        return ""
    word, _ = _text(start, after + 4)
    return f" of {escaped(word[:40])}" if word else ""


def _text(start: bytes, at: int) -> tuple[str, int]:
    length = int.from_bytes(start[at : at + 8], "little")
    end = at + 8 + length
    return (start[at + 8 : end].decode("utf-8", "replace"), end) if end <= len(start) else ("", at)
