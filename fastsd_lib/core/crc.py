"""CRC-32 of bytes whose parts were looked at one by one, in whatever order."""

from __future__ import annotations

from functools import lru_cache

_POLYNOMIAL = 0xEDB88320
Matrix = tuple[int, ...]  # over GF(2), a column a bit of the checksum


def joined_crc32(first: int, second: int, second_bytes: int) -> int:
    """The CRC-32 of A + B from those of A and of B, as zlib's crc32_combine does it.

    A checksum is linear in its bits: zeros that follow A multiply it by a matrix, and B is added.
    """
    return _times(_zeros(second_bytes), first) ^ second


@lru_cache(maxsize=256)  # blocks are of few lengths
def _zeros(count: int) -> Matrix:
    """What `count` bytes of zero do to a checksum: the matrix of one, squared as often as `count` has bits."""
    power: Matrix = (_POLYNOMIAL, *(1 << bit for bit in range(31)))  # one bit of zero
    for _ in range(3):
        power = _product(power, power)
    result: Matrix = tuple(1 << bit for bit in range(32))
    while count:
        if count & 1:
            result = _product(power, result)
        power = _product(power, power)
        count >>= 1
    return result


def _product(left: Matrix, right: Matrix) -> Matrix:
    return tuple(_times(left, column) for column in right)


def _times(matrix: Matrix, vector: int) -> int:
    total, bit = 0, 0
    while vector:
        if vector & 1:
            total ^= matrix[bit]
        vector >>= 1
        bit += 1
    return total
