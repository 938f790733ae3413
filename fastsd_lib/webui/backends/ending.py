"""What a back end's log and exit status tell: masked last lines, and why it ended in one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from fastsd_lib.webui.answers import MASK, masked

SHOWN_LINES = 40
_READ_BYTES = 256 * 1024
_TOKENS = re.compile(
    r"(?<=//)[^/@\s:]+:[^/@\s]+(?=@)|\bhf_[A-Za-z0-9]{8,}|\bgh[opsu]_[A-Za-z0-9]{16,}"
    r"|(?<=--api-auth )\S+|(?<=--gradio-auth )\S+|(?<=token=)[\w-]{8,}"
)
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_FULL_GPU = re.compile(r"CUDA out of memory|OutOfMemoryError|HIP out of memory|CUDA error: out of memory")
_FULL_MEMORY = re.compile(
    r"std::bad_alloc|^MemoryError|DefaultCPUAllocator: (?:not enough|can't allocate)|Cannot allocate memory",
    re.MULTILINE,
)
_KILLED = 137  # 128 + SIGKILL


def log_size(log: Path) -> int:
    try:
        return log.stat().st_size
    except OSError:
        return 0


def last_lines(log: Path, secrets: Iterable[str] = (), count: int = SHOWN_LINES, since: int = 0) -> list[str]:
    """The log's last lines from byte `since` on, as a terminal would show them, without secrets."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(since, end - _READ_BYTES))
            raw = file.read(_READ_BYTES)
    except OSError:
        return []
    lines = raw.decode("utf-8", "replace").split("\n")
    shown = [_CONTROLS.sub("", line.rstrip("\r").rpartition("\r")[2]).rstrip() for line in lines]
    kept = [line[:500] for line in shown if line][-count:]
    hidden = [one for one in secrets if one]
    return [_TOKENS.sub(MASK, masked(line, hidden)) for line in kept]


def why_it_ended(title: str, code: int, lines: Sequence[str]) -> tuple[str, str]:
    """One sentence, and what to do."""
    text = "\n".join(lines)
    if _FULL_GPU.search(text):
        return (
            f"{title} ended: out of GPU memory.",
            'add arguments=("--medvram",) or ("--lowvram",), or take a smaller model.',
        )
    if code in (_KILLED, -9) or _FULL_MEMORY.search(text):
        return f"{title} was killed: out of memory.", "take a machine with more memory, or a smaller model."
    if "No space left on device" in text:
        return f"{title} ended: the disk is full.", "free some space, or name another folder."
    if "Torch is not able to use GPU" in text:
        return f"{title} ended: it found no GPU that it can use.", "take a runtime with a GPU, or cpu=True."
    found = re.search(r"No module named '([\w.]+)'", text)
    if found:
        return (
            f"{title} ended: the Python package {found[1]} is missing.",
            "remove its folder venv and start again.",
        )
    if code > 128:
        return f"{title} was ended by signal {code - 128}.", "start it again."
    return (
        f"{title} ended with {code}.",
        "read the lines above; rollback() returns to the version that worked last.",
    )
