"""Which machine this is, and where its user keeps things."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

Host = Literal["colab", "kaggle", "runpod", "paperspace", "plain"]

#: Where Colab notebooks mount Google Drive: the usual place, and that of the older fast-DreamBooth notebooks.
DRIVE_MOUNTS = (Path("/content/drive"), Path("/content/gdrive"))
MOUNT_TABLE = Path("/proc/mounts")
#: Hosts whose own Python already holds the stack: there we add to it instead of making an environment beside it.
READY_MADE = {"colab", "kaggle"}
#: What each of these hosts keeps when its machine ends.
VOLUMES = {"kaggle": Path("/kaggle/working"), "runpod": Path("/workspace"), "paperspace": Path("/storage")}


def which() -> Host:
    """Named by what each host puts into every session; never by importing its packages."""
    if os.environ.get("COLAB_RELEASE_TAG") or (Path("/content").is_dir() and "google.colab" in sys.modules):
        return "colab"
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return "kaggle"
    if os.environ.get("RUNPOD_POD_ID"):
        return "runpod"
    if os.environ.get("PAPERSPACE_NOTEBOOK_REPO_ID") or os.environ.get("PAPERSPACE_FQDN"):
        return "paperspace"
    return "plain"


def has_nvidia_gpu() -> bool:
    """True if a driver is loaded; no library is opened to find out."""
    signs = (
        Path("/proc/driver/nvidia/version"),
        Path("/dev/nvidiactl"),
        Path("/usr/lib/wsl/lib/libcuda.so.1"),
    )
    return any(sign.exists() for sign in signs) or (
        sys.platform == "win32" and bool(shutil.which("nvidia-smi"))
    )


def file_system(path: Path, table: Path = MOUNT_TABLE) -> tuple[Path, str]:
    """(mount point, type) of the disk that holds `path`, such as (/content/drive, "fuse.drive").

    By the longest mount point above it; the last line wins where one was mounted over another. Type "" = not
    known: this system has no such table.
    """
    real = Path(os.path.realpath(path))  # never fails, not even where a mount has died
    try:
        lines = table.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return Path(real.anchor), ""
    best, kind = Path(real.anchor), ""
    for line in lines:
        fields = line.split()
        if len(fields) < 3:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[1]))
        if real.is_relative_to(point) and len(point.parts) >= len(best.parts):
            best, kind = point, fields[2]
    return best, kind


def mounted_drive(points: Sequence[Path] | None = None, table: Path | None = None) -> Path | None:
    """Where Google Drive is mounted and answers, else None; a plain folder of that name does not count."""
    for point in points or DRIVE_MOUNTS:
        if file_system(point, table or MOUNT_TABLE)[0] == point:
            try:
                if (point / "MyDrive").is_dir() and os.listdir(point / "MyDrive") is not None:
                    return point
            except OSError:  # a mount that died still shows its folder
                continue
    return None


def default_root() -> Path:
    """Where sessions live unless --root says otherwise: what survives the machine, if there is such a place."""
    host = which()
    if host == "colab" and (drive := mounted_drive()):
        return drive / "MyDrive"
    if host in VOLUMES and VOLUMES[host].is_dir():
        return VOLUMES[host] / "fastsd"
    return Path.home() / "fastsd"
