"""TensorBoard's event file, as far as scalars go, without protobuf and without a second of imports.

The format is TensorFlow's: records of length, masked CRC-32C, bytes, masked CRC-32C
(https://www.tensorflow.org/tutorials/load_data/tfrecord), each the message Event of tensorboard/compat/proto/event.proto.
TensorBoard's own writer loads protobuf's C++ library, and a notebook kernel or a test process that had loaded others of
its users before ended there with a segmentation fault.
"""

from __future__ import annotations

import struct
import time
from functools import cache
from pathlib import Path

_FLUSH_S = 10.0
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5  # protobuf's wire types
_SESSION_START = 1


class EventFile:
    """Appends scalars to a new events.out.tfevents file in a folder; a reader may follow while it grows."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """`first_step`: readers forget what earlier files of the folder say of this step and later ones.

        FileExistsError if another writer began in this microsecond.
        """
        # Readers take the files of a folder in the order of their names.
        self._file = (folder / f"events.out.tfevents.{time.time():.6f}.fastsd").open("xb")
        self._event(_field(3, b"brain.Event:2"))
        self._event(_number(2, first_step) + _field(7, _number(1, _SESSION_START)))
        self.flush()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """`step` from 0; `value` is kept in 32 bits, larger ones as infinity."""
        scalar = _field(1, name.encode()) + _key(2, _FLOAT) + _float(value)
        self._event(_number(2, step) + _field(5, _field(1, scalar)))
        if time.monotonic() - self._flushed >= _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()

    def _event(self, content: bytes) -> None:
        event = _key(1, _DOUBLE) + struct.pack("<d", time.time()) + content
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked(length) + event + _masked(event))


def _key(number: int, kind: int) -> bytes:
    return bytes([number << 3 | kind])


def _number(number: int, value: int) -> bytes:
    return _key(number, _VARINT) + _varint(value)


def _field(number: int, content: bytes) -> bytes:
    return _key(number, _BYTES) + _varint(len(content)) + content


def _float(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:  # struct refuses what the format would call infinite
        return struct.pack("<f", float("inf") if value > 0 else float("-inf"))


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit says that more follow."""
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    return bytes([*result, value])


def _masked(content: bytes) -> bytes:
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(content: bytes) -> int:
    """The Castagnoli CRC of RFC 3720, appendix B.4, a byte at a time: an event has fewer than a hundred."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in content:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@cache
def _table() -> tuple[int, ...]:
    def entry(value: int) -> int:
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        return value

    return tuple(entry(byte) for byte in range(256))
