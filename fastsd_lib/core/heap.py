"""The machine's memory: how much there is, and giving back what was freed."""

from __future__ import annotations

import ctypes
import os
import sys


def give_back() -> None:
    """Return the pages of freed memory. glibc keeps them otherwise: gigabytes after a few large pictures.

    Takes milliseconds; does nothing where the C library cannot (malloc_trim(3) is glibc's).
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def physical_bytes() -> int:
    """How much memory the machine has; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0
