"""git, with a limit on everything it does and one line for each way it fails."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fastsd_lib.core.errors import UserError

_WHOLE_ID = re.compile(r"[0-9a-f]{40}")
#: what git says: (what it means, what to do). {url} and {ref} are filled in.
_MEANINGS = (
    (r"could not resolve host|temporary failure in name", "There is no network, or no host of {url}.",
     "check the connection and start again"),
    (r"couldn't find remote ref|not our ref|unadvertised object|remote branch .* not found|reference is not a tree",
     "{url} has no {ref!r}.", "name a tag, a branch or a whole commit id: ref=..."),
    (r"terminal prompts disabled|authentication failed|could not read username|repository.*not found|error: 404"
     r"|does not appear to be a git repository|does not exist", "{url} does not exist, or is not public.",
     "name a mirror: repository=..."),
    (r"no space left", "The disk is full.", "free some space, or name another folder"),
    (r"connection refused|connection timed out|failed to connect|early eof|rpc failed|reset by peer|unexpected disconnect",
     "The connection to {url} broke off.", "start again: what is there is kept"),
    (r"permission denied|read-only file system", "The folder cannot be written to.", "name another folder"),
)  # fmt: skip


def is_commit(ref: str) -> bool:
    return _WHOLE_ID.fullmatch(ref) is not None


def fetch_commit(folder: Path, url: str, ref: str, limit_s: float) -> str:
    """Bring `ref` of `url` alone, without its history, into the repository `folder`, and return its commit id.

    The files of `folder` stay as they are. UserError with the reason in one line.
    """
    if ref.startswith("-") or not ref.isprintable() or " " in ref:
        raise UserError(f"{ref!r} is no tag, branch or commit.", fix="name one: ref=...")
    if re.fullmatch(r"[0-9a-f]{7,39}", ref):
        raise UserError(f"The commit id {ref} is cut short.", fix="give all of its 40 digits")
    git(["fetch", "--depth", "1", "--no-tags", "--force", url, ref], folder, limit_s, url, ref)
    commit = git(["rev-parse", "FETCH_HEAD^{commit}"], folder, 60)
    git(["update-ref", f"refs/kept/{commit}", commit], folder, 60)  # else git tidies it away some day
    if not is_commit(ref):
        git(["update-ref", f"refs/tags/{ref}", commit], folder, 60)  # programs show it as their version
    return commit


def checkout(folder: Path, commit: str, limit_s: float) -> None:
    """Make the tracked files those of `commit`, whatever an interruption or an edit left; others stay."""
    for stale in ("index.lock", "HEAD.lock", "shallow.lock"):
        (folder / ".git" / stale).unlink(missing_ok=True)  # of a git that was killed
    git(["checkout", "--force", "--detach", commit], folder, limit_s)
    git(["reset", "--hard", commit], folder, limit_s)


def git(arguments: Sequence[str], folder: Path, limit_s: float, url: str = "", ref: str = "") -> str:
    """What git says, stripped. It never asks for a password and is ended, with what it started, after `limit_s`."""
    program = shutil.which("git")
    if program is None:
        raise UserError("git is not installed here.", fix="install it: apt-get install git")
    variables = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "LC_ALL": "C"}
    variables["GIT_SSH_COMMAND"] = "ssh -o BatchMode=yes"
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        variables.pop(name, None)
    running = subprocess.Popen(
        [program, "-c", "advice.detachedHead=false", "-c", "safe.directory=*", "-C", str(folder), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=variables,
        start_new_session=True,
    )
    try:
        said, complaint = running.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"git {arguments[0]} {url or folder} took longer than {limit_s:g} s.",
            fix="check the connection and start again",
        ) from None
    finally:
        if running.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.communicate()
    if running.returncode:
        raise explain(complaint.decode("utf-8", "replace"), url or str(folder), ref)
    return said.decode("utf-8", "replace").strip()


def explain(complaint: str, url: str, ref: str) -> UserError:
    """git's words as one line and a way out."""
    shown = re.sub(r"//[^/@\s]+@", "//***@", url)
    for pattern, meaning, fix in _MEANINGS:
        if re.search(pattern, complaint, re.IGNORECASE):
            return UserError(meaning.format(url=shown, ref=ref), fix=f"{fix}.")
    lines = [line for line in complaint.splitlines() if line.strip()] or ["it did not say why"]
    told = next((line for line in lines if line.startswith(("fatal:", "error:"))), lines[-1])
    told = re.sub(r"//[^/@\s]+@", "//***@", told)
    return UserError(f"git could not fetch {shown}: {told[:300]}", fix="start again, or name another ref.")
