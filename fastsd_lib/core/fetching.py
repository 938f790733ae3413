"""A small file by its https address, from the public internet only, in a bounded time."""

from __future__ import annotations

import http.client
from collections.abc import Mapping

from fastsd_lib.core.https_client import (
    PUBLIC,
    REDIRECTS,
    Deadline,
    FetchRefused,
    Opened,
    Reach,
    open_url,
    refused,
)

LONGEST_S = 20.0  # for all of it, redirects too
CHUNK_BYTES = 64 * 1024


def fetch(
    url: str,
    most_bytes: int,
    *,
    redirects: int = 0,
    accept: str = "image/*",
    secrets: Mapping[str, str] | None = None,
    reach: Reach = PUBLIC,
) -> bytes:
    """The body of an https address. FetchRefused for whatever is not a plain answer of a public server.

    `secrets` are headers that only this address's own host gets.
    """
    with Deadline(LONGEST_S) as deadline:
        try:
            opened = open_url(
                url, {"accept": accept}, secrets=secrets, redirects=redirects, reach=reach,
                seconds_left=deadline.seconds_left, watch=deadline.watch,
            )  # fmt: skip
            try:
                if opened.response.status != 200:
                    note = " (redirects are not followed)" if opened.response.status in REDIRECTS else ""
                    raise refused(url, f"answers {opened.response.status}{note}")
                return _read(opened, most_bytes, deadline, url)
            finally:
                opened.connection.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = f"cannot be fetched: {type(error).__name__}"
            # TimeoutError: each wait is given all the time that is left.
            if deadline.over or isinstance(error, TimeoutError):
                why = f"takes longer than {LONGEST_S:g} s"
            raise refused(url, why) from None


def _read(opened: Opened, most_bytes: int, deadline: Deadline, url: str) -> bytes:
    data = bytearray()
    while True:
        opened.connection.wait_at_most(deadline.seconds_left())
        piece = opened.response.read1(CHUNK_BYTES)
        if deadline.over:  # looked at before the end is believed: a connection that was cut ends too
            raise TimeoutError
        if not piece:
            return bytes(data)
        data += piece
        if len(data) > most_bytes:
            raise refused(url, f"is larger than {most_bytes >> 20} MB")


__all__ = ["FetchRefused", "fetch"]
