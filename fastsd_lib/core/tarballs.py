"""Tars from strangers, plain or gzipped: read as a stream, never "extracted"."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fastsd_lib.core.archives import ArchiveRefused, Budget, Member, damaged, path_danger, unsafe
from fastsd_lib.core.files import CHUNK_BYTES
from fastsd_lib.core.text import escaped

MAX_HEADER_BYTES = 1 << 20  # of a long name or of pax records, which tarfile reads into memory
_EXTENDED = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip


def is_tar(path: Path) -> bool:
    """By content: a tar's magic word, behind gzip or not."""
    with path.open("rb") as file:
        head = file.read(512)
        if head[:2] == b"\x1f\x8b":
            file.seek(0)
            try:
                head = gzip.GzipFile(fileobj=file).read(512)
            except (OSError, EOFError, zlib.error):
                return True  # open_tar says that it is damaged
    return head[257:262] == b"ustar"


@contextmanager
def open_tar(path: Path, budget: Budget) -> Iterator[Iterator[Member]]:
    """Its files in order; each must be read before the next is asked for. ArchiveRefused for any danger."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        source = _Counted(gzip.GzipFile(fileobj=file) if packed else file, budget)
        yield _members(source, budget)


class _Header(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        found = super().frombuf(buf, encoding, errors)
        if found.type in _EXTENDED and found.size > MAX_HEADER_BYTES:
            raise _TooLarge
        return found


class _TooLarge(Exception):
    """A header that is made to fill the memory."""


class _Counted:
    """What tarfile reads from; every byte that comes out of the packing is counted."""

    def __init__(self, source: BinaryIO | gzip.GzipFile, budget: Budget) -> None:
        self._source, self._budget, self.count = source, budget, 0

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        self.count += len(data)
        self._budget.take(len(data))
        return data


def _members(source: _Counted, budget: Budget) -> Iterator[Member]:
    label = budget.label
    try:
        with tarfile.open(fileobj=source, mode="r|", tarinfo=_Header, errors="surrogateescape") as archive:
            while entry := archive.next():
                budget.take_entry()
                if reason := path_danger(entry.name) or _kind_danger(entry):
                    raise unsafe(label, reason)
                if entry.isreg():
                    yield Member(
                        entry.name.replace("\\", "/"), lambda entry=entry: _blocks(archive, entry, label)
                    )
                archive.members.clear()  # tarfile would keep every one
            if source.count < archive.offset + tarfile.BLOCKSIZE:  # the empty block that ends each tar
                raise damaged(label)
    except _TooLarge:
        raise unsafe(label, "one of its headers is made to fill the memory") from None
    except Exception as error:
        raise _as_refusal(error, label) from None


def _kind_danger(entry: tarfile.TarInfo) -> str:
    if entry.issparse():
        return f"the entry {escaped(entry.name[:80])!r} is a sparse file"
    if not (entry.isreg() or entry.isdir()):
        return f"the entry {escaped(entry.name[:80])!r} is a link or a device"
    return ""


def _blocks(archive: tarfile.TarFile, entry: tarfile.TarInfo, label: str) -> Iterator[bytes]:
    try:
        plain = archive.extractfile(entry)
        while block := plain.read(CHUNK_BYTES):
            yield block
    except Exception as error:
        raise _as_refusal(error, label) from None


def _as_refusal(error: Exception, label: str) -> Exception:
    """tarfile, gzip and zlib have error classes of their own; those of our disk have a number."""
    if isinstance(error, ArchiveRefused) or (isinstance(error, OSError) and error.errno):
        return error
    return damaged(label)
