"""One address that stays: killed clients come back, dead routes are followed by the next, and nothing is left."""

from __future__ import annotations

import dataclasses
import random
import threading
import time

import psutil
import pytest
from tunnel_app import served_app, visitor
from tunnel_hosts import free_port, localtunnel_server, sshd

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.tunnels.config import Tunnel, TunnelConfig
from fastsd_lib.webui.tunnels.supervisor import Patience, Tunnels

QUICK = Patience(health_s=0.5, backoff_s=(0.1, 0.2), limit_s=8.0, round_s=0.5)


class Watched(Tunnels):
    """Keeps what was said and every address that was up."""

    def __init__(self, origin, config: TunnelConfig, patience: Patience = QUICK) -> None:
        self.said: list[str] = []
        self.up: list[Tunnel] = []
        super().__init__(origin, config, self.up.append, self.said.append, patience)

    def wait_for(self, count: int, limit_s: float = 20.0) -> Tunnel:
        """The count-th address that is up."""
        end = time.monotonic() + limit_s
        while len(self.up) < count:
            assert time.monotonic() < end, self.said
            time.sleep(0.02)
        return self.up[count - 1]


def works(url: str) -> bool:
    with visitor(url) as user:
        return user.get("/").text == "<h1>the page</h1>"


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


def test_a_client_that_lives_on_at_a_dead_address_is_noticed_and_the_next_route_taken(origin, ssh_host):
    with localtunnel_server() as (server, config):
        config = dataclasses.replace(
            config,
            order=("localtunnel", "ssh"),
            **{name: getattr(ssh_host[1], name) for name in ("ssh_host", "ssh_key", "ssh_known_hosts")},
        )
        tunnels = Watched(origin, config, dataclasses.replace(QUICK, limit_s=2.0))
        assert tunnels.start().route == "localtunnel"
        try:
            server.stop()
            second = tunnels.wait_for(2)
            assert second.route == "ssh" and works(second.url)
        finally:
            tunnels.close()
    assert any("leads here no longer" in line for line in tunnels.said)
    assert any("next: ssh -R." in line for line in tunnels.said)


def test_a_frozen_ssh_server_is_noticed_and_the_next_route_taken(origin, lt_host):
    with sshd() as (server, config):
        config = dataclasses.replace(
            config,
            order=("ssh", "localtunnel"),
            localtunnel_server=lt_host[1].localtunnel_server,
            programs=lt_host[1].programs,
        )
        tunnels = Watched(origin, config, dataclasses.replace(QUICK, limit_s=2.0, backoff_s=(0.1,)))
        tunnels.start()
        try:
            server.freeze()
            assert tunnels.wait_for(2, 40).route == "localtunnel"
        finally:
            server.freeze(False)
            tunnels.close()


def test_after_every_route_failed_they_are_tried_again(origin):
    port = free_port()
    with localtunnel_server(port) as (_, config):
        tunnels = Watched(origin, config, dataclasses.replace(QUICK, limit_s=1.5, backoff_s=(0.1,)))
        first = tunnels.start()
    try:  # its server is gone now
        while tunnels.trouble is None:
            time.sleep(0.05)
        assert tunnels.tunnel is None and not tunnels.url
        with localtunnel_server(port):
            assert tunnels.wait_for(2).url == first.url and tunnels.trouble is None
            assert works(first.url)
    finally:
        tunnels.close()


def test_a_start_that_fails_tells_of_each_route_in_the_users_order(origin, tmp_path):
    config = TunnelConfig(order=("cloudflared", "ngrok", "ssh"), programs={"cloudflared": tmp_path / "none"})
    tunnels = Watched(origin, config)
    with pytest.raises(UserError) as caught:
        tunnels.start()
    found = [caught.value.message.index(part) for part in ("Cloudflare quick tunnel: ", "ngrok: ", "ssh -R: ")]
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
    from tunnel_app import app

    from fastsd_lib.webui.door import LOOPBACK
    from fastsd_lib.webui.server import serve_app

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
    waiting = threading.Thread(target=lambda: pytest.raises(UserError, tunnels.start))
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


def test_a_route_that_ends_again_and_again_is_left(origin, ssh_host):
    tunnels = Watched(origin, ssh_host[1], dataclasses.replace(QUICK, flaps=3, round_s=30))
    tunnels.start()
    try:
        for count in range(1, 4):
            psutil.Process(tunnels.wait_for(count).pid).kill()
        end = time.monotonic() + 10
        while tunnels.trouble is None:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert "again and again" in tunnels.trouble.message
    finally:
        tunnels.close()
