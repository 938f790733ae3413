"""Which machine this is, and where its user keeps things."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Literal

Host = Literal["colab", "kaggle", "runpod", "paperspace", "plain"]

DRIVE = Path("/content/drive/MyDrive")
#: Hosts whose own Python already holds the stack: there we add to it instead of making an environment beside it.
READY_MADE = {"colab", "kaggle"}


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


def drive_is_mounted(drive: Path | None = None) -> bool:
    """A mount that died still shows its folder, but refuses to list it."""
    drive = drive or DRIVE
    try:
        return drive.is_dir() and os.access(drive, os.W_OK) and next(drive.iterdir(), None) is not None
    except OSError:
        return False


def default_root() -> Path:
    """Where sessions live unless --root says otherwise: what survives the machine, if there is such a place."""
    host = which()
    if host == "colab" and drive_is_mounted():
        return DRIVE
    places = {"kaggle": Path("/kaggle/working"), "runpod": Path("/workspace"), "paperspace": Path("/storage")}
    if host in places and places[host].is_dir():
        return places[host] / "fastsd"
    return Path.home() / "fastsd"
