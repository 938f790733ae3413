"""PyTorch checkpoints (.ckpt, .pt): names, shapes and places of their tensors, read without running what is in them.

Both of PyTorch's formats: a zip with `data.pkl` and one stored entry per storage; before 1.6, pickles in a row with
the bytes of all storages behind them. What a pickle may do here is in `pickle_reader.py`.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.file_kinds import HEAD_BYTES, UNKNOWN, kind_of_file, with_article
from fastsd_lib.core.files import CHUNK_BYTES
from fastsd_lib.core.pickle_reader import (
    MAX_PICKLE_BYTES,
    MAX_READS,
    Bounded,
    Foreign,
    Refused,
    StoredTensor,
    run_pickle,
)
from fastsd_lib.core.tensor_file import BYTES_PER_VALUE, HALF_A_CHARACTER, MAX_NAME, ByteRange, Tensor
from fastsd_lib.core.text import escaped

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
MAX_TENSORS = 100_000  # the largest models have 5,000
MAX_DIRECTORY_BYTES = 2 << 20  # a zip's list of entries: 2,500 tensors take a fifth of a megabyte
OLD_FORMAT = (
    b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the first of the pickles in a row, but for two to eleven bytes
)
_NUMBERS_IN_A_ROW = 3  # magic number, protocol version, facts about the machine: what precedes the weights
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip's entry: mark, length of its name, of its extra fields
_NOWHERE = (0, 0)
# Ways to pack of which zipfile hands out no more than is asked for; PyTorch's own reader knows no others.
_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class Storage:
    """Bytes that one or several tensors look at; `start` and `end` count from the beginning of the file."""

    start: int
    end: int
    crc: int | None = None  # of the bytes, where the file says it (zip)


@dataclass(frozen=True)
class PickleHeader:
    """What a checkpoint says of itself.

    A tensor whose values lie in a row has its real `start` and `end`, so that its bytes can be copied as they are,
    just as those of a safetensors file. Both are 0 when they do not: a transposed or strided view, or all of them in
    a compressed zip. `stored` tells how each lies: contiguous or not, offset and stride in values, and the key of its
    storage, which several tensors may share (`storages` has the place of each storage).
    """

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]  # entries beside the weights that are text
    compressed: bool  # its zip was packed anew by another program
    stored: Mapping[str, StoredTensor]
    storages: Mapping[str, Storage]  # empty when compressed, or when the places were not asked for

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of one tensor in the order of its axes; a view that does not lie in a row comes all at once."""
        tensor, stored = self.tensors[name], self.stored[name]
        if tensor.end or not stored.values:
            return ByteRange(self.path, tensor.start, tensor.end).chunks()
        if stored.storage not in self.storages:
            raise UserError(
                f"{self.path} was packed anew by another program than PyTorch.",
                fix="take the original file, or the model's .safetensors file.",
            )
        if prod(stored.shape) * BYTES_PER_VALUE[stored.dtype] > max(stored.storage_bytes, CHUNK_BYTES):
            raise UserError(
                f"{self.path} spreads {escaped(name[:80])!r} over {stored.shape}, which it does not hold.",
                fix="take the model's .safetensors file.",
            )
        return iter([_gathered(self.path, stored, self.storages[stored.storage])])


def is_pickled(path: Path) -> bool:
    """Whether `path` is to be read as a PyTorch checkpoint: by its name, unless it holds safetensors."""
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        return False
    with path.open("rb") as handle:
        return handle.read(9)[8:] != b"{"


def read_pickle_header(path: Path, places: bool = True) -> PickleHeader:
    """Names, types, shapes and places of a checkpoint's tensors; no weight is read and nothing of it is executed.

    Understands `{"state_dict": {...}}`, a bare dict of tensors, and one dict of tensors inside another, whose names
    are then joined by a dot ("params_ema.conv.weight", "string_to_param.*"). Without `places` only the list of a
    zip's entries is read, not the few bytes before each. UserError for a file that is missing, cut short, another
    kind of file, or does more than hold plain weights.
    """
    try:
        if not path.is_file() and path.exists() and not path.is_dir():
            raise UserError(f"{path} is a pipe or a device, not a file.", fix="name the checkpoint itself.")
        kind = kind_of_file(path)
        if kind == "zip archive":
            value, storages, sizes, compressed = _from_zip(path, places)
        else:
            value, storages = _from_pickles_in_a_row(path, kind)
            sizes, compressed = {key: one.end - one.start for key, one in storages.items()}, False
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.", fix="check the path.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a checkpoint.", fix="name the file itself.") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}.", fix="check the path and who may read it."
        ) from None
    stored = _named_tensors(path, value)
    if not stored:
        raise _damaged(path, "holds no weights by name")
    if not compressed:
        _check_storages(path, stored, sizes)
    texts = {key: one for key, one in value.items() if isinstance(key, str) and isinstance(one, str)}
    _check_texts(path, stored, texts)
    tensors = {
        name: Tensor(one.dtype, one.shape, *_place(one, storages.get(one.storage)))
        for name, one in stored.items()
    }
    return PickleHeader(path, tensors, texts, compressed, stored, storages)


def _named_tensors(path: Path, value: Any) -> dict[str, StoredTensor]:
    """The weights by name. One dict can stand under many keys, so what comes of all of them is counted."""
    outer = value.get("state_dict", value) if isinstance(value, dict) else None
    found: dict[str, StoredTensor] = {}
    seen = tensors = letters = 0
    for key, one in outer.items() if isinstance(outer, dict) else ():
        seen += len(one) if isinstance(one, dict) else 1
        if seen > MAX_READS:
            raise _damaged(path, "lists more than a million things")
        for words, tensor in _tensors_at(str(key), one):
            tensors += 1
            length = sum(map(len, words)) + len(words) - 1
            letters += length
            if length > MAX_NAME or letters > MAX_PICKLE_BYTES:
                raise _damaged(path, f"names its tensors in {letters:,} letters")
            if tensors > MAX_TENSORS:
                raise _damaged(path, f"lists more than {MAX_TENSORS:,} tensors")
            found[".".join(words)] = tensor
    return found


def _tensors_at(key: str, one: Any) -> Iterator[tuple[tuple[str, ...], StoredTensor]]:
    """The words of a name, not yet joined, and its tensor."""
    if isinstance(one, StoredTensor):
        yield (key,), one
    elif isinstance(one, dict):
        for name, each in one.items():
            if isinstance(each, StoredTensor):
                yield (key, str(name)), each


def _check_texts(path: Path, names: Iterable[str], texts: Mapping[str, str]) -> None:
    # One text can stand under many keys: little here, and endless where all of them are written.
    if sum(len(key) + len(text) for key, text in texts.items()) > MAX_PICKLE_BYTES:
        raise _damaged(path, "holds one text again and again")
    if any(map(HALF_A_CHARACTER.search, (*names, *texts, *texts.values()))):
        raise _damaged(path, "spells a name or a text with half a character (a lone surrogate)")


def _place(one: StoredTensor, storage: Storage | None) -> tuple[int, int]:
    if storage is None or not one.contiguous:
        return _NOWHERE
    size = BYTES_PER_VALUE[one.dtype]
    start = storage.start + one.offset * size
    return start, start + one.values * size


def _gathered(path: Path, one: StoredTensor, storage: Storage) -> bytes:
    """The values of a view that does not lie in a row, put in a row."""
    import numpy as np

    size = BYTES_PER_VALUE[one.dtype]
    start = storage.start + one.offset * size
    held = b"".join(ByteRange(path, start, start + one.values * size).chunks())
    flat = np.frombuffer(held, dtype=f"V{size}")
    steps = [step * size for step in one.stride]
    return np.lib.stride_tricks.as_strided(flat, one.shape, steps, writeable=False).tobytes()


def _check_storages(path: Path, stored: Mapping[str, StoredTensor], sizes: Mapping[str, int]) -> None:
    for name, one in stored.items():
        if sizes.get(one.storage, -1) < one.storage_bytes:
            raise _damaged(path, f"lacks the data of {escaped(name[:80])!r}")


# ------------------------------------------------------------------ the zip of today


class _Modest:
    """A file that hands out no more than `MAX_DIRECTORY_BYTES` at a time: a zip's list is asked for in one piece."""

    def __init__(self, handle: BinaryIO) -> None:
        self.seek, self.tell, self._handle = handle.seek, handle.tell, handle

    def seekable(self) -> bool:
        return True

    def read(self, count: int = -1) -> bytes:
        data = self._handle.read(count if 0 <= count <= MAX_DIRECTORY_BYTES else MAX_DIRECTORY_BYTES + 1)
        if len(data) > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile("a list of entries without end")
        return data


def _from_zip(path: Path, places: bool) -> tuple[Any, dict[str, Storage], dict[str, int], bool]:
    """What the pickle makes, the places of the storages if asked for, their sizes, and whether all is compressed."""
    try:
        with path.open("rb") as handle, zipfile.ZipFile(_Modest(handle)) as archive:  # type: ignore[arg-type]
            entries = archive.infolist()
            if any(one.compress_type not in _BOUNDED for one in entries):
                raise _damaged(path, "is packed in a way that PyTorch cannot read")
            found = [one for one in entries if one.filename.endswith("/data.pkl")]
            if len(found) != 1:
                raise _damaged(path, "is a zip, but not one of PyTorch's")
            if any(one.flag_bits & 1 for one in entries):
                raise _damaged(path, "is locked with a password")
            if found[0].file_size > MAX_PICKLE_BYTES:
                raise _damaged(path, f"claims {found[0].file_size:,} bytes of names and shapes")
            folder = found[0].filename.removesuffix("data.pkl")
            _refuse_big_endian(path, archive, f"{folder}byteorder")
            with archive.open(found[0]) as entry:
                program = b"".join(iter(lambda: entry.read(CHUNK_BYTES), b""))
            compressed = any(one.compress_type != zipfile.ZIP_STORED for one in entries)
            if odd := [one for one in entries if not compressed and one.file_size != one.compress_size]:
                raise _damaged(path, f"gives {escaped(odd[0].filename[:80])!r} a size that it has not")
            held = [one for one in entries if one.filename.startswith(f"{folder}data/")]
            value, _ = _read(path, io.BytesIO(program))
            known = places and not compressed
            storages = _zip_storages(path, handle, folder, held, archive.start_dir) if known else {}
            sizes = {one.filename.removeprefix(f"{folder}data/"): one.file_size for one in held}
            return value, storages, sizes, compressed
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        ValueError,
        EOFError,
        OverflowError,
        struct.error,
        zlib.error,
    ):
        raise _damaged(path, "ends too early or is damaged") from None


def _refuse_big_endian(path: Path, archive: zipfile.ZipFile, name: str) -> None:
    if name not in archive.NameToInfo or archive.getinfo(name).file_size >= 16:
        return
    with archive.open(name) as entry:
        told = entry.read(16)  # a number, as read() alone unpacks all that is there, whatever the size says
    if told != b"little":
        raise UserError(
            f"{path} was written on a machine that stores numbers the other way round.",
            fix="take the model's .safetensors file.",
        )


def _zip_storages(
    path: Path, handle: BinaryIO, folder: str, entries: list[zipfile.ZipInfo], end: int
) -> dict[str, Storage]:
    """Where the bytes of each storage lie: what precedes them in the file is read, 30 bytes each."""
    storages: dict[str, Storage] = {}
    reached = 0
    for entry in sorted(entries, key=lambda one: one.header_offset):
        handle.seek(entry.header_offset)
        mark, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(handle.read(_LOCAL_HEADER.size))
        key = entry.filename.removeprefix(f"{folder}data/")
        start = entry.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        if mark != b"PK\3\4" or handle.read(name_bytes) != entry.orig_filename.encode():
            raise _damaged(path, f"lists {escaped(key[:80])!r} where it does not lie")
        if entry.header_offset < reached or key in storages:
            raise _damaged(path, f"holds {escaped(key[:80])!r} twice, or over other data")
        reached = start + entry.file_size
        if reached > end:
            raise _damaged(path, f"gives the data {escaped(key[:80])!r} a size that it has not")
        storages[key] = Storage(start, reached, entry.CRC)
    return storages


# ------------------------------------------------------------------ the pickles of old


def _from_pickles_in_a_row(path: Path, kind: str) -> tuple[Any, dict[str, Storage]]:
    with path.open("rb") as handle:
        head = handle.read(HEAD_BYTES)
        if head[:1] != b"\x80" or OLD_FORMAT not in head[: len(OLD_FORMAT) + 11]:
            raise _another_kind(path, kind, head, handle)
        handle.seek(0)
        bounded = Bounded(handle)
        for _ in range(_NUMBERS_IN_A_ROW):
            _read(path, bounded)
        value, sizes = _read(path, bounded)
        keys, _ = _read(path, bounded)
        return value, _storages_in_a_row(path, handle, sizes, keys)


def _another_kind(path: Path, kind: str, head: bytes, handle: BinaryIO) -> UserError:
    what = "a file of another kind" if kind == UNKNOWN else with_article(kind)
    if head[257:262] == b"ustar":  # before 0.1.10 PyTorch wrote pickles into one
        what = "a tar archive"
    if head[:1] == b"\x80":
        _read(path, io.BytesIO(head + handle.read(MAX_PICKLE_BYTES)))  # says what it would have run
        what = "a pickle, but not one of PyTorch's"
    fix = "download or copy it again; a web page is what a link gives that wants you to log in."
    return UserError(f"{path} is no PyTorch checkpoint: it is {what}.", fix=fix)


def _storages_in_a_row(
    path: Path, handle: BinaryIO, sizes: Mapping[str, tuple[int, int]], keys: Any
) -> dict[str, Storage]:
    """Each storage is a count of values, in 8 bytes, and the values; in the order of `keys`."""
    if not isinstance(keys, list) or not all(type(key) in (str, int) and str(key) in sizes for key in keys):
        raise _damaged(path, "lists data that no tensor has")
    storages: dict[str, Storage] = {}
    at, end_of_file = handle.tell(), path.stat().st_size
    for key in keys:
        size_bytes, value_bytes = sizes[str(key)]
        handle.seek(at)
        count, start = int.from_bytes(handle.read(8), "little"), at + 8
        at = start + size_bytes
        if count * value_bytes != size_bytes or at > end_of_file:
            raise _damaged(path, "ends too early or is damaged")
        storages[str(key)] = Storage(start, at)
    return storages


def _read(path: Path, program: BinaryIO | Bounded) -> tuple[Any, dict[str, tuple[int, int]]]:
    try:
        return run_pickle(program)
    except Refused as refused:
        does = "opening it would run" if isinstance(refused, Foreign) else "it holds"
        raise UserError(
            f"{path} is refused: {does} {escaped(str(refused)[:120])}; only plain weights are read.",
            fix="take the model's .safetensors file, from a source that you trust.",
        ) from None
    except UserError:
        raise
    except Exception:  # a hostile program can make the reader stumble in any way it likes
        raise _damaged(path, "ends too early or is damaged") from None


def _damaged(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} is not a whole PyTorch checkpoint: it {what}.", fix="download or copy it again."
    )
