"""Where a notebook keeps its sessions: Drive on Colab, else a folder. Only this file knows google.colab."""

from __future__ import annotations

from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.environment import hosts
from fastsd_lib.environment.bootstrap import Say

MOUNT_POINT = hosts.DRIVE.parent


def open_storage(folder: str | Path = "", use_drive: bool = True, report: Say = print) -> Path:
    """The folder that sessions go to: `folder`, else Drive on Colab, else `default_root()`.

    On Colab this asks for access to Drive once; with `use_drive=False` everything stays on the machine, which
    forgets it at the end of the runtime.
    """
    if str(folder).strip():
        root = Path(str(folder).strip()).expanduser()
    else:
        if use_drive and hosts.which() == "colab" and not hosts.drive_is_mounted():
            _mount_drive()
        root = hosts.default_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{root} cannot be used: {reason}.", fix="choose another storage folder.") from None
    report(f"Sessions are kept in {root}.")
    if hosts.which() == "colab" and hosts.DRIVE not in (root, *root.parents):
        report("This machine forgets them when its runtime ends: download what you want to keep.")
    return root


def _mount_drive() -> None:
    try:
        from google.colab import drive

        drive.mount(str(MOUNT_POINT))
    # NotImplementedError: this Colab has no Drive. ValueError: timeout, refused, or folder in use.
    except (ImportError, NotImplementedError, ValueError) as error:
        raise UserError(
            f"Google Drive could not be opened: {error}.",
            fix="run the cell again and allow the access, or untick use_drive.",
        ) from None
