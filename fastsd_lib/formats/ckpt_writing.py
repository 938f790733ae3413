"""PyTorch checkpoints (.ckpt) written without PyTorch: a zip of stored entries around a pickle made by hand.

The old rule of A1111's safe loader is kept: entries `NAME/data.pkl`, `NAME/data/N` and `NAME/version` and nothing
else, and a pickle that calls for OrderedDict, _rebuild_tensor_v2 and storages only. Current torch.save breaks that
rule. The zip is described in https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT (4.3 and 4.5.3).
"""

from __future__ import annotations

import pickle
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastsd_lib.core.checked_writing import Piece, ReadsBackDifferently, write_checked
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.core.tensor_file import (
    BYTES_PER_VALUE,
    NewTensor,
    Places,
    disk_lies,
    tensor_pieces,
    whole_text,
)

STORAGES = {
    "F64": "DoubleStorage", "F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage",
    "I64": "LongStorage", "I32": "IntStorage", "U8": "ByteStorage",
}  # fmt: skip  # those that A1111's rule lets through
ROOT = "archive"
WEIGHTS = "state_dict"  # the entry that they are
VERSION = b"3\n"
ALIGNMENT_BYTES = 64  # of the data, so that a reader can map it
ZIP64_FROM = 0xFFFF_FFFF  # sizes and places from here on need fields of 64 bits
ZIP64_ENTRIES = 0xFFFF
_DATED = (0, 0x21)  # midnight of 1 January 1980: the same weights make the same file


def write_ckpt(
    path: Path,
    tensors: Sequence[NewTensor],
    extra: Mapping[str, int | str] | None = None,
    hash_key: str = "",
    named: Path | None = None,
    report: Report = silent,
) -> dict[str, str]:
    """Write `{"state_dict": tensors, **extra}` as torch.load reads it and return the CRC-32 of each tensor, in hex.

    Memory stays constant; the data is read back and compared beside the copying, where its checksums are taken as
    well. `extra`: numbers and texts, {"epoch": 0, "global_step": 0} unless given. `hash_key` names an entry of it that
    receives "0x" + sha256 over all tensor data. `named`: what the user calls the file while `path` is a scratch one.
    UserError for a dtype that old loaders refuse, and when the disk gives back other bytes than it was given;
    ValueError for an `extra` that would replace the weights.
    """
    named = named or path
    _refuse_new_dtypes(tensors, named)
    extra = {"epoch": 0, "global_step": 0} if extra is None else extra
    extra = {name: whole_text(value) if isinstance(value, str) else value for name, value in extra.items()}
    if hash_key:
        extra[hash_key] = "0x" + "?" * 64
    if WEIGHTS in extra:  # the later of two entries is the one that a reader keeps
        raise ValueError(f"{named.name}: an entry named {WEIGHTS!r} would replace the weights")
    program = state_dict_pickle(tensors, extra)
    # Readers take the name before the first slash of the first entry; PyTorch puts the pickle there.
    entries = [_Entry(f"{ROOT}/data.pkl", len(program))]
    entries += [_Entry(f"{ROOT}/data/{n}", tensor.size_bytes) for n, tensor in enumerate(tensors)]
    entries += [_Entry(f"{ROOT}/version", len(VERSION))]
    end = _lay_out(entries)
    places: Places = [(tensor, entry.data_at) for tensor, entry in zip(tensors, entries[1:-1], strict=True)]
    path.write_bytes(b"")
    try:
        pieces = tensor_pieces(places, named, report)
        written = write_checked(path, pieces, checksums=True, sha256=bool(hash_key), size_bytes=end)
        if hash_key:
            program = state_dict_pickle(tensors, extra | {hash_key: f"0x{written.sha256}"})
        for tensor, entry in zip(tensors, entries[1:-1], strict=True):
            entry.crc = written.checksums.get(tensor.name, 0)
        ends = ((entries[0], program), (entries[-1], VERSION))
        for entry, content in ends:
            entry.crc = zlib.crc32(content)
        rest = [Piece(entry.name, entry.at, entry.local_header()) for entry in entries]
        rest += [Piece(entry.name, entry.data_at, content) for entry, content in ends]
        write_checked(path, [*rest, Piece("directory", end, _directory(entries, end))])
    except ReadsBackDifferently as wrong:
        raise disk_lies(named, places, wrong.at) from None
    report(ProgressEvent(f"writing {named.name}", len(tensors), len(tensors)))
    return {tensor.name: f"{written.checksums.get(tensor.name, 0):08x}" for tensor in tensors}


# ------------------------------------------------------------------ the pickle


def state_dict_pickle(tensors: Sequence[NewTensor], extra: Mapping[str, int | str]) -> bytes:
    """The program that builds `{"state_dict": {...}, **extra}`, tensor N from storage N (pickle protocol 2)."""
    program = [pickle.PROTO, b"\x02", pickle.EMPTY_DICT, pickle.MARK]
    program += [_value(WEIGHTS), pickle.EMPTY_DICT, pickle.MARK]
    for number, tensor in enumerate(tensors):
        program += [_value(tensor.name), _tensor(tensor, number)]
    program += [pickle.SETITEMS]
    for key, value in extra.items():
        program += [_value(key), _value(value)]
    return b"".join([*program, pickle.SETITEMS, pickle.STOP])


def _tensor(tensor: NewTensor, number: int) -> bytes:
    """A call of _rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)."""
    count = tensor.size_bytes // BYTES_PER_VALUE[tensor.dtype]
    storage = [
        _value("storage"), _name("torch", STORAGES[tensor.dtype]), _value(str(number)), _value("cpu"), _value(count)
    ]  # fmt: skip
    strides: list[int] = []
    stride = 1
    for length in reversed(tensor.shape):  # the last side lies closest together
        strides.insert(0, stride)
        stride *= max(length, 1)
    hooks = _name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = [
        _tuple(storage) + pickle.BINPERSID,
        _value(0),
        _tuple([_value(length) for length in tensor.shape]),
        _tuple([_value(stride) for stride in strides]),
        pickle.NEWFALSE,
        hooks,
    ]
    return _name("torch._utils", "_rebuild_tensor_v2") + _tuple(arguments) + pickle.REDUCE


def _name(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _tuple(items: Sequence[bytes]) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _value(value: int | str) -> bytes:
    if isinstance(value, str):
        text = value.encode()
        return pickle.BINUNICODE + struct.pack("<I", len(text)) + text
    if -(1 << 31) <= value < 1 << 31:
        return pickle.BININT + struct.pack("<i", value)
    number = pickle.encode_long(value)
    return pickle.LONG1 + bytes([len(number)]) + number


# ------------------------------------------------------------------ the zip


@dataclass
class _Entry:
    """One stored file of the archive; `at` and `data_at` are set by `_lay_out`, `crc` when its data is known."""

    name: str
    size: int
    at: int = 0  # where its header stands
    data_at: int = 0
    crc: int = 0

    def local_header(self) -> bytes:
        large = self.size >= ZIP64_FROM
        size = 0xFFFF_FFFF if large else self.size
        extra = struct.pack("<HHQQ", 1, 16, self.size, self.size) if large else b""
        hole = self.data_at - self.at - 30 - len(self.name) - len(extra) - 4
        extra += struct.pack("<2sH", b"FB", hole) + bytes(hole)  # PyTorch's own way to align
        fields = (
            b"PK\x03\x04", 45 if large else 20, 0, 0, *_DATED, self.crc, size, size, len(self.name), len(extra)
        )  # fmt: skip
        return struct.pack("<4s5H3I2H", *fields) + self.name.encode() + extra

    def directory_entry(self) -> bytes:
        wide = [self.size, self.size] if self.size >= ZIP64_FROM else []
        wide += [self.at] if self.at >= ZIP64_FROM else []
        extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        size = 0xFFFF_FFFF if self.size >= ZIP64_FROM else self.size
        at = 0xFFFF_FFFF if self.at >= ZIP64_FROM else self.at
        version = 45 if wide else 20
        fields = (
            b"PK\x01\x02", version, version, 0, 0, *_DATED, self.crc, size, size,
            len(self.name), len(extra), 0, 0, 0, 0, at,
        )  # fmt: skip
        return struct.pack("<4s6H3I5H2I", *fields) + self.name.encode() + extra


def _lay_out(entries: Sequence[_Entry]) -> int:
    """Give every entry its place; returns where the directory begins."""
    at = 0
    for entry in entries:
        entry.at = at
        wide = 20 if entry.size >= ZIP64_FROM else 0
        unaligned = at + 30 + len(entry.name) + wide + 4
        entry.data_at = -(-unaligned // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        at = entry.data_at + entry.size
    return at


def _directory(entries: Sequence[_Entry], at: int) -> bytes:
    listing = b"".join(entry.directory_entry() for entry in entries)
    count, size = len(entries), len(listing)
    tail = b""
    if count >= ZIP64_ENTRIES or at >= ZIP64_FROM:
        tail = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, at)
        tail += struct.pack("<4sIQI", b"PK\x06\x07", 0, at + size, 1)
        count, size, at = min(count, ZIP64_ENTRIES), min(size, 0xFFFF_FFFF), 0xFFFF_FFFF
    return listing + tail + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, size, at, 0)


def _refuse_new_dtypes(tensors: Sequence[NewTensor], named: Path) -> None:
    for tensor in tensors:
        if tensor.dtype not in STORAGES:
            raise UserError(
                f"{named.name} cannot hold {tensor.name} as {tensor.dtype}: programs that read .ckpt files refuse it.",
                fix=f"choose fp16, or write to {named.stem}.safetensors.",
            )
