"""Widget clicks while a cell is busy.

ipykernel 7 handles them beside a cell that awaits. ipykernel 6 (Colab) queues them behind it, so they are
taken out of that queue here; requests to run cells stay in it, in their order.
"""

from __future__ import annotations

from typing import Any


async def answer_widgets() -> None:
    """Handle the widget messages that wait behind the running cell; nothing to do outside ipykernel 6."""
    kernel = _kernel()
    queue = getattr(kernel, "msg_queue", None)
    if queue is None:
        return
    waiting = [queue.get_nowait() for _ in range(queue.qsize())]
    clicks = [item for item in waiting if _is_widget_message(kernel, item)]
    for item in waiting:
        if item not in clicks:
            queue.put_nowait(item)
    for _, dispatch, arguments in clicks:
        parent = kernel.get_parent("shell")
        ident = kernel._parent_ident["shell"]
        await dispatch(*arguments)
        kernel.set_parent(ident, parent, "shell")  # what the cell prints from here belongs to the cell again


def _kernel() -> Any:
    import sys

    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None)


def _is_widget_message(kernel: Any, item: Any) -> bool:
    """Looks at the header alone: the signature may be checked only once, by the kernel."""
    try:
        _, frames = kernel.session.feed_identities(item[2][0], copy=False)
        header = kernel.session.unpack(getattr(frames[1], "bytes", frames[1]))
        return header["msg_type"] in ("comm_open", "comm_msg", "comm_close")
    except (IndexError, KeyError, TypeError, ValueError):
        return False
