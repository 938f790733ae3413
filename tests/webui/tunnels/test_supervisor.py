"""One address that stays: killed clients come back at once, and nothing is left."""

from __future__ import annotations

import dataclasses
import random
import threading
import time

import psutil
import pytest
from tunnel_app import app, served_app, visitor
from tunnel_hosts import free_port
from watched import QUICK, Watched, works

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.door import LOOPBACK
from fastsd_lib.webui.server import serve_app
from fastsd_lib.webui.tunnels.config import TunnelConfig
from fastsd_lib.webui.tunnels.supervisor import Patience, Tunnels


@pytest.mark.parametrize("route", ["ssh", "localtunnel"])
def test_a_killed_client_is_back_at_the_same_address_in_ten_seconds(route, origin, request):
    config = request.getfixturevalue({"ssh": "ssh_host", "localtunnel": "lt_host"}[route])[1]
    tunnels, chance = Watched(origin, config, Patience()), random.Random(0)
    first = tunnels.start()
    try:
        for kill in range(3):
            time.sleep(chance.uniform(0, 0.5))
            minder = psutil.Process(tunnels.up[-1].pid)
            began = time.monotonic()
            chance.choice([minder, *minder.children(recursive=True)]).kill()
            again = tunnels.wait_for(kill + 2)
            assert time.monotonic() - began < 10 and works(again.url)
        assert {one.url for one in tunnels.up} == {first.url}
    finally:
        tunnels.close()
    assert sum("killed by signal 9" in line for line in tunnels.said) == 3


def test_a_start_that_fails_tells_of_each_route_in_the_users_order(origin, tmp_path):
    config = TunnelConfig(order=("cloudflared", "ngrok", "ssh"), programs={"cloudflared": tmp_path / "none"})
    tunnels = Watched(origin, config)
    with pytest.raises(UserError) as caught:
        tunnels.start()
    found = [
        caught.value.message.index(part) for part in ("Cloudflare quick tunnel: ", "ngrok: ", "ssh -R: ")
    ]
    assert found == sorted(found)
    assert "next: ngrok, then ssh -R." in tunnels.said[0] and "next: ssh -R." in tunnels.said[1]


def test_the_silence_of_the_server_itself_is_said_and_restarts_nothing(ssh_host):
    with served_app() as server:
        tunnels = Watched(server, ssh_host[1])
        tunnels.start()
    try:
        end = time.monotonic() + 10
        while not any("web server itself does not answer" in line for line in tunnels.said):
            assert time.monotonic() < end, tunnels.said
            time.sleep(0.05)
        assert len(tunnels.up) == 1 and tunnels.tunnel is not None
    finally:
        tunnels.close()


def test_a_password_is_made_before_the_tunnel_begins(ssh_host):
    server = serve_app(app, LOOPBACK, None)
    tunnels = Watched(server, ssh_host[1])
    try:
        url = tunnels.start().url
        assert "Password: " in tunnels.said[0] and "Public address" in tunnels.said[1]
        with visitor(url, signed_in=False) as stranger:
            assert stranger.get("/").status_code == 401
    finally:
        tunnels.close()
        server.close()


def test_closing_during_the_start_takes_seconds(origin, lt_host):
    silent = dataclasses.replace(lt_host[1], localtunnel_server=f"http://127.0.0.1:{free_port()}")
    tunnels = Watched(origin, silent, Patience())

    def start() -> None:
        with pytest.raises(UserError):
            tunnels.start()

    waiting = threading.Thread(target=start)
    waiting.start()
    time.sleep(0.7)
    began = time.monotonic()
    tunnels.close()
    waiting.join(10)
    assert time.monotonic() - began < 5 and not waiting.is_alive()


def test_an_address_that_cannot_be_shown_stays_up_all_the_same(origin, ssh_host):
    def fails(_):
        raise OSError("the terminal is gone")

    tunnels = Tunnels(origin, ssh_host[1], fails, fails, QUICK)
    assert works(tunnels.start().url)
    tunnels.close()
