"""How torch's threads on the CPU wait for each other."""

from __future__ import annotations

import os


def let_waiting_threads_sleep() -> None:
    """Call it before torch is loaded: later it changes nothing. A setting of the user's own stays.

    Threads that finish their share first would spin, and so take a core from the very thread that they wait for
    whenever another program runs beside: on two cores torch is then far slower with two threads than with one, as
    `benchmark threads` shows. https://gcc.gnu.org/onlinedocs/libgomp/OMP_005fWAIT_005fPOLICY.html
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
