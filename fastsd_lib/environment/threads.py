"""How torch's threads on the CPU wait for each other."""

from __future__ import annotations

import os

SPINS = (
    "1000"  # alone nearly as fast as spinning for ever; beside a busy program far faster (benchmark threads)
)


def spin_briefly() -> None:
    """Call it before torch is loaded: later it changes nothing. A setting of the user's own stays.

    Threads that finish their share first would spin, and so take a core from the very thread that they wait for
    whenever another program runs beside. https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
