"""Zips and tars from strangers: looked through before a byte is unpacked, every byte counted while it is."""

from __future__ import annotations

import stat
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.file_kinds import kind_of_file, with_article
from fastsd_lib.core.files import CHUNK_BYTES
from fastsd_lib.core.text import escaped

MAX_ENTRIES = 50_000
MAX_BYTES = 20 * 10**9
MAX_RATIO = 100  # photos and weights hardly shrink
MAX_DEPTH = 32
MAX_DIRECTORY_BYTES = 64 << 20  # of a zip, with all names and comments: ZipFile reads it whole
SMALL_BYTES = 50 * 10**6  # below this the ratio does not matter: logs and drawings on white shrink well
_LOOK_FIRST = "unpack it yourself, look at what is in it, and take the folder."


class ArchiveRefused(UserError):
    """An archive that is not unpacked. `code`: "not_a_zip", "damaged_zip", "unsafe_zip", "damaged"."""

    def __init__(self, code: str, message: str, fix: str) -> None:
        super().__init__(message, fix)
        self.code = code


@dataclass(frozen=True)
class Member:
    """A file in an archive. `blocks` yields its bytes, once and in the archive's order."""

    name: str  # as the archive has it, "/" between its parts
    blocks: Callable[[], Iterator[bytes]]


class Budget:
    """Counts what really comes out of an archive of `packed_bytes`; ArchiveRefused beyond the limits."""

    def __init__(self, label: str, packed_bytes: int) -> None:
        self.label, self.packed_bytes = label, packed_bytes
        self.entries = self.bytes = 0

    def take_entry(self) -> None:
        self.entries += 1
        if self.entries > MAX_ENTRIES:
            raise unsafe(self.label, f"it holds more than {MAX_ENTRIES} files")

    def take(self, count: int) -> None:
        self.bytes += count
        if self.bytes > MAX_BYTES:
            raise unsafe(self.label, f"it unpacks to more than {MAX_BYTES / 1e9:.0f} GB")
        if self.bytes > max(SMALL_BYTES, MAX_RATIO * self.packed_bytes):
            raise unsafe(self.label, f"it unpacks to more than {MAX_RATIO} times its size")


def unsafe(label: str, reason: str) -> ArchiveRefused:
    return ArchiveRefused("unsafe_zip", f"{label} is refused: {reason}.", _LOOK_FIRST)


def damaged(label: str) -> ArchiveRefused:
    return ArchiveRefused("damaged_zip", f"{label} is damaged or cut short.", "copy it again.")


def path_danger(name: str) -> str:
    """Why a file of this name must not be unpacked; "" when it stays below the folder it is put into."""
    shown = repr(escaped(name[:80]))
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or name.startswith(("/", "\\")) or name[1:2] == ":" or "\0" in name:
        return f"the entry {shown} points out of the archive"
    if not parts:
        return "an entry has no name"
    return f"the entry {shown}... lies {len(parts)} folders deep" if len(parts) > MAX_DEPTH else ""


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip all of whose entries are harmless; ArchiveRefused with the reason for any other file."""
    label, kind = escaped(path.name), kind_of_file(path)
    if kind != "zip archive":
        raise ArchiveRefused(
            "not_a_zip", f"{label} is not a zip: it is {with_article(kind)}.", "make a zip of it."
        )
    try:
        if _entry_count(path) > MAX_ENTRIES:
            raise unsafe(label, f"it holds more than {MAX_ENTRIES} files")
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, struct.error, ValueError, OSError, NotImplementedError):
        raise damaged(label) from None
    with archive:
        if reason := _danger(archive, path.stat().st_size):
            raise unsafe(label, reason)
        yield archive


def zip_members(archive: zipfile.ZipFile, budget: Budget) -> Iterator[Member]:
    """Its files, not its folders; a damaged one raises ArchiveRefused when it is read."""
    for entry in archive.infolist():
        budget.take_entry()
        if not entry.is_dir():
            yield Member(_spoken_name(entry), lambda entry=entry: _counted(archive, entry, budget))


def unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, into: Path) -> None:
    """Write one entry to the file `into`; ArchiveRefused when it is damaged."""
    with into.open("wb") as plain:
        for block in zip_blocks(archive, entry):
            plain.write(block)


def zip_blocks(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    """The bytes of one entry.

    An entry that lies about its size ends there: zipfile stops at the declared size, and its CRC is wrong.
    """
    try:
        with archive.open(entry) as packed:
            while block := packed.read(CHUNK_BYTES):
                yield block
    except Exception as error:  # each codec has an error class of its own
        if isinstance(error, OSError) and error.errno:  # our disk, not the archive
            raise
        name, reason = escaped(PurePosixPath(entry.filename).name), escaped(str(error)[:100])
        message = f"{name} is damaged in its zip: {reason or type(error).__name__}."
        raise ArchiveRefused("damaged", message, "make the zip again.") from None


def _counted(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, budget: Budget) -> Iterator[bytes]:
    for block in zip_blocks(archive, entry):
        budget.take(len(block))
        yield block


def _danger(archive: zipfile.ZipFile, packed_bytes: int) -> str:
    entries = archive.infolist()
    total = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_ENTRIES:
        return f"it holds {len(entries)} files, more than {MAX_ENTRIES}"
    if total > MAX_BYTES:
        return f"it unpacks to {total / 1e9:.0f} GB, more than {MAX_BYTES / 1e9:.0f}"
    if total > max(SMALL_BYTES, MAX_RATIO * packed_bytes):
        return f"it unpacks to {total / packed_bytes:.0f} times its size"
    for entry in entries:
        name, mode = entry.orig_filename, entry.external_attr >> 16
        if reason := path_danger(name):
            return reason
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            return f"the entry {escaped(name[:80])!r} is a link or a device"
        if entry.flag_bits & 1:
            return "it is encrypted"
        # zipfile bounds what these two take of the memory; of bzip2 and LZMA it does not.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return f"the entry {escaped(name[:80])!r} is packed in a way that few programs can read"
    return _overlap(archive)


def _overlap(archive: zipfile.ZipFile) -> str:
    """Files that share their bytes: how 46 MB become 4 PB."""
    end = 0
    for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            return "its entries overlap"
        end = entry.header_offset + zipfile.sizeFileHeader + entry.compress_size
    return "its entries overlap" if end > archive.start_dir else ""


def _entry_count(path: Path) -> int:
    """How many entries the directory of a zip really has, up to one more than is allowed.

    ZipFile keeps a kilobyte for each, and the number that a zip declares may be a lie.
    """
    with path.open("rb") as file:
        end = zipfile._EndRecData(file)  # the very record that ZipFile will go by
        if not end or end[zipfile._ECD_SIZE] > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile
        file.seek(max(0, end[zipfile._ECD_LOCATION] - end[zipfile._ECD_SIZE]))
        if end[zipfile._ECD_SIGNATURE] == zipfile.stringEndArchive64:
            file.seek(max(0, file.tell() - zipfile.sizeEndCentDir64 - zipfile.sizeEndCentDir64Locator))
        left, count = end[zipfile._ECD_SIZE], 0
        while left > 0 and count <= MAX_ENTRIES:
            head = file.read(zipfile.sizeCentralDir)
            if len(head) < zipfile.sizeCentralDir or head[:4] != zipfile.stringCentralDir:
                break  # ZipFile says what is wrong with it
            more = sum(struct.unpack("<HHH", head[28:34]))  # name, extra fields, comment
            file.seek(more, 1)
            left -= len(head) + more
            count += 1
    return count


def _spoken_name(entry: zipfile.ZipInfo) -> str:
    """Its name with "/"; UTF-8 that was not declared as such is read as UTF-8 all the same."""
    name = entry.filename
    if not entry.flag_bits & 0x800 and not name.isascii():
        with suppress(ValueError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")
