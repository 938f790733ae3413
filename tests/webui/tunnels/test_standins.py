"""Routes whose other end cannot stand here, against small programs that speak their side: each failure has a name."""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import httpx
import psutil
import pytest
from tunnel_app import check_everything, reached, served_app

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.tunnels import gradio_share
from fastsd_lib.webui.tunnels.config import TunnelConfig
from fastsd_lib.webui.tunnels.opening import LIMIT_S
from fastsd_lib.webui.tunnels.routes import open_tunnel

STANDINS = Path(__file__).with_name("standins.py")
TOKEN = "2abcDEF_of_somebody_0123456789"
#: route, mode, what the error must say, what the way out must say
FAILURES = [
    ("ngrok", "noauth", "wants an account's token", "dashboard.ngrok.com"),
    ("ngrok", "malformed", "not one of ngrok's", "copy it again"),
    ("ngrok", "revoked", "not valid any more", "copy it again"),
    ("ngrok", "limit", "as many agents as it may", "stop the other one"),
    ("ngrok", "online", "in use by another agent", "leave the domain out"),
    ("ngrok", "old", "too old", "ngrok update"),
    ("ngrok", "offline", "not in use any more", "start the tunnel again"),
    ("ngrok", "unreached", "does not reach the web server", "start the web server"),
    ("ngrok", "dies", "ended at once (killed by signal 11)", "check the network"),
    ("ngrok", "silent", "no address in", "next route"),
    ("gradio", "refused", "refuses or cannot be reached", "port 7000"),
    ("gradio", "dies", "ended at once", "127.0.0.1:7000"),
    ("gradio", "silent", "no address in", "127.0.0.1:7000"),
    ("gradio", "floods", "no address in", "127.0.0.1:7000"),
    ("cloudflared", "limit", "no more quick tunnels for now (429)", "next route"),
    ("cloudflared", "offline", "cannot be asked", "api.trycloudflare.com"),
    ("cloudflared", "elsewhere", "something else answered there", "try again"),
    ("cloudflared", "dies", "ended at once", "check the network"),
    ("cloudflared", "silent", "no address in", "next route"),
]


@pytest.fixture
def client(tmp_path):
    """A config whose programs are stand-ins in that mode."""

    def make(route: str, mode: str, **settings) -> TunnelConfig:
        name = "frpc" if route == "gradio" else route
        file = tmp_path / name
        words = shlex.join([sys.executable, str(STANDINS), name, mode])
        file.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        file.chmod(0o755)
        return TunnelConfig(
            order=(route,),
            programs={name: file},
            ngrok_token=lambda: TOKEN + "\n",
            frpc_sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
            gradio_server="127.0.0.1:7000",
            **settings,
        )

    return make


@pytest.mark.parametrize(
    "route, mode", [("ngrok", "ok"), ("ngrok", "quiet"), ("gradio", "ok"), ("cloudflared", "ok")]
)
def test_everything_comes_through(route, mode, origin, client):
    opened = open_tunnel(route, origin, client(route, mode))
    try:
        assert opened.tunnel.url.startswith("http://standin.localhost:")
        check_everything(opened.tunnel.url)
    finally:
        opened.close()


@pytest.mark.parametrize("route, mode, said, fix", FAILURES, ids=[f"{one[0]} {one[1]}" for one in FAILURES])
def test_each_failure_has_a_name_and_a_way_out_in_time(route, mode, said, fix, origin, client):
    limit_s, began = (
        1.5 if mode in ("silent", "floods", "elsewhere", "offline", "unreached") else LIMIT_S,
        time.monotonic(),
    )
    with pytest.raises(UserError) as caught:
        open_tunnel(route, origin, client(route, mode), limit_s)
    assert time.monotonic() - began < min(limit_s, 10) + 5
    assert said in caught.value.message and fix in caught.value.fix
    assert TOKEN not in str(caught.value)
    assert not origin.guard.nonces and not origin.guard.names._tunnels


def test_no_route_takes_longer_than_fifty_seconds_with_its_cleaning_up():
    assert LIMIT_S + 5 <= 50


# ------------------------------------------------------------------ ngrok


def test_the_token_stands_in_no_list_of_programs_no_output_and_no_file_that_stays(
    origin, client, tmp_path, capfd
):
    seen, over = [], threading.Event()

    def look() -> None:
        while not over.is_set():
            for one in psutil.process_iter(["cmdline", "environ"]):
                seen.append(TOKEN in f"{one.info['cmdline']} {one.info['environ']}")

    watcher = threading.Thread(target=look)
    watcher.start()
    opened = open_tunnel("ngrok", origin, client("ngrok", "ok"))
    over.set()
    watcher.join()
    command = psutil.Process(opened.child.pid).cmdline()
    config = Path(command[command.index("--config") + 1])
    assert len(seen) > 10 and not any(seen)
    assert any("token=***" in line for line in opened.child.tail())
    assert not config.exists() and config.parent.stat().st_mode & 0o077 == 0
    opened.close()
    assert not config.parent.exists()
    assert TOKEN not in "".join(capfd.readouterr()) and TOKEN not in repr(client("ngrok", "ok"))


def test_no_token_and_a_file_that_is_none_are_named_before_anything_starts(origin, client, tmp_path):
    for settings, said in (
        ({}, "there is no token"),
        ({"ngrok_token_file": tmp_path / "none"}, "cannot be read"),
        ({"ngrok_token": lambda: "two words"}, "cannot be a token"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            open_tunnel("ngrok", origin, TunnelConfig(order=("ngrok",), **settings))
        assert caught.value.fix


def test_a_token_function_that_hangs_is_given_up(origin):
    with pytest.raises(UserError, match="getting the token took more than"):
        open_tunnel("ngrok", origin, TunnelConfig(order=("ngrok",), ngrok_token=lambda: time.sleep(60)), 1.0)


# ------------------------------------------------------------------ Gradio


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Gradio's folder for its client, here, and no network."""
    monkeypatch.setattr(gradio_share, "_folder", lambda: tmp_path / "frpc")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    return tmp_path / "frpc"


def test_no_client_and_no_network_is_one_line_that_says_what_to_fetch(origin, cache):
    with pytest.raises(UserError) as caught:
        open_tunnel("gradio", origin, TunnelConfig(order=("gradio",)))
    assert "is not here and cannot be fetched" in caught.value.message and "\n" not in caught.value.message
    assert "https://cdn-media.huggingface.co/frpc-gradio-" in caught.value.fix
    assert not cache.exists() or not list(cache.iterdir())


def test_a_client_with_the_wrong_checksum_never_runs_not_the_second_time_either(origin, cache, tmp_path):
    known = gradio_share._gradio_knows(None)
    name = f"frpc_linux_{gradio_share._machine()}_v{known['VERSION']}"
    for _ in range(2):
        cache.mkdir(exist_ok=True)
        (cache / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (cache / name).chmod(0o755)
        with pytest.raises(UserError, match="wrong checksum and was removed"):
            open_tunnel("gradio", origin, TunnelConfig(order=("gradio",)))
        assert not (cache / name).exists()
    assert not (tmp_path / "ran").exists()


def test_a_program_of_ones_own_needs_its_checksum(origin, client):
    config = client("gradio", "ok")
    config.programs["frpc"].write_text("#!/bin/sh\necho changed since\n")
    with pytest.raises(UserError, match="frpc_sha256"):
        open_tunnel("gradio", origin, config)


# ------------------------------------------------------------------ Cloudflare, Colab


def test_a_missing_cloudflared_says_where_to_get_it(origin, tmp_path):
    with pytest.raises(UserError) as caught:
        open_tunnel(
            "cloudflared",
            origin,
            TunnelConfig(order=("cloudflared",), programs={"cloudflared": tmp_path / "x"}),
        )
    assert "github.com/cloudflare/cloudflared/releases" in caught.value.fix


@pytest.fixture
def colab(origin, monkeypatch):
    """A notebook page that asks a proxy for addresses and fetches them, as Colab's does."""
    command = [sys.executable, str(STANDINS), "proxy", "ok", str(origin.port)]
    proxy = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    url = f"http://standin.localhost:{int(proxy.stdout.readline())}"

    class Page:
        reaches = url  # where its requests to the proxy end up

        @staticmethod
        def eval_js(script: str, timeout_sec: float | None = None):
            if "proxyPort" in script:
                return url + "/"
            address = re.search(r'fetch\("([^"]+)"', script)[1]
            if not Page.reaches:
                return "TypeError: Failed to fetch"
            base, headers = reached(url)
            headers |= {
                "Sec-Fetch-Site": "cross-site",
                "Sec-Fetch-Mode": "no-cors",
                "Sec-Fetch-Dest": "empty",
            }
            httpx.get(address.replace(url, base if Page.reaches == url else Page.reaches), headers=headers)
            return "answered"  # with what, such a page cannot see

    package, module = types.ModuleType("google"), types.ModuleType("google.colab")
    module.output = Page
    monkeypatch.setitem(sys.modules, "google", package)
    monkeypatch.setitem(sys.modules, "google.colab", module)
    yield Page
    proxy.kill()
    proxy.wait()


def test_colabs_proxy_is_believed_when_the_nonce_of_the_notebooks_page_arrives(origin, colab):
    opened = open_tunnel("colab", origin, TunnelConfig(order=("colab",)))
    assert opened.tunnel.pid is None and "Only you" in opened.tunnel.notes[0]
    check_everything(opened.tunnel.url)
    opened.close()
    assert not origin.guard.names._tunnels


def test_colabs_proxy_that_the_browser_cannot_reach_is_named(origin, colab):
    colab.reaches = ""
    with pytest.raises(UserError, match="the browser says: TypeError") as caught:
        open_tunnel("colab", origin, TunnelConfig(order=("colab",)), 2.0)
    assert "cookies" in caught.value.fix


def test_a_request_that_ends_elsewhere_is_no_proof(origin, colab):
    with served_app() as other:
        colab.reaches = other.url.rstrip("/")
        with pytest.raises(UserError, match="did not arrive here"):
            open_tunnel("colab", origin, TunnelConfig(order=("colab",)), 2.0)


def test_elsewhere_there_is_no_colab_proxy(origin):
    with pytest.raises(UserError, match="no Colab notebook"):
        open_tunnel("colab", origin, TunnelConfig(order=("colab",)))
