"""Every error of the API in one shape, {error, detail, body, errors}: `detail` is a sentence that names the value."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from fastsd_lib.core.errors import UserError

LONGEST_SHOWN = 200  # letters of a bad value; a picture in base64 is none to read


class Refused(UserError):
    """A user's error that has an HTTP status of its own; other UserErrors are 422."""

    def __init__(self, status: int, message: str, fix: str = "") -> None:
        super().__init__(message, fix)
        self.status = status


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


class ErrorAnswer(BaseModel):
    """What went wrong. `detail` names the bad value and what to send instead."""

    error: str
    detail: str
    body: str = ""
    errors: Any = ""


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a route that can refuse with these."""
    return {
        status: {"model": ErrorAnswer, "description": HTTPStatus(status).phrase}
        for status in dict.fromkeys((*statuses, 422))
    }


def add_error_handlers(app: FastAPI) -> None:
    """Answer what routes raise: UserError, values that do not fit the request's model, HTTPException."""
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientLeft, _nobody)


def one_line(error: UserError) -> str:
    """Both sentences of an error as one."""
    fix = error.fix[:1].upper() + error.fix[1:]
    return f"{error.message} {fix}".strip()


def error_answer(
    status: int, detail: str, errors: Any = "", headers: dict[str, str] | None = None
) -> JSONResponse:
    shape = {"error": _name(status), "detail": detail, "body": "", "errors": errors}
    return JSONResponse(plain(shape), status, headers)


def status_of(error: UserError) -> int:
    if getattr(error, "retry_after_s", None) is not None:  # jobs.QueueFull
        return 429
    return getattr(error, "status", 422)


async def _user_error(request: Request, error: Exception) -> JSONResponse:
    wait_s = getattr(error, "retry_after_s", None)
    headers = {"retry-after": str(math.ceil(wait_s))} if wait_s is not None else None
    return error_answer(status_of(error), one_line(error), headers=headers)


async def _nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's "client closed request"; it reaches nobody


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    return error_answer(error.status_code, str(error.detail), headers=error.headers)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    found = error.errors()
    lines = [_line(one) for one in found[:5]]
    more = f" And {len(found) - 5} more." if len(found) > 5 else ""
    return error_answer(422, " ".join(lines) + more, found[:50])


def _line(one: dict[str, Any]) -> str:
    """ "steps: Input should be a valid integer (sent: 'many')." """
    where = ".".join(str(part) for part in one["loc"] if part != "body") or "body"
    if one["type"] == "json_invalid":
        return f"The body is no JSON: {one.get('ctx', {}).get('error', one['msg'])}."
    reason = one["msg"].removeprefix("Value error, ").rstrip(".")
    sent = "" if one["type"] == "missing" else f" (sent: {_shown(one.get('input'))})"
    return f"{where}: {reason}{sent}."


def _shown(value: Any) -> str:
    try:
        text = json.dumps(plain(value), ensure_ascii=False)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def plain(value: Any, deep: int = 8) -> Any:
    """`value` as JSON can carry it: no NaN, no bytes, no half letters, nothing long or deep."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict) and deep:
        return {plain(str(key)): plain(item, deep - 1) for key, item in list(value.items())[:200]}
    if isinstance(value, list | tuple) and deep:
        return [plain(item, deep - 1) for item in value[:200]]
    text = str(value) if not isinstance(value, dict | list | tuple) else "..."
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= 4000 else f"{text[:LONGEST_SHOWN]}... ({len(text)} letters)"


def _name(status: int) -> str:
    try:
        return HTTPStatus(status).phrase.replace(" ", "").replace("-", "")
    except ValueError:
        return "Error"
