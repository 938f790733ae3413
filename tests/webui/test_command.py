"""`fastsd webui` as it is typed: what it prints, what others on the machine can see of it."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

REPOSITORY = Path(__file__).parents[2]


@contextmanager
def typed(*words: str, **surroundings: str):
    running = subprocess.Popen(
        [sys.executable, "-m", "fastsd_lib", "webui", *words],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **surroundings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait(20)
        running.stdout.close()


def test_an_open_address_gets_a_password_that_is_printed_once(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with typed("--host", "0.0.0.0", "--port", str(port), "--folder", str(tmp_path)) as running:
        lines = []
        for line in running.stdout:
            lines.append(line)
            if found := re.search(r"User: (\S+)   Password: (\S+)", line):
                break
        user, password = found.groups()
        url = f"http://127.0.0.1:{port}/config"
        assert httpx.get(url, trust_env=False).status_code == 401
        assert httpx.get(url, auth=(user, password), trust_env=False).status_code == 200
        running.terminate()
        said = "".join(lines) + running.stdout.read()
    assert said.count(password) == 1 and f"http://127.0.0.1:{port}/" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--tunnel", "gradoi"),
            "There is no tunnel 'gradoi'.\n  -> take one or more of colab, ngrok, gradio,",
        ),
        (
            ("--backend", "a111"),
            "There is no back end 'a111'.\n  -> take one of builtin, a1111, forge, comfyui.",
        ),
        (
            ("--tunnel", "ssh", "--no-auth"),
            "A tunnel can be reached from other machines, and --no-auth would",
        ),
        (
            ("--tunnel", "ssh", "--ssh-host", "a b"),
            "'a b' is no ssh host.\n  -> write user@host or user@host:port.",
        ),
    ],
)
def test_what_cannot_be_opened_is_said_before_a_model_is_loaded(words, said):
    with typed(*words, "--port", "0") as running:
        assert said in running.stdout.read()
        assert running.wait(20) == 2


def test_no_password_on_an_open_address_is_refused_at_once():
    with typed("--host", "0.0.0.0", "--no-auth") as running:
        said = running.stdout.read()
        assert running.wait(20) == 2
    assert "--anyone-may-use-this-machine" in said and "Traceback" not in said


def test_a_typed_password_is_soon_hidden(tmp_path):
    with typed("--password", "hunter: 2", "--port", "1", "--folder", str(tmp_path)) as running:
        listed = Path(f"/proc/{running.pid}/cmdline")
        end = time.monotonic() + 30
        while b"*********" not in listed.read_bytes():
            assert time.monotonic() < end
            time.sleep(0.02)
        assert b"hunter" not in listed.read_bytes() and b"--port" in listed.read_bytes()


def test_the_api_alone_draws_and_ends_with_its_history_kept(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ("--no-ui", "--port", str(port), "--folder", str(tmp_path / "mine"), "--api-server-stop")
    imported = set()
    with typed(*words, PYTHONPROFILEIMPORTTIME="1") as running:
        for line in running.stdout:
            if line.startswith("The API is at"):
                assert f" http://127.0.0.1:{port}/ " in line
                break
            imported.add(line.rpartition("|")[2].strip())
        body = {"prompt": "a red star", "steps": 2, "width": 64, "height": 64, "seed": 3}
        url = f"http://127.0.0.1:{port}/sdapi/v1/txt2img"
        answer = httpx.post(url, json=body, timeout=60, trust_env=False)
        assert answer.status_code == 200 and len(answer.json()["images"]) == 1
        assert httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).headers["location"] == "/docs"
        stop = f"http://127.0.0.1:{port}/sdapi/v1/server-stop"
        assert httpx.post(stop, json={}, trust_env=False).status_code == 200
        assert "Traceback" not in running.stdout.read() and running.wait(20) == 0
    assert "fastapi" in imported and "gradio" not in imported
    kept = sqlite3.connect(tmp_path / "mine" / "history.sqlite").execute("SELECT * FROM jobs").fetchall()
    assert len(kept) == 1


def test_a_folder_that_cannot_be_made_is_said_before_the_model_is_loaded(tmp_path):
    (tmp_path / "file").write_text("here")
    with typed("--no-ui", "--folder", str(tmp_path / "file" / "in")) as running:
        said = running.stdout.read()
        assert running.wait(30) == 2
    assert "cannot be made: Not a directory" in said and "--folder DIR" in said and "Traceback" not in said
