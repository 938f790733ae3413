"""Google Drive links that somebody shared: a folder, or one archive, fetched by gdown without an account."""

from __future__ import annotations

import errno
import inspect
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fastsd_lib.core.archives import MAX_BYTES, MAX_ENTRIES, path_danger, unsafe
from fastsd_lib.core.errors import UserError, require
from fastsd_lib.core.file_kinds import kind_of_file
from fastsd_lib.core.files import CHUNK_BYTES
from fastsd_lib.core.progress import ProgressEvent, Report
from fastsd_lib.core.text import escaped
from fastsd_lib.models.download_names import chosen_name, free_place, with_true_suffix
from fastsd_lib.models.download_part import OwnDisk
from fastsd_lib.models.download_watch import SPARE_BYTES
from fastsd_lib.sessions.intake import Intake

_STALLED_S = 60.0
_SHARE = "in Drive choose Share, General access: Anyone with the link, and try again."


def is_drive(link: str) -> bool:
    try:
        return (urlsplit(link).hostname or "") in ("drive.google.com", "docs.google.com")
    except ValueError:  # half an IPv6 address
        return False


def fetch(link: str, folder: Path, report: Report) -> Path | tuple[Intake, str]:
    """The archive behind a link to a file, or the files behind a link to a folder, and the folder's name.

    UserError when the link is neither, is not shared with everybody, or Drive gives a web page in place of a file.
    """
    require("gdown", group="core")
    kind, identity = _identity(link)
    if kind == "file":
        return _fetch_file(identity, folder)
    return _fetch_folder(identity, folder, report)


def fetch_model(link: str, folder: Path, report: Report) -> Path:
    """The file behind a link, in `folder` by the name that Drive tells; what was broken off is gone on with.

    UserError for the link of a folder, and when Drive gives a web page in place of the file.
    """
    require("gdown", group="core")
    kind, identity = _identity(link)
    if kind == "folder":
        raise UserError(
            "This Google Drive link is of a folder.",
            fix="give the link of one file in it, or its path on Drive.",
        )
    scratch = folder / "from-drive"
    scratch.mkdir(parents=True, exist_ok=True)
    _check_space(scratch)
    report(ProgressEvent("download from Google Drive", 0, 1))
    try:
        _gdown("download", id=identity, output=f"{scratch}/", resume=True)
        found = [path for path in scratch.iterdir() if path.suffix != ".part" and not path.is_symlink()]
        if len(found) != 1 or not found[0].is_file():
            raise UserError("Google Drive gave no file.", fix=_SHARE)
        try:
            _refuse_web_page(found[0], "the file")
        except UserError:
            found[0].unlink()
            raise
        name = chosen_name("", found[0].name, "", identity)
        final = free_place(folder, with_true_suffix(name, found[0]))
        found[0].rename(final)
    finally:
        with suppress(OSError):  # it stays when what is in it can be gone on with
            scratch.rmdir()
    report(ProgressEvent("download from Google Drive", 1, 1))
    return final


def _check_space(folder: Path) -> None:
    """Drive does not tell how large a file is: only a disk that is full already is found before."""
    free = shutil.disk_usage(folder).free
    if free < SPARE_BYTES:
        raise OwnDisk(
            f"{folder} has {free / 1e6:,.0f} MB free, and a model needs more.",
            fix="free some space there, or choose another folder.",
        )


def _identity(link: str) -> tuple[str, str]:
    """("folder" or "file", its id)."""
    parts = urlsplit(link)
    if found := re.search(r"/folders/([-\w]{10,})", parts.path):
        return "folder", found[1]
    if found := re.search(r"/file/(?:u/\d+/)?d/([-\w]{10,})", parts.path):
        return "file", found[1]
    ids = parse_qs(parts.query).get("id", [""])
    if re.fullmatch(r"[-\w]{10,}", ids[0]):
        return ("folder" if "folderview" in parts.path else "file"), ids[0]
    raise UserError(
        "This Google Drive link is neither of a folder nor of a file.",
        fix="in Drive choose Share, Copy link: it looks like https://drive.google.com/drive/folders/...",
    )


def _fetch_file(identity: str, folder: Path) -> Path:
    into = folder / "from-drive.zip"
    _gdown("download", id=identity, output=str(into))
    if not into.is_file():
        raise UserError("Google Drive gave no file.", fix=_SHARE)
    _refuse_web_page(into, "the file")
    return into


def _fetch_folder(identity: str, folder: Path, report: Report) -> tuple[Intake, str]:
    """Each file is fetched under a number: no name that Drive tells touches the disk here."""
    listed = _gdown("download_folder", id=identity, output=str(folder / "unused"), skip_download=True)
    intake = Intake(folder, "the Drive folder")
    if not listed:
        raise UserError("This Google Drive folder is empty, or is not shared.", fix=_SHARE)
    if len(listed) > MAX_ENTRIES:
        raise unsafe(intake.label, f"it holds more than {MAX_ENTRIES} files")
    total = 0
    for number, one in enumerate(listed):
        name = Path(one.path).as_posix()
        if reason := path_danger(name):
            raise unsafe(intake.label, reason)
        report(ProgressEvent("fetched", number, len(listed), {"file": escaped(name[-60:])}))
        if not intake.wants(name):
            continue
        into = intake.free_path()
        _gdown("download", id=one.id, output=str(into))
        if not into.is_file():
            raise UserError(f"Google Drive did not give {escaped(name)}.", fix=_SHARE)
        if not name.lower().endswith((".html", ".htm")):
            _refuse_web_page(into, escaped(name))
        total += into.stat().st_size
        if total > MAX_BYTES:
            raise unsafe(intake.label, f"it holds more than {MAX_BYTES / 1e9:.0f} GB")
        _take(intake, name, into)
    report(ProgressEvent("fetched", len(listed), len(listed)))
    return intake, "from-drive"


def _take(intake: Intake, name: str, fetched: Path) -> None:
    with fetched.open("rb") as file:
        intake.take(name, iter(lambda: file.read(CHUNK_BYTES), b""))
    fetched.unlink()


def _refuse_web_page(path: Path, what: str) -> None:
    if kind_of_file(path) == "web page":
        raise UserError(
            f"Google Drive gave a web page in place of {what}: its download limit is reached, or it is not shared.",
            fix=f"try again tomorrow, or {_SHARE}",
        )


def _gdown(function: str, **wanted: Any) -> Any:
    """Call gdown with what its version understands; its errors become one line."""
    import gdown

    call: Callable = getattr(gdown, function)
    known: Mapping[str, Any] = inspect.signature(call).parameters
    # Cookies would be those of some other session of this machine; the link must open without.
    settings = {"quiet": True, "use_cookies": False, "timeout": _STALLED_S, **wanted}
    try:
        return call(**{key: value for key, value in settings.items() if key in known})
    except UserError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                "The disk is full.", fix="free some space and run this again: it goes on where it stopped."
            ) from None
        if error.errno and error.filename:  # our disk
            raise
        raise _no_answer(error) from None
    except Exception as error:  # gdown's own, bs4's and requests' have no common class
        raise _no_answer(error) from None


def _no_answer(error: Exception) -> UserError:
    kind, text = type(error).__name__, str(error)
    if "Connection" in kind or "Timeout" in kind or "Proxy" in kind or "SSL" in kind:
        return UserError(
            f"No connection to Google Drive ({kind}).", fix="connect to the network and try again."
        )
    if "50 files" in text or "MaximumLimit" in kind:
        return UserError("This gdown lists only 50 files of a folder.", fix="pip install --upgrade gdown")
    if "too many users" in text.lower() or "quota" in text.lower():
        return UserError(
            "Google Drive gives this file to nobody now: too many people have fetched it (its quota is used up).",
            fix="try again tomorrow, or add the file to your own Drive, make a copy there and give that one's path.",
        )
    return UserError(
        "Google Drive does not show what is behind this link: it is not shared with everybody.", fix=_SHARE
    )
