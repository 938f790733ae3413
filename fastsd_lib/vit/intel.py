"""OpenVINO and NNCF, imported without their telemetry: what a user converts is nobody's business."""

from __future__ import annotations

import ctypes
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from fastsd_lib.core.errors import require


def openvino() -> Any:
    """The module. UserError with the install line where it is missing."""
    require("openvino", group="vit")
    _no_telemetry()
    import openvino as module

    return module


def nncf() -> Any:
    """The module, silent below errors; its own progress bars and advice are for developers of networks."""
    require("nncf", group="vit")
    openvino()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loggers = logging.getLoggerClass()
        import nncf as module

        logging.setLoggerClass(loggers)  # it makes all later loggers its own kind
        # Not by its set_log_level, which sets the level of handlers that are others' too.
        logging.getLogger("nncf").setLevel(logging.ERROR)
    return module


def _no_telemetry() -> None:
    """Both send events to Google Analytics unless a consent file says no; without this package they cannot.

    Whoever has imported it before us has made up their own mind.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


@contextmanager
def own_signal_stack() -> Iterator[None]:
    """Inside, OpenVINO may load its CPU plugin; after it, this thread's signals are handled where they were before.

    The plugin gives the thread that loads it another stack for signals, and frees that stack when it is unloaded, in
    whatever thread that happens: the next Ctrl-C in the first thread would then end the whole program.
    """
    before = _SignalStack()
    if _sigaltstack is None or _sigaltstack(None, ctypes.byref(before)):
        yield
        return
    try:
        yield
    finally:
        # What was there may be too small for the registers that the plugin has switched on: then none is better.
        if _sigaltstack(ctypes.byref(before), None):
            _sigaltstack(ctypes.byref(_SignalStack(flags=_NO_STACK)), None)


class _SignalStack(ctypes.Structure):
    """`stack_t` of sigaltstack(2), as Linux has it."""

    _fields_: ClassVar = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


_NO_STACK = 2  # SS_DISABLE
_sigaltstack = getattr(ctypes.CDLL(None), "sigaltstack", None) if sys.platform == "linux" else None


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """NNCF draws its own through rich; ours say it once."""
    console = sys.modules["rich"].get_console()  # NNCF's dependency, not ours; it has imported it
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before
