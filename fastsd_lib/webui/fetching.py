"""A picture by its https address: off unless the server was started so, and then never from this network."""

from __future__ import annotations

from fastsd_lib.core.fetching import FetchRefused, fetch
from fastsd_lib.webui.api_errors import Refused


def fetch_picture(url: str, most_bytes: int) -> bytes:
    """The body of an https address; redirects are not followed. Refused (422) for what is no plain answer."""
    try:
        return fetch(url, most_bytes)
    except FetchRefused as error:
        raise Refused(422, f"The picture {error.message}", "send the picture itself in base64.") from None
