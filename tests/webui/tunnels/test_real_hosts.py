"""`ssh -R` through a real sshd and localtunnel through its real server: what comes through, and what fails by name."""

from __future__ import annotations

import dataclasses
import subprocess
import time
from pathlib import Path

import pytest
from tunnel_app import check_everything, visitor
from tunnel_hosts import free_port, sshd

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.tunnels.config import TunnelConfig
from fastsd_lib.webui.tunnels.routes import open_tunnel
from fastsd_lib.webui.tunnels.ssh import _PRINTED


def refused(origin, config: TunnelConfig, route: str = "ssh", limit_s: float = 20.0, **settings) -> UserError:
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        open_tunnel(route, origin, config, limit_s, **settings).close()
    assert time.monotonic() - began < limit_s + 5
    assert caught.value.fix and "debug1" not in caught.value.message
    return caught.value


def test_pages_streams_sockets_and_uploads_come_through_ssh(ssh_tunnel):
    check_everything(ssh_tunnel.url)


def test_pages_streams_sockets_and_uploads_come_through_localtunnel(lt_tunnel):
    check_everything(lt_tunnel.url)


@pytest.mark.parametrize("route", ["ssh", "localtunnel"])
def test_a_closed_tunnel_leads_nowhere_and_its_name_is_refused(route, origin, request):
    config = request.getfixturevalue({"ssh": "ssh_host", "localtunnel": "lt_host"}[route])[1]
    opened = open_tunnel(route, origin, config)
    name = opened.tunnel.url.partition("://")[2]
    with visitor(f"http://127.0.0.1:{origin.port}") as user:
        assert user.get("/", headers={"Host": name}).status_code == 200
        opened.close()
        if route == "localtunnel":  # an address of this machine is always a name of its servers
            assert user.get("/", headers={"Host": name}).status_code == 403
    assert opened.child.ended.is_set()


# ------------------------------------------------------------------ ssh


def test_a_port_that_is_taken_is_named(origin, ssh_host):
    with_port = dataclasses.replace(ssh_host[1], ssh_remote_port=origin.port, ssh_remote_bind="127.0.0.1")
    error = refused(origin, with_port)
    assert f"port {origin.port} of" in error.message and "take another port" in error.fix


def test_a_fixed_port_is_used_as_asked(origin, ssh_host):
    port = free_port()
    opened = open_tunnel("ssh", origin, dataclasses.replace(ssh_host[1], ssh_remote_port=port))
    opened.close()
    assert opened.tunnel.url == f"http://127.0.0.1:{port}"


def test_an_unknown_host_is_refused_and_its_key_shown(origin, ssh_host, tmp_path):
    error = refused(origin, dataclasses.replace(ssh_host[1], ssh_known_hosts=tmp_path / "none"))
    assert "is not known here" in error.message and fingerprint(ssh_host) in error.message
    assert "ssh_accept_new" in error.fix and not (tmp_path / "none").exists()


def test_an_unknown_host_may_be_accepted_and_its_key_is_shown(origin, ssh_host, tmp_path):
    known = tmp_path / "known hosts"
    config = dataclasses.replace(ssh_host[1], ssh_known_hosts=known, ssh_accept_new=True)
    opened = open_tunnel("ssh", origin, config)
    opened.close()
    assert fingerprint(ssh_host) in opened.tunnel.notes[0] and known.exists()


def test_a_host_with_another_key_is_refused_even_then(origin, ssh_host, tmp_path):
    known = tmp_path / "known"
    other = Path(ssh_host[1].ssh_key).with_suffix(".pub").read_text().split()[:2]
    known.write_text(f"[127.0.0.1]:{ssh_host[0].port} {' '.join(other)}\n")
    error = refused(origin, dataclasses.replace(ssh_host[1], ssh_known_hosts=known, ssh_accept_new=True))
    assert "another key" in error.message


def test_a_refused_log_in_is_named(origin, ssh_host, tmp_path):
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    error = refused(origin, dataclasses.replace(ssh_host[1], ssh_key=key))
    assert "refuses the log-in" in error.message and "key" in error.fix


def test_a_key_that_everybody_can_read_is_used_through_a_private_copy(origin, ssh_host, tmp_path):
    key = tmp_path / "key"  # as Drive shows files
    key.write_bytes(ssh_host[1].ssh_key.read_bytes())
    key.chmod(0o644)
    open_tunnel("ssh", origin, dataclasses.replace(ssh_host[1], ssh_key=key)).close()


def test_no_host_no_server_and_no_key_are_named(origin, ssh_host, tmp_path):
    assert "no host is given" in refused(origin, TunnelConfig(order=("ssh",))).message
    closed = dataclasses.replace(ssh_host[1], ssh_host=f"me@127.0.0.1:{free_port()}")
    assert "refuses the connection" in refused(origin, closed).message
    assert (
        "cannot be read" in refused(origin, dataclasses.replace(ssh_host[1], ssh_key=tmp_path / "x")).message
    )
    assert (
        "no host me@nowhere.invalid"
        in refused(origin, dataclasses.replace(ssh_host[1], ssh_host="me@nowhere.invalid")).message
    )


def test_a_host_that_prints_the_address_it_gives_is_understood(origin, ssh_host):
    port = free_port()
    said = f"Follow your favourite tunnel at [https://docs.example]\nForwarding HTTP traffic from http://mine.localhost:{port}"
    with sshd(f"ForceCommand printf '%s\\n' '{said.splitlines()[0]}' '{said.splitlines()[1]}'; sleep 60") as (
        _,
        config,
    ):
        config = dataclasses.replace(config, ssh_prints_url=True, ssh_remote_port=port)
        opened = open_tunnel("ssh", origin, config)
        opened.close()
    assert opened.tunnel.url == f"http://mine.localhost:{port}"


def test_a_frozen_server_is_given_up_in_time(origin, ssh_host):
    host, config = ssh_host
    host.freeze()
    try:
        refused(origin, config, limit_s=4.0)
    finally:
        host.freeze(False)


def fingerprint(ssh_host) -> str:
    key = ssh_host[1].ssh_known_hosts.with_name("host_key.pub")
    told = subprocess.run(["ssh-keygen", "-lf", key], check=True, capture_output=True, text=True).stdout
    return told.split()[1]


# ------------------------------------------------------------------ localtunnel


def test_the_name_that_was_asked_for_is_given_and_another_one_is_said(origin, lt_host):
    config = dataclasses.replace(lt_host[1], subdomain="wanted-name")
    first = open_tunnel("localtunnel", origin, config)
    second = open_tunnel("localtunnel", origin, config)
    assert first.tunnel.url.startswith("http://wanted-name.lt.") and not first.tunnel.notes
    assert "wanted-name" not in second.tunnel.url and "'wanted-name' was not free" in second.tunnel.notes[0]
    second.close()
    first.close()


@pytest.mark.parametrize("name", ["AB", "ab", "-abcd", "abcd-", "a b c d", "ä" * 5, "a" * 64])
def test_a_name_that_makes_the_client_wait_for_ever_is_refused_before(name):
    with pytest.raises(UserError) as caught:
        TunnelConfig(order=("localtunnel",), subdomain=name)
    assert "small letters" in caught.value.fix


def test_a_server_that_is_down_is_named_in_time(origin, lt_host):
    gone = f"http://127.0.0.1:{free_port()}"
    error = refused(origin, dataclasses.replace(lt_host[1], localtunnel_server=gone), "localtunnel", 3.0)
    assert "no address in 3 s" in error.message and gone in error.fix


def test_a_missing_client_says_what_to_install(origin, tmp_path):
    config = TunnelConfig(order=("localtunnel",), programs={"lt": tmp_path / "lt"})
    assert "npm install -g localtunnel@2.0.2" in refused(origin, config, "localtunnel").fix


def test_nothing_is_started_while_the_server_itself_is_silent(lt_host):
    class Gone:
        port = free_port()

        class guard:
            answer_nonce = forget_nonce = staticmethod(lambda nonce: None)

    error = refused(Gone(), lt_host[1], "localtunnel")
    assert f"127.0.0.1:{Gone.port} does not answer" in error.message


@pytest.mark.parametrize(
    "line, url",
    [
        ("Forwarding HTTP traffic from https://abc.serveo.net", "https://abc.serveo.net"),
        ("abc.lhr.life tunneled with tls termination, https://abc.lhr.life", "https://abc.lhr.life"),
        ("https://rnabc.a.free.pinggy.link", "https://rnabc.a.free.pinggy.link"),
        ("HTTPS: https://abc.ssi.sh", "https://abc.ssi.sh"),
        ("Follow your favourite reverse tunnel at [https://twitter.com/localhost_run].", None),
        ("To set up and manage custom domains go to https://admin.localhost.run/", None),
    ],
)
def test_the_ways_in_which_hosts_say_their_address_are_told_from_their_greetings(line, url):
    found = _PRINTED.search(line)
    assert (found[1] if found else None) == url
