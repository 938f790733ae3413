"""The command line as a user types it, mistakes included."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image


def _fastsd(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "fastsd_lib", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(2):
        Image.effect_noise((100, 80), 60 + number).convert("RGB").save(folder / f"{number}.jpg")
    return folder


@pytest.mark.parametrize(
    ("words", "said", "fix"),
    [
        (["trian"], "no command 'trian'", "did you mean: python3 -m fastsd_lib train"),
        (["session", "creat", "x"], "no 'creat'", "did you mean create"),
        (["session", "create", "../x"], "../x", "type a name such as x"),
        (
            ["session", "show", "nobody"],
            "No session 'nobody'",
            "create it: python3 -m fastsd_lib session create",
        ),
        (["session", "list", "--jsno"], "unknown argument '--jsno'", "--help"),
        (["train", "nobody", "--model", "embedded"], "No session 'nobody'", "session create"),
        (["identify", "nothing.safetensors"], "nothing.safetensors", ""),
        (["models", "info", "stable-difusion"], "stable-difusion", ""),
        (["benchmark", "tiny-modell"], "no benchmark 'tiny-modell'", "did you mean tiny-model"),
        (["session", "list", "--root", "~nosuchuser/d"], "home folder ~nosuchuser", "~ stands for your home"),
        (["vit", "classify", "~nosuchuser/a.png"], "home folder ~nosuchuser", "~ stands for your home"),
        (["webui", "--root", "~nosuchuser"], "home folder ~nosuchuser", "~ stands for your home"),
    ],
)
def test_a_mistake_is_two_lines_and_exit_2(words, said, fix, tmp_path):
    rooted = words[0] in ("session", "train") and len(words) > 1 and "--root" not in words
    root = ["--root", tmp_path] if rooted else []
    done = _fastsd(*words, *root)
    assert done.returncode == 2
    assert said in done.stderr and fix in done.stderr
    assert "Traceback" not in done.stderr
    assert 1 <= len(done.stderr.strip().splitlines()) <= 2


def test_photos_that_cannot_be_used_are_named_and_the_rest_is_kept(photos, tmp_path):
    (photos / "notes.jpg").write_text("this is text")
    cut = (photos / "0.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(cut[: len(cut) // 2])
    assert _fastsd("session", "create", "a", "--root", tmp_path).returncode == 0
    done = _fastsd("session", "add-images", "a", photos, "--root", tmp_path, "--json")
    outcome = json.loads(done.stdout)
    assert done.returncode == 0 and len(outcome["accepted"]) == 2
    assert sorted(one["name"] for one in outcome["rejected"]) == ["cut.jpg", "notes.jpg"]
    assert _fastsd("session", "add-images", "a", photos, "--root", tmp_path, "--strict").returncode == 2


def test_ctrl_c_in_training_saves_and_resume_finishes(photos, tmp_path, narrow_sd15):
    root = ["--root", tmp_path]
    _fastsd("session", "create", "a", *root)
    _fastsd("session", "add-images", "a", photos, *root)
    choices = [
        "instance_prompt=photo of sks cat",
        "resolution_px=64",
        "text_encoder_steps=0",
        "unet_steps=100000",
        "sample_every_steps=0",
    ]
    words = [
        sys.executable,
        "-m",
        "fastsd_lib",
        "train",
        "a",
        "--model",
        str(narrow_sd15.path),
        *map(str, root),
        *choices,
    ]
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background of a shell ignores Ctrl-C, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    log = tmp_path / "Fast-Dreambooth/Sessions/a/logs/metrics.jsonl"
    end = time.monotonic() + 240
    while not (log.is_file() and log.stat().st_size) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "Stopped after step" in out and "train a --resume" in out and "Traceback" not in error
    steps = len(log.read_text().splitlines())
    # The run's length belongs to its schedule, so another one is another run; --resume repeats the session's recipe.
    again = subprocess.Popen(
        [*words[:5], "--resume", *map(str, root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while len(log.read_text().splitlines()) <= steps and again.poll() is None and time.monotonic() < end:
        time.sleep(0.2)
    again.send_signal(signal.SIGTERM)
    out, error = again.communicate(timeout=120)
    assert again.returncode == 130, error
    written = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert written == list(range(1, len(written) + 1)) and len(written) > steps


def test_help_names_every_command():
    done = _fastsd("--help", env={**os.environ, "COLUMNS": "120"})
    assert done.returncode == 0
    for name in (
        "install",
        "doctor",
        "lab",
        "demo",
        "test",
        "session",
        "train",
        "generate",
        "identify",
        "convert",
        "models",
        "webui",
        "vit",
        "benchmark",
    ):
        assert name in done.stdout
