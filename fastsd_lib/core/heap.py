"""Memory that was freed, back to the system."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Return the pages of freed memory. glibc keeps them otherwise: gigabytes after a few large pictures.

    Takes milliseconds; does nothing where the C library cannot (malloc_trim(3) is glibc's).
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
