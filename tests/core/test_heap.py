"""What was freed does not stay with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource
from fastsd_lib.core.heap import give_back

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

blocks = [bytearray(100_000) for _ in range(2000)]  # below glibc's threshold for pages of their own
keep = blocks[-1]
before = resident()
del blocks
give_back()
assert keep and before - resident() > 100_000_000, (before, resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps them")
def test_pages_of_freed_memory_go_back_to_the_system():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
