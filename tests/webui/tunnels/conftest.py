"""A server behind its guard, and real tunnels to it; a skip names the reason."""

from __future__ import annotations

import pytest
from tunnel_app import served_app
from tunnel_hosts import Unavailable, clients_running, localtunnel_server, sshd

from fastsd_lib.webui.tunnels.routes import open_tunnel


@pytest.fixture(scope="module")
def origin():
    with served_app() as server:
        yield server


@pytest.fixture(scope="module")
def ssh_host():
    """(host, config) of a real sshd on this machine."""
    try:
        with sshd() as found:
            yield found
    except Unavailable as reason:
        pytest.skip(f"no sshd: {reason}")


@pytest.fixture(scope="module")
def lt_host():
    """(host, config) of a real localtunnel server on this machine."""
    try:
        with localtunnel_server() as found:
            yield found
    except Unavailable as reason:
        pytest.skip(f"no localtunnel: {reason}")


@pytest.fixture
def ssh_tunnel(origin, ssh_host):
    opened = open_tunnel("ssh", origin, ssh_host[1])
    yield opened.tunnel
    opened.close()


@pytest.fixture
def lt_tunnel(origin, lt_host):
    opened = open_tunnel("localtunnel", origin, lt_host[1])
    yield opened.tunnel
    opened.close()


@pytest.fixture(autouse=True)
def _nothing_stays():
    """Every test leaves no client behind, whatever became of it."""
    before = set(clients_running())
    yield
    left = set(clients_running()) - before
    assert not left, f"left running: {left}"
