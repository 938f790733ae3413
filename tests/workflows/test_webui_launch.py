"""Launching for people elsewhere: terms, order of routes, the door, and an end that leaves nothing."""

from __future__ import annotations

import socket
import threading

import httpx
import pytest
from forwarding import closed_port, forwarding_route

from fastsd_lib.core.errors import UserError
from fastsd_lib.environment import tokens
from fastsd_lib.webui.tunnels import routes
from fastsd_lib.workflows.webui import WebuiConfig
from fastsd_lib.workflows.webui_launch import LaunchConfig, check_terms, launch, tunnel_order

API = WebuiConfig(ui=False)  # the page is tested elsewhere, and takes its seconds


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    names = (
        "COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE", "RUNPOD_POD_ID", "PAPERSPACE_FQDN", "NGROK_AUTHTOKEN",
        "NGROK_TOKEN", "FASTSD_PASSWORD",
    )  # fmt: skip
    for name in names:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def forwarder(monkeypatch):
    """The route "localtunnel" is a forwarder on this machine: everything but the way through the world is real."""
    monkeypatch.setitem(routes.TUNNELS, "localtunnel", forwarding_route)


def test_on_colab_nothing_starts_before_it_is_said_that_the_runtime_is_paid_for(monkeypatch, tmp_path):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    said = []
    for backend in ("builtin", "a1111", "comfyui"):
        for tunnels in ("none", "auto", "colab"):
            with pytest.raises(UserError, match="terms of service") as caught:
                launch(LaunchConfig(backend=backend, tunnels=tunnels), root=tmp_path, say=said.append)
            assert "i_have_paid_compute_units" in caught.value.fix and "studio.ipynb" in caught.value.fix
    assert said == [] and list(tmp_path.iterdir()) == []
    check_terms(LaunchConfig(i_have_paid_compute_units=True))


def test_routes_are_tried_in_the_users_order_and_auto_is_what_the_host_offers(monkeypatch):
    assert tunnel_order(LaunchConfig()) == tunnel_order(LaunchConfig(tunnels="none")) == ()
    assert tunnel_order(LaunchConfig(tunnels="ngrok, SSH")) == ("ngrok", "ssh")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert tunnel_order(LaunchConfig()) == ("gradio", "localtunnel")
    monkeypatch.setenv("NGROK_AUTHTOKEN", "token")
    assert tunnel_order(LaunchConfig(ssh_host="me@host")) == ("ngrok", "gradio", "localtunnel", "ssh")
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    assert tunnel_order(LaunchConfig())[:2] == ("colab", "ngrok")


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (LaunchConfig(tunnels="ngork"), "no tunnel 'ngork'"),
        (LaunchConfig(backend="sdnext"), "no back end 'sdnext'"),
        (LaunchConfig(controlnet="cany"), "no ControlNet 'cany'"),
        (LaunchConfig(lora_links="/no/such.safetensors"), "no file"),
        (LaunchConfig(model="nothing"), "No model 'nothing'"),
        (LaunchConfig(tunnels="ssh", ssh_host="-oProxyCommand=x"), "no ssh host"),
        (LaunchConfig(tunnels="localtunnel", user="a:b", password="x"), "called 'a:b'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(config, what, tmp_path):
    before = set(threading.enumerate())
    with pytest.raises(UserError, match=what):
        launch(config, root=tmp_path)
    assert set(threading.enumerate()) <= before


def test_it_is_up_behind_a_password_through_the_public_address_and_nothing_is_left(forwarder, tmp_path):
    before = set(threading.enumerate())
    lines, secrets, urls = [], [], []
    launched = launch(
        LaunchConfig(tunnels="localtunnel", port=closed_port()), serve=API, root=tmp_path, say=lines.append,
        show_once=secrets.append, on_url=urls.append,
    )  # fmt: skip
    try:
        assert [tunnel.url for tunnel in urls] == [launched.public_url]
        assert launched.public_url.rstrip("/") != launched.url.rstrip("/")
        assert httpx.get(f"{launched.public_url}/sdapi/v1/options").status_code == 401
        (secret,) = secrets
        user, password = secret.split()[1], secret.split()[3]
        answer = httpx.get(f"{launched.public_url}/sdapi/v1/options", auth=(user, password), timeout=30)
        assert answer.status_code == 200 and user == "fastsd"
        assert password not in "\n".join(lines) and "Public through" in launched.status()
    finally:
        launched.stop()
    launched.stop()
    for url in (launched.url, launched.public_url):
        with pytest.raises(httpx.TransportError):
            httpx.get(url)
    left = {one.name for one in set(threading.enumerate()) - before if one.is_alive() and not one.daemon}
    assert not launched.running and left == set()


def test_a_password_of_the_hosts_secrets_is_taken_and_never_shown(forwarder, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTSD_PASSWORD", "of my own")
    lines = []
    launched = launch(
        LaunchConfig(tunnels="localtunnel", user="me", port=closed_port()),
        serve=API,
        root=tmp_path,
        say=lines.append,
    )
    try:
        url = f"{launched.public_url}/sdapi/v1/options"
        assert httpx.get(url, auth=("me", "of my own"), timeout=30).status_code == 200
        assert "of my own" not in "\n".join(lines)
    finally:
        launched.stop()


def test_when_no_route_comes_up_the_server_ends_too(monkeypatch, tmp_path):
    def broken(opening):
        raise opening.failed("it is out of order.", "take another route.")

    monkeypatch.setitem(routes.TUNNELS, "localtunnel", broken)
    port = closed_port()
    with pytest.raises(UserError, match="out of order"):
        launch(LaunchConfig(tunnels="localtunnel", port=port), serve=API, root=tmp_path)
    with socket.socket() as free, pytest.raises(ConnectionRefusedError):
        free.connect(("127.0.0.1", port))


def test_stop_is_heard_while_a_route_is_being_opened(monkeypatch, tmp_path):
    stopping = threading.Event()

    def slow(opening):
        stopping.set()
        opening.stop.wait(60)
        raise opening.failed("stopped.", "")

    monkeypatch.setitem(routes.TUNNELS, "localtunnel", slow)
    port = closed_port()
    with pytest.raises(UserError):
        launch(LaunchConfig(tunnels="localtunnel", port=port), serve=API, root=tmp_path, stopping=stopping)
    with socket.socket() as free, pytest.raises(ConnectionRefusedError):
        free.connect(("127.0.0.1", port))


def test_without_a_tunnel_it_keeps_to_this_machine(tmp_path):
    launched = launch(LaunchConfig(tunnels="none", port=closed_port()), root=tmp_path)
    try:
        assert launched.public_url == "" and launched.url.startswith("http://127.0.0.1:")
        assert httpx.get(launched.url, timeout=30).status_code == 200
    finally:
        launched.stop()


def test_a_secret_is_asked_of_the_host_by_every_name_it_may_have():
    assert tokens.secret("A", "B", environment={}) is None
    assert tokens.secret("A", "B", environment={"A": "  ", "B": " two\n"}) == "two"


def test_kaggles_secrets_are_asked_on_kaggle(monkeypatch, tmp_path):
    (tmp_path / "kaggle_secrets.py").write_text(
        "class UserSecretsClient:\n"
        "    def get_secret(self, name):\n"
        "        if name != 'NGROK_TOKEN': raise ValueError('no such secret')\n"
        "        return 'of kaggle'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert tokens.secret("NGROK_TOKEN", environment={}) is None
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert tokens.secret("NGROK_AUTHTOKEN", "NGROK_TOKEN", environment={}) == "of kaggle"
