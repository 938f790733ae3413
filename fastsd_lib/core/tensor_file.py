"""Safetensors files: the header read without loading a weight, and new files written as a stream.

The format: 8 bytes little-endian header length, a JSON header, then the data of all tensors without holes.
https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastsd_lib.core.byte_range import ByteRange, Made
from fastsd_lib.core.checked_writing import Piece, ReadsBackDifferently, write_checked
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.core.text import escaped

#: Readers map the data and compute with it as it lies: at these places as fast, and to the same bit, as in memory.
ALIGNED_BYTES = 64
MAX_HEADER_BYTES = 25_000_000  # the largest models have one megabyte; some carry a picture in it
MAX_ENTRIES = 1_000_000  # brackets in the header: each can cost a hundred times its byte
MAX_SIDES = 64  # of a tensor
MAX_NAME = 1000  # letters
#: JSON and pickles can spell half of a surrogate pair alone, which no file can hold.
HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")
BYTES_PER_VALUE = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """Where one tensor's bytes lie: `start` and `end` count from the beginning of the file."""

    dtype: str  # "F32", "F16", "BF16", "I64" ...
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class TensorFile:
    """What a safetensors header says."""

    path: Path
    tensors: Mapping[str, Tensor]  # in the order of their bytes
    metadata: Mapping[str, str]

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of one tensor, a mebibyte at a time."""
        tensor = self.tensors[name]
        return ByteRange(self.path, tensor.start, tensor.end).chunks()


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written; `chunks()` yields exactly the bytes that dtype and shape ask for.

    `ranges`: where those bytes lie, in this order, or what each of them is computed from.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[bytes]]
    ranges: tuple[ByteRange | Made, ...] = ()

    @property
    def size_bytes(self) -> int:
        return _values(self.shape) * BYTES_PER_VALUE[self.dtype]

    @classmethod
    def copied(
        cls, name: str, dtype: str, shape: tuple[int, ...], ranges: Iterable[ByteRange | Made]
    ) -> NewTensor:
        """A tensor whose bytes lie in `ranges` as they are."""
        kept = tuple(ranges)
        return cls(name, dtype, shape, lambda: (chunk for one in kept for chunk in one.chunks()), kept)


def read_tensor_file(path: Path) -> TensorFile:
    """Read and check the header; no weight is read, whatever the size of the file.

    Raises UserError for a file that is missing, cut short, a web page, a pickle, or has an impossible header.
    """
    try:
        size_bytes = path.stat().st_size
        if not path.is_file() and not path.is_dir():
            raise UserError(f"{path} is a pipe or a device, not a file.", fix="name the model file itself.")
        with path.open("rb") as handle:
            start = handle.read(512)
            _refuse_other_formats(path, start)
            (length,) = struct.unpack("<Q", start[:8])
            if length > MAX_HEADER_BYTES:
                raise _damaged(path, f"claims a header of {length:,} bytes")
            if 8 + length > size_bytes:
                raise _damaged(path, f"has {size_bytes:,} bytes but its header alone needs {8 + length:,}")
            handle.seek(8)
            text = handle.read(length)
        if text.count(b"[") + text.count(b"{") > MAX_ENTRIES or text.count(b",") > 4 * MAX_ENTRIES:
            raise _damaged(path, "lists more than a million things in its header")
        header = json.loads(text, object_pairs_hook=_without_twins)
    except FileNotFoundError:
        raise UserError(
            f"There is no file {path}.", fix="check the path; it must end in .safetensors."
        ) from None
    except IsADirectoryError:
        raise UserError(
            f"{path} is a folder, not a .safetensors file.", fix="name the file itself."
        ) from None
    except _Twins as twins:
        raise _damaged(path, f"names {_shown(str(twins))} twice in its header") from None
    except (ValueError, RecursionError):
        raise _damaged(path, "has a header that is not JSON") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}.", fix="check the path and who may read it."
        ) from None
    return TensorFile(path, *_parse_header(path, header, data_start=8 + length, size_bytes=size_bytes))


def write_tensor_file(
    path: Path,
    tensors: Sequence[NewTensor],
    metadata: Mapping[str, str],
    hash_key: str = "",
    named: Path | None = None,
    report: Report = silent,
) -> None:
    """Write `tensors` in their order and read them back; memory stays constant whatever their size.

    `hash_key` names a metadata entry that receives
    "0x" + sha256 over all tensor data, as the modelspec convention has it: it is taken beside the copying, and is
    the slowest part of it where the disk is fast. `named`: what the user calls the file while `path` is a scratch one.
    UserError when the disk gives back other bytes than it was given.
    """
    named = named or path
    held_free = "0x" + "?" * 64  # of the same length as the hash
    header = header_bytes(tensors, {**metadata, hash_key: held_free} if hash_key else metadata)
    places = tensor_places(tensors, len(header))
    path.write_bytes(b"")
    try:
        pieces = tensor_pieces(places, named, report)
        written = write_checked(
            path, pieces, sha256=bool(hash_key), size_bytes=sum(tensor.size_bytes for tensor in tensors)
        )
        header = header.replace(held_free.encode(), f"0x{written.sha256}".encode()) if hash_key else header
        write_checked(path, [Piece("header", 0, header)])
    except ReadsBackDifferently as wrong:
        raise disk_lies(named, places, wrong.at) from None
    report(ProgressEvent(f"writing {named.name}", len(tensors), len(tensors)))


# A tensor, and where its first byte stands in the new file.
Places = list[tuple[NewTensor, int]]


def tensor_places(tensors: Sequence[NewTensor], start: int) -> Places:
    """One after another from `start` on, without holes."""
    places = []
    for tensor in tensors:
        places.append((tensor, start))
        start += tensor.size_bytes
    return places


def tensor_pieces(places: Places, named: Path, report: Report) -> Iterator[Piece]:
    """What is to be written where; ValueError for a tensor that brings more or fewer bytes than it promises."""
    for number, (tensor, place) in enumerate(places):
        report(ProgressEvent(f"writing {named.name}", number, len(places)))
        given: Iterable[bytes | ByteRange | Made] = tensor.ranges or tensor.chunks()
        at = place
        for content in given:
            piece = Piece(tensor.name, at, content)
            at += piece.size_bytes
            if at <= place + tensor.size_bytes:  # never over its neighbour
                yield piece
        if at - place != tensor.size_bytes:
            raise ValueError(f"{tensor.name}: {at - place} bytes given, {tensor.size_bytes} expected")


def disk_lies(named: Path, places: Places, at: int) -> UserError:
    """What to say when the byte at `at` is not what was written there."""
    name = next((tensor.name for tensor, place in reversed(places) if place <= at), "the header")
    return UserError(
        f"{named} reads back differently from what was written (first at {name}): the disk is failing.",
        fix="write to another disk.",
    )


def header_bytes(tensors: Sequence[NewTensor], metadata: Mapping[str, str]) -> bytes:
    """All that stands before the data of `tensors` in their order."""
    texts = {name: whole_text(text) for name, text in metadata.items()}
    header: dict[str, object] = {"__metadata__": texts} if texts else {}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.size_bytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNED_BYTES)
    return struct.pack("<Q", len(text)) + text


def whole_text(text: str) -> str:
    """`text` with ? for what is no character: such as a title made of a file's name that is not UTF-8."""
    return HALF_A_CHARACTER.sub("?", text)


def _parse_header(
    path: Path, header: object, data_start: int, size_bytes: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not isinstance(header, dict):
        raise _damaged(path, "has a header that lists no tensors")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "has metadata that is not text by name")
    if any(map(HALF_A_CHARACTER.search, (*header, *metadata, *metadata.values()))):
        raise _damaged(path, "spells a name or a text with half a character (a lone surrogate)")
    tensors = {name: _parse_entry(path, name, entry, data_start) for name, entry in header.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    expected = data_start
    for name, tensor in ordered.items():
        if tensor.start != expected:
            raise _damaged(path, f"has a gap or an overlap before {_shown(name)}")
        expected = tensor.end
    if expected > size_bytes:
        raise _damaged(path, f"has {size_bytes:,} of the {expected:,} bytes that its header promises")
    return ordered, metadata


def _parse_entry(path: Path, name: str, entry: object, data_start: int) -> Tensor:
    if len(name) > MAX_NAME:
        raise _damaged(path, f"names a tensor in {len(name):,} letters")
    try:
        dtype, shape, places = entry["dtype"], tuple(entry["shape"]), tuple(entry["data_offsets"])  # type: ignore[index]
        numbers = (*shape, *places)
        whole = (
            {*map(type, numbers)} == {int} and 0 <= min(numbers) <= max(numbers) < 2**63 and len(places) == 2
        )
    except (TypeError, KeyError):
        whole = False
    if not whole or len(shape) > MAX_SIDES or not isinstance(dtype, str):
        raise _damaged(path, f"has no proper entry for {_shown(name)}")
    if dtype not in BYTES_PER_VALUE:
        raise UserError(
            f"{path} holds {_shown(name)} as {escaped(dtype[:40])!r}, a type that is not known here.",
            fix=f"known are {', '.join(BYTES_PER_VALUE)}.",
        )
    start, end = data_start + places[0], data_start + places[1]
    if end - start != _values(shape) * BYTES_PER_VALUE[dtype]:
        raise _damaged(
            path, f"gives {_shown(name)} a size that does not fit its shape {list(shape)} of {dtype}"
        )
    return Tensor(dtype, shape, start, end)


def _shown(name: str) -> str:
    return repr(escaped(name[:80]))  # letter by letter, so only where something is wrong


class _Twins(Exception):
    """One name stands twice in an object: readers disagree on which of the two counts."""


def _without_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        raise _Twins(next(name for name, _ in pairs if name in seen or seen.add(name)))  # type: ignore[func-returns-value]
    return made


def _refuse_other_formats(path: Path, start: bytes) -> None:
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(
            f"{path} is a web page, not a model: the download gave an error or log-in page.",
            fix="open the link in a browser, log in or accept the licence there, and fetch the file itself.",
        )
    if text.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path} is a Git LFS pointer, not the model itself.",
            fix="run `git lfs pull` in its folder, or download the file from the model's page.",
        )
    pickled = start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04"))
    if pickled and start[8:9] != b"{":  # a header of 640 bytes begins like a pickle
        raise UserError(
            f"{path} is a pickled PyTorch file (.ckpt, .pt, .bin), which can run code when it is opened.",
            fix="take the model's .safetensors file.",
        )
    if len(start) < 8:
        raise _damaged(path, f"has only {len(start)} bytes")


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is not a whole .safetensors file: it {what}.", fix="download or copy it again.")


def _values(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count
