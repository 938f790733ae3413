"""Whether an address leads to our own server: a nonce goes out, and must come back through it."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fastsd_lib.webui.tunnels.config import Origin

ONE_TRY_S = 8.0
BETWEEN_S = 0.3
#: ngrok and localtunnel show visitors a page of their own first; with these they do not.
PASS_THROUGH = {"ngrok-skip-browser-warning": "1", "bypass-tunnel-reminder": "1"}

Result = TypeVar("Result")


def within(limit_s: float, work: Callable[[], Result]) -> Result:
    """What `work` returns or raises; TimeoutError after `limit_s`, when it is left behind in a thread of its own."""
    done: list[Callable[[], Result]] = []

    def run() -> None:
        try:
            result = work()
            done.append(lambda: result)
        except BaseException as error:
            kept = error
            done.append(lambda: _raise(kept))

    thread = threading.Thread(target=run, name="tunnel, within a limit", daemon=True)
    thread.start()
    thread.join(limit_s)
    if not done:
        raise TimeoutError(f"nothing in {limit_s:.0f} s")
    return done[0]()


def _raise(error: BaseException) -> Any:
    raise error


@contextmanager
def nonce_of(origin: Origin) -> Iterator[str]:
    """A new secret that the guard answers, for as long as the block lasts."""
    nonce = secrets.token_urlsafe(24)
    origin.guard.answer_nonce(nonce)
    try:
        yield nonce
    finally:
        origin.guard.forget_nonce(nonce)


def ask_once(url: str, nonce: str, limit_s: float = ONE_TRY_S) -> str:
    """Empty if the nonce came back through `url`; else what came instead, in a few words. At most `limit_s`."""
    try:
        return within(limit_s, lambda: _ask(url, nonce, limit_s))
    except TimeoutError:  # a server that sends a letter now and then ends no read of its own
        return f"no answer in {limit_s:.0f} s"


def _ask(url: str, nonce: str, limit_s: float) -> str:
    import httpx

    parts = urlsplit(url)
    headers, target = dict(PASS_THROUGH), f"{url.rstrip('/')}/.fsd/{nonce}"
    here = (parts.hostname or "").endswith(".localhost")  # RFC 6761: always this machine; glibc does not know
    if here:
        headers["Host"] = parts.netloc
        target = target.replace(parts.hostname, "127.0.0.1", 1)
    local = here or parts.hostname in ("127.0.0.1", "::1", "localhost")
    try:
        with (
            httpx.Client(timeout=limit_s, trust_env=not local) as client,
            client.stream("GET", target, headers=headers) as answer,
        ):
            if answer.status_code != 200:
                code = answer.headers.get("ngrok-error-code", "")
                return f"it answered {answer.status_code} {answer.reason_phrase} {code}".rstrip()
            body = b""
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > 1024:
                    break
    except httpx.TimeoutException:
        return f"no answer in {limit_s:.0f} s"
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}".rstrip(": ")
    return "" if body == nonce.encode() else "something else answered there"


def came_back(origin: Origin, ask: Callable[[str], str], until: float, over: Callable[[], bool]) -> str:
    """Ask until the nonce comes back, or `until` (time.monotonic()), or `over`; answers as `ask_once`."""
    with nonce_of(origin) as nonce:
        while True:
            trouble = ask(nonce)
            if not trouble or over() or time.monotonic() + BETWEEN_S >= until:
                return trouble
            time.sleep(BETWEEN_S)


def answers_here(origin: Origin, limit_s: float = 3.0) -> str:
    """As `ask_once`, of the server itself, without any tunnel."""
    with nonce_of(origin) as nonce:
        return ask_once(f"http://127.0.0.1:{origin.port}", nonce, limit_s)
