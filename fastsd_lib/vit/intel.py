"""OpenVINO and NNCF, imported without their telemetry: what a user converts is nobody's business."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
def no_progress_bars() -> Iterator[None]:
    """NNCF draws its own through rich; ours say it once."""
    console = sys.modules["rich"].get_console()  # NNCF's dependency, not ours; it has imported it
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before
