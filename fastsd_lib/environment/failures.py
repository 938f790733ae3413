"""What an installer's last words mean, in one line and with the way out."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path

from fastsd_lib.core.errors import UserError

NO_NETWORK = re.compile(
    r"dns error|failed to lookup|Name or service not known|Temporary failure in name resolution|Connection refused|"
    r"tcp connect error|error sending request|Failed to fetch|NewConnectionError|Network is unreachable|"
    r"operation timed out|ConnectTimeout|Max retries exceeded|network connectivity is disabled",
    re.IGNORECASE,
)
WRONG_HASH = re.compile(r"hash mismatch|DO NOT MATCH THE HASHES|no hashes? match", re.IGNORECASE)
NO_SPACE = re.compile(r"No space left on device|os error 28|Errno 28|Disk quota exceeded", re.IGNORECASE)
READ_ONLY = re.compile(r"Read-only file system|os error 30|Errno 30", re.IGNORECASE)
DENIED = re.compile(r"Permission denied|os error 13|Errno 13", re.IGNORECASE)
UNSATISFIABLE = re.compile(r"No solution found|ResolutionImpossible|conflicting dependencies", re.IGNORECASE)
NOT_FOUND = re.compile(
    r"No matching distribution|no version of|was not found in|no wheels? with a matching", re.IGNORECASE
)


def explain(output: str, where: Path) -> UserError:
    """The error for a failed installer run that wrote `output` while installing into `where`."""
    culprit = _culprit(output)
    if WRONG_HASH.search(output):
        return UserError(
            f"{culprit or 'A package'} is not the file that the lock names: its SHA-256 differs. It was not installed.",
            fix="the index or wheelhouse holds a changed file: use another one (pip config list), or update the project.",
        )
    if NO_SPACE.search(output):
        return disk_full(where)
    if READ_ONLY.search(output) or DENIED.search(output):
        return not_writable(where)
    if NO_NETWORK.search(output):
        return UserError(
            f"The package index cannot be reached{f' ({culprit})' if culprit else ''}.",
            fix="check the network, or install from a wheelhouse: python3 -m fastsd_lib install --wheelhouse DIR",
        )
    if NOT_FOUND.search(output):
        return UserError(
            f"The package index has no {culprit or 'package'} for this Python and system.",
            fix="use Python 3.10 to 3.13 on Linux, macOS or Windows, or another index (pip config list).",
        )
    last = "\n".join(line for line in output.strip().splitlines()[-6:])
    return UserError(
        f"The installer failed:\n{last}", fix="run it again; if it stays, python3 -m fastsd_lib doctor"
    )


def from_os_error(error: OSError, where: Path) -> UserError:
    """The error for something that the file system refused."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return disk_full(where)
    if error.errno in {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR}:
        return not_writable(where)
    return UserError(
        f"{where}: {error.strerror or error}.",
        fix="python3 -m fastsd_lib install --venv DIR in another place.",
    )


def disk_full(where: Path) -> UserError:
    free = shutil.disk_usage(_existing(where)).free >> 20
    return UserError(
        f"The disk is full: {free} MiB are left where {where} lies.",
        fix="free some space and run the same command again (it goes on where it stopped), or use --venv DIR.",
    )


def not_writable(where: Path) -> UserError:
    return UserError(
        f"{where} cannot be written.",
        fix="copy the project to a folder of your own, or: python3 -m fastsd_lib install --venv DIR",
    )


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


def _culprit(output: str) -> str:
    """The package, file or address that the installer complained about."""
    for pattern in (
        r"[Ff]ailed to (?:download|read|install|fetch|unzip)[: ]+(?:wheel )?[`']([^`'\s]+)[`']",
        r"Hash mismatch for [`']([^`'\s]+)[`']",
        r"error sending request for url \(([^)\s]+)\)",
        r"requirement ([A-Za-z0-9_.=+-]+)",
        r"Because ([A-Za-z0-9_.=+-]+) (?:was not found|has no)",
        r"Could not find a version that satisfies the requirement ([^\s]+)",
        r"^\s+(\S+) from \S+.*\n\s+Expected",
    ):
        if found := re.search(pattern, output, re.MULTILINE):
            return found[1]
    return ""
