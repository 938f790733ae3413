"""CRC-32 of bytes whose parts were looked at one by one, in whatever order.

A checksum is a polynomial over GF(2), the highest power in the lowest bit; bytes of zero behind A multiply it by a power
of x, and B is added: crc32_combine of https://zlib.net/manual.html, after Adler's algorithm of zlib 1.2.12.
"""

from __future__ import annotations

from functools import cache, lru_cache

_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31


def joined_crc32(first: int, second: int, second_bytes: int) -> int:
    """The CRC-32 of A + B from those of A and of B."""
    if not first:
        return second
    return _product(_zeros(second_bytes), first) ^ second


@lru_cache(maxsize=4096)  # most blocks are of few lengths
def _zeros(count: int) -> int:
    """What `count` bytes of zero multiply by: x ** (8 * count)."""
    result, power = _ONE, 3
    while count:
        if count & 1:
            result = _product(_squared(power), result)
        count, power = count >> 1, power + 1
    return result


@cache
def _squared(times: int) -> int:
    """x ** (2 ** times)."""
    return _product(_squared(times - 1), _squared(times - 1)) if times else _ONE >> 1


def _product(left: int, right: int) -> int:
    """left * right, modulo the polynomial."""
    total, bit = 0, _ONE
    while left:
        if left & bit:
            total ^= right
            left ^= bit
        right = right >> 1 ^ _POLYNOMIAL if right & 1 else right >> 1
        bit >>= 1
    return total
