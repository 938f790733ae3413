"""What the guard says of its own, and what it does to the answers of others: shape, headers, masks."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

Headers = list[tuple[bytes, bytes]]
MASK = "***"
KEPT_ERROR_BYTES = 256 * 1024

#: Gradio's page has inline scripts and styles and builds functions from text; everything else is closed.
PAGE_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "frame-src 'self'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
#: A file that somebody made, opened by its address, runs nothing and reaches nothing.
FILE_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; frame-ancestors 'self'; sandbox"
)
#: Around a page that is not ours: nobody else frames it, and what it loads and runs is its own affair.
FOREIGN_POLICY = "; ".join(("object-src 'none'", "base-uri 'self'", "frame-ancestors 'self'"))
_CLOSED = "camera=(), geolocation=(), microphone=(), payment=(), usb=()"
_FIXED: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_REPLACED = {name for name, _ in _FIXED}
_REPLACED |= {b"cross-origin-opener-policy", b"permissions-policy", b"server", b"x-powered-by"}


@dataclass(frozen=True)
class Rules:
    """What becomes of the answers of the app behind the guard."""

    policy: str = PAGE_POLICY  # Content-Security-Policy
    keeps_policies: bool = False  # the app's own count, too: a browser heeds all of them
    permissions: str = _CLOSED
    opener: str = "same-origin"
    shapes_errors: bool = True  # as `error_body`; else they pass as they are


OWN = Rules()
#: For a program that is not ours: its pages, windows and errors stay as its own scripts expect them.
FOREIGN = Rules(
    policy=FOREIGN_POLICY,
    keeps_policies=True,
    permissions="camera=(self), geolocation=(), microphone=(self), payment=(), usb=()",
    opener="same-origin-allow-popups",
    shapes_errors=False,
)


def secured(headers: Iterable[tuple[bytes, bytes]], policy: str, rules: Rules = OWN) -> Headers:
    """The headers with ours in place of theirs, and without leave for pages of other servers (CORS)."""
    replaced = _REPLACED if rules.keeps_policies else _REPLACED | {b"content-security-policy"}
    kept = [
        (name, value)
        for name, value in headers
        if name.lower() not in replaced and not name.lower().startswith(b"access-control-")
    ]
    ours = [
        (b"cross-origin-opener-policy", rules.opener.encode()),
        (b"permissions-policy", rules.permissions.encode()),
        (b"content-security-policy", policy.encode()),
    ]
    return [*kept, *_FIXED, *ours]


def error_body(status: int, detail: Any, errors: Any = "", body: Any = "") -> bytes:
    """The shape that programs of both kinds read: {error, detail, body, errors}."""
    shape = {"error": _name(status), "detail": detail, "body": body, "errors": errors}
    return json.dumps(shape, ensure_ascii=False).encode("utf-8", "replace")


def reshaped_error(status: int, content_type: str, raw: bytes, secrets: Iterable[str]) -> bytes:
    """An error of a route in our shape: no stack trace, no secret, whatever it said beside kept."""
    given: Any = raw.decode("utf-8", "replace")
    if "json" in content_type:
        with contextlib.suppress(ValueError):
            given = json.loads(raw)
    if not isinstance(given, dict):
        given = {"detail": given}
    shape = {"error": _name(status), "detail": _phrase(status), "body": "", "errors": ""}
    shape.update({key: _without_trace(value, status) for key, value in given.items()})
    return json.dumps(masked(shape, secrets), ensure_ascii=False).encode("utf-8", "replace")


def masked(value: Any, secrets: Iterable[str]) -> Any:
    """`value` with every secret replaced, in keys and values however deep."""
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, MASK)
        return value
    if isinstance(value, dict):
        return {masked(key, secrets): masked(item, secrets) for key, item in value.items()}
    if isinstance(value, list):
        return [masked(item, secrets) for item in value]
    return value


class MaskingFilter(logging.Filter):
    """No secret in a log, not even in the traceback of an error."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__()
        self._secrets = secrets

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        record.msg, record.args = masked(text, self._secrets), None
        record.exc_info = record.exc_text = None
        return True


def _without_trace(value: Any, status: int) -> Any:
    return _phrase(status) if isinstance(value, str) and "Traceback (most recent" in value else value


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def _name(status: int) -> str:
    return _phrase(status).replace(" ", "").replace("-", "")
