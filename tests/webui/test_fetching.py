"""Addresses of pictures: only public ones, resolved once, over https."""

from __future__ import annotations

import socket

import pytest

from fastsd_lib.webui.a1111_pictures import picture_data
from fastsd_lib.webui.api_errors import Refused
from fastsd_lib.webui.context import ApiFlags, ApiLimits
from fastsd_lib.webui.fetching import fetch_picture, is_public, public_address


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "ff02::1", "nonsense",
    ],
)  # fmt: skip
def test_addresses_of_this_network_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_public_addresses_are(address):
    assert is_public(address)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "2130706433", "0x7f.1", "[::1]".strip("[]")])
def test_names_that_lead_here_are_refused_however_they_are_written(host):
    with pytest.raises(Refused, match=r"leads to this machine|is not known"):
        public_address(host, 443, host)


def test_one_private_address_among_public_ones_is_enough(monkeypatch):
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 443)) for ip in ("1.1.1.1", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: answers)
    with pytest.raises(Refused, match="leads to this machine"):
        public_address("two.example", 443, "two.example")


def test_the_name_is_resolved_once_and_that_address_is_dialled(monkeypatch):
    """A name server that answers 1.1.1.1 first and 127.0.0.1 then gains nothing."""
    asked, dialled = [], []

    def resolve(host, port, **more):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("1.1.1.1", port))]

    def dial(address, **more):
        dialled.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", dial)
    with pytest.raises(Refused, match="cannot be fetched"):
        fetch_picture("https://rebind.example/a.png", 1000)
    assert (asked, dialled) == (["rebind.example"], [("1.1.1.1", 443)])


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.png", "ftp://example.org/a", "https://user:pw@example.org/a.png", "https://",
        "https://[::1", "https://example.org:99999/", "file:///etc/passwd", "gopher://x",
    ],
)  # fmt: skip
def test_only_plain_https_addresses_are_fetched(url):
    with pytest.raises(Refused):
        fetch_picture(url, 1000)


def test_nothing_is_fetched_unless_it_is_switched_on(monkeypatch):
    def never(*args, **more):
        raise AssertionError("it was resolved")

    monkeypatch.setattr(socket, "getaddrinfo", never)
    with pytest.raises(Refused, match="this server fetches none"):
        picture_data("https://example.org/a.png", "image", ApiLimits(), ApiFlags())
