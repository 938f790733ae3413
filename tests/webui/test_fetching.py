"""Pictures by their address: off unless switched on, and then as core fetches them."""

from __future__ import annotations

import socket

import pytest

from fastsd_lib.webui.a1111_pictures import picture_data
from fastsd_lib.webui.api_errors import Refused
from fastsd_lib.webui.context import ApiFlags, ApiLimits
from fastsd_lib.webui.fetching import fetch_picture


def test_what_core_does_not_fetch_is_refused_with_the_way_out():
    with pytest.raises(
        Refused, match=r"The picture 'https://127\.0\.0\.1/a\.png' leads to this machine"
    ) as refused:
        fetch_picture("https://127.0.0.1/a.png", 1000)
    assert (refused.value.status, refused.value.fix) == (422, "send the picture itself in base64.")


def test_nothing_is_fetched_unless_it_is_switched_on(monkeypatch):
    def never(*args, **more):
        raise AssertionError("it was resolved")

    monkeypatch.setattr(socket, "getaddrinfo", never)
    with pytest.raises(Refused, match="this server fetches none"):
        picture_data("https://example.org/a.png", "image", ApiLimits(), ApiFlags())
