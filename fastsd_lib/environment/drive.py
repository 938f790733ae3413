"""Where sessions are kept: Drive on Colab, a host's volume, or a folder. Only this file knows google.colab."""

from __future__ import annotations

import difflib
import errno
import os
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.text import escaped
from fastsd_lib.environment import hosts
from fastsd_lib.environment.bootstrap import Say

Kind = Literal["drive", "shared drive", "kaggle", "runpod", "paperspace", "folder", "temporary"]

# "dead": the daemon is gone (errno 107), and with it any upload. "stuck": it may yet be uploading.
State = Literal["alive", "dead", "stuck", "plain", "absent"]

FLUSH_LIMIT_S = 600  # google.colab would wait for 24 hours
# What calls below a mount give when its daemon is gone: for those in flight, then for all that follow.
LOST = {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ETIMEDOUT}
_NETWORK_DISKS = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "drvfs", "afs", "ceph", "glusterfs", "lustre", "beegfs", "davfs",
}  # fmt: skip
_IN_MEMORY = {"tmpfs", "ramfs"}


@dataclass(frozen=True)
class Workspace:
    """A place for sessions, and what can be relied on there."""

    root: Path  # sessions lie in Fast-Dreambooth/Sessions below it
    kind: Kind
    durable: bool  # False = gone when this machine ends
    local: Path  # fast local disk to work on; `root` itself when that is one
    remote: bool  # behind a network or a FUSE daemon: slow, and may vanish while training runs


@dataclass(frozen=True)
class Places:
    """Where a machine keeps things; tests name folders of their own."""

    mount_points: tuple[Path, ...] = hosts.DRIVE_MOUNTS
    mount_table: Path = hosts.MOUNT_TABLE
    colab_disk: Path = Path("/content")


HERE = Places()


def open_workspace(
    folder: str | Path = "",
    use_drive: bool = True,
    shared_drive: str = "",
    report: Say = print,
    *,
    pending: bool = False,
    places: Places = HERE,
) -> Workspace:
    """The place that sessions go to: `folder`, else a shared drive or your own on Colab, else the host's own.

    On Colab this asks for access to Drive once; a Drive that is mounted already is used as it is, one whose
    mount has died is mounted anew, but none by force that may still be uploading `pending` files. With
    `use_drive=False` everything stays on the machine. UserError when the place cannot be had; nothing is ever
    put into a folder that only looks like Drive.
    """
    named, shared_drive = str(folder).strip(), shared_drive.strip()
    colab = hosts.which() == "colab"
    if named:
        root = expanded(named).absolute()
        if any(root.is_relative_to(point) for point in places.mount_points) and colab:
            root = _below_drive(root, report, pending, places)
    elif shared_drive:
        root = _shared_drive(shared_drive, report, pending, places)
    elif colab:
        root = _drive(report, pending, places) / "MyDrive" if use_drive else Path.home() / "fastsd"
    else:
        root = hosts.default_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        usable = os.access(root, os.W_OK)
        reason = "you may not write to it"
    except OSError as error:
        usable, reason = False, error.strerror or str(error)
    if not usable:
        raise UserError(f"{root} cannot be used: {reason}.", fix="choose another storage folder.")
    workspace = _judged(root, places)
    for line in _told(workspace):
        report(line)
    return workspace


def is_remote(path: Path, table: Path = hosts.MOUNT_TABLE) -> bool:
    """Whether `path` lies behind a network or a FUSE daemon, so that training had better work elsewhere.

    False where there is no mount table (macOS, Windows).
    """
    kind = hosts.file_system(path, table)[1]
    return kind == "fuse" or kind.startswith("fuse.") or kind in _NETWORK_DISKS


def local_disk(path: Path, places: Places = HERE) -> Path:
    """`path` itself when its disk is local, else a folder on a local disk to work in instead."""
    if not is_remote(path, places.mount_table):
        return path
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    candidates = (places.colab_disk, cache, Path("/var/tmp"), Path(tempfile.gettempdir()))
    for place in candidates:
        existing = next(one for one in (place, *place.parents) if one.is_dir())
        known = place is not places.colab_disk or hosts.which() == "colab"
        if known and os.access(existing, os.W_OK) and not is_remote(existing, places.mount_table):
            return place
    return candidates[-1]


def revive(path: Path, *, pending: bool = False, report: Say = print, places: Places = HERE) -> bool:
    """One try to bring back the Drive that holds `path`; True when it answers (again).

    Force kills Drive's daemon, and with it what that has not uploaded: with files `pending` it is used only where
    the daemon is gone already (errno 107), when mounting it again is what lets their upload go on.
    """
    point = next((one for one in places.mount_points if path.is_relative_to(one)), None)
    if point is None:
        return os.access(path, os.W_OK)
    try:
        state = _state(point, places)
        if state == "alive":
            return True
        _mount(point, state, report, pending, places)
    except UserError as error:
        report(str(error))
        return False
    return True


def flush(workspace: Workspace, report: Say = print, *, places: Places = HERE) -> bool:
    """At the very end: wait until Drive has uploaded everything, ten minutes at most; True when it has.

    Drive is unmounted for that and mounted again to be read only, so that what arrived can be checked. Other
    disks are told to write what they hold.
    """
    point = next((one for one in places.mount_points if workspace.root.is_relative_to(one)), None)
    if point is None:
        if hasattr(os, "sync"):
            os.sync()
        return True
    drive = _google_drive()
    try:
        drive.flush_and_unmount(timeout_ms=FLUSH_LIMIT_S * 1000)
    except ValueError as error:
        report(f"Drive has not confirmed that everything is uploaded ({error}): leave this runtime open.")
        return False
    try:
        drive.mount(str(point), readonly=True)
    except (NotImplementedError, ValueError):
        report("Everything was handed to Google Drive; it could not be opened again to look.")
        return True
    report("Everything was handed to Google Drive, which is open for reading only now.")
    return True


def colab_secret(name: str) -> str | None:
    """A value from Colab's Secrets panel; None elsewhere, without one, or when access to it was refused."""
    if hosts.which() != "colab":
        return None
    try:
        from google.colab import userdata

        return userdata.get(name)
    except (
        Exception
    ):  # SecretNotFoundError, NotebookAccessError, TimeoutException: all mean that there is none
        return None


def _below_drive(root: Path, report: Say, pending: bool, places: Places) -> Path:
    """A named folder on Drive: the same folder at the place where Drive is mounted."""
    point = next(one for one in places.mount_points if root.is_relative_to(one))
    return _drive(report, pending, places) / root.relative_to(point)


def _shared_drive(name: str, report: Say, pending: bool, places: Places) -> Path:
    if hosts.which() != "colab":
        raise UserError(
            f"Shared drives such as {escaped(name)!r} are opened on Colab only.",
            fix="elsewhere, sync the drive with Google's own program and name its folder as storage folder.",
        )
    shelf = _drive(report, pending, places) / "Shareddrives"
    try:
        there = sorted(entry.name for entry in os.scandir(shelf) if entry.is_dir())
    except OSError:
        there = []
    wanted = unicodedata.normalize("NFC", name)
    for one in there:
        if unicodedata.normalize("NFC", one) == wanted:
            return shelf / one
    by_fold = {one.casefold(): one for one in there}
    near = difflib.get_close_matches(wanted.casefold(), by_fold, 1)
    known = ", ".join(escaped(one) for one in there) or "none: this account is a member of no shared drive"
    raise UserError(
        f"There is no shared drive {escaped(name)!r} (there: {known}).",
        fix=f"did you mean {escaped(by_fold[near[0]])!r}?"
        if near
        else "type one of these names, or none for your own Drive.",
    )


def _drive(report: Say, pending: bool, places: Places) -> Path:
    """The mount point of a Drive that answers; mounted, or mounted anew, when it must be."""
    states = {point: _state(point, places) for point in places.mount_points}
    for wanted in ("alive", "stuck", "dead", "absent"):
        for point, state in states.items():
            if state == wanted:
                for other in (one for one, seen in states.items() if seen == "plain"):
                    report(f"{other} is a plain folder, not Drive: what is in it is lost with this machine.")
                if state != "alive":
                    _mount(point, state, report, pending, places)
                return point
    point = next(iter(states))
    raise _no_drive(point)


def _state(point: Path, places: Places) -> State:
    """What stands at a mount point: Drive, a mount that gives errors, a plain folder with content, or nothing."""
    try:
        if hosts.file_system(point, places.mount_table)[0] == point:
            os.listdir(point / "MyDrive")
            return "alive"
        return "plain" if os.listdir(point) else "absent"
    except (FileNotFoundError, NotADirectoryError):
        return "plain" if os.path.lexists(point) else "absent"
    except OSError as error:
        if error.errno in LOST:
            return "dead" if error.errno == errno.ENOTCONN else "stuck"
        raise


def _mount(point: Path, state: State, report: Say, pending: bool, places: Places) -> None:
    if state == "plain":
        raise _no_drive(point)
    if state == "stuck" and pending:
        raise UserError(
            f"Google Drive at {point} gives errors, and files are still on their way to it.",
            fix="leave this runtime open: mounting by force would lose them. Work goes on on this machine.",
        )
    force = state in ("dead", "stuck")
    if force:
        report(f"Google Drive at {point} has stopped answering; mounting it once more.")
    drive = _google_drive()
    try:
        drive.mount(str(point), **({"force_remount": True} if force else {}))
        reached = _state(point, places) == "alive"
        reason = "it was mounted, but does not answer"
    # NotImplementedError: this Colab has no Drive. ValueError: timeout, refused, or folder in use.
    except (NotImplementedError, ValueError, OSError) as error:
        reached, reason = False, str(error)
    if not reached:
        raise UserError(
            f"Google Drive could not be opened: {reason}.",
            fix="run the cell again and allow the access, or untick use_drive.",
        )


def _no_drive(point: Path) -> UserError:
    return UserError(
        f"{point} is a plain folder on this machine, not Google Drive; another notebook may have made it.",
        fix="move what you need out of it, remove it and run the cell again, or untick use_drive.",
    )


def _google_drive() -> Any:
    try:
        from google.colab import drive
    except ImportError as error:
        raise UserError(
            f"Google Drive could not be opened: {error}.",
            fix="run the cell again and allow the access, or untick use_drive.",
        ) from None
    return drive


def _judged(root: Path, places: Places) -> Workspace:
    """What kind of place `root` is, by the host and the disk it lies on."""
    host = hosts.which()
    point, disk = hosts.file_system(root, places.mount_table)
    kind: Kind = "folder"
    if point in places.mount_points:
        kind = "shared drive" if root.is_relative_to(point / "Shareddrives") else "drive"
    elif disk in _IN_MEMORY or host == "colab":
        kind = "temporary"
    elif host in hosts.VOLUMES:
        # Rented machines may come without a volume: then the folder is there, but on the machine's own disk.
        kept = root.is_relative_to(hosts.VOLUMES[host]) and (host == "kaggle" or point != Path(point.anchor))
        kind = host if kept else "temporary"
    remote = is_remote(root, places.mount_table)
    durable = kind not in ("temporary", "kaggle")
    return Workspace(root, kind, durable, local_disk(root, places), remote)


def _told(workspace: Workspace) -> list[str]:
    lines = [f"Sessions are kept in {workspace.root}."]
    if workspace.kind == "temporary":
        lines.append(
            "This storage is temporary: it is gone when this machine ends. Download what you want to keep."
        )
    if workspace.kind == "kaggle":
        lines.append("Kaggle keeps it only with Persistence switched on, or when you save a version.")
    if workspace.root != hosts.default_root():
        lines.append(f'Commands find it with: --root "{workspace.root}"')
    return lines
