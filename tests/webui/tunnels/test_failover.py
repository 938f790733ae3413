"""A route that is lost for good is followed by the next, in the user's order."""

from __future__ import annotations

import dataclasses
import time

import psutil
from tunnel_hosts import free_port, localtunnel_server, sshd
from watched import QUICK, Watched, works


def test_a_client_that_lives_on_at_a_dead_address_is_noticed_and_the_next_route_taken(origin, ssh_host):
    with localtunnel_server() as (server, config):
        config = dataclasses.replace(
            config,
            order=("localtunnel", "ssh"),
            **{name: getattr(ssh_host[1], name) for name in ("ssh_host", "ssh_key", "ssh_known_hosts")},
        )
        tunnels = Watched(origin, config, dataclasses.replace(QUICK, limit_s=3.0, backoff_s=(0.1,)))
        assert tunnels.start().route == "localtunnel"
        try:
            server.freeze()
            second = tunnels.wait_for(2)
            assert second.route == "ssh" and works(second.url)
        finally:
            server.freeze(False)
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
        tunnels = Watched(origin, config, dataclasses.replace(QUICK, limit_s=3.0, backoff_s=(0.1,)))
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
        tunnels = Watched(origin, config, dataclasses.replace(QUICK, limit_s=3.0, backoff_s=(0.1,)))
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


def test_a_route_that_fails_to_restart_is_tried_again_before_it_is_left(origin):
    with localtunnel_server() as (server, config):
        tunnels = Watched(
            origin, config, dataclasses.replace(QUICK, limit_s=2.5, backoff_s=(0.1, 0.1, 30), round_s=100)
        )
        first = tunnels.start()
        try:
            server.freeze()
            while not any("Trying again" in line for line in tunnels.said):
                time.sleep(0.05)
            server.freeze(False)
            assert tunnels.wait_for(2).url == first.url
        finally:
            server.freeze(False)
            tunnels.close()
