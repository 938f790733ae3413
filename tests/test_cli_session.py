"""The session commands for sharing and space, as a user types them, mistakes included."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from fastsd_lib.sessions.checkpoints import write_checkpoint
from fastsd_lib.sessions.session import create_session


def _session(*words, **options):
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_TOKEN", "HF_ENDPOINT")}
    return subprocess.run(
        [sys.executable, "-m", "fastsd_lib", "session", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env={**environment, "HF_HOME": "/nonexistent", "HF_ENDPOINT": "http://127.0.0.1:9"},
        **options,
    )


def _json(*words):
    done = _session(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def root(tmp_path) -> Path:
    session = create_session(tmp_path, "my-cat")
    Image.effect_noise((100, 80), 60).convert("RGB").save(session.instance_images / "a.jpg")
    session.model_file.write_bytes(b"model")
    for step in (1, 2):
        files = {"unet.safetensors": lambda: [b"w" * 1000]}
        write_checkpoint(
            session.checkpoints, step=step, total_steps=9, stage="U-Net", run="ab" * 8, files=files
        )
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said", "fix"),
    [
        (["exprot", "my-cat"], "no 'exprot'", "did you mean export"),
        (["export"], "required: SESSION", "session export --help"),
        (["export", "my-ct"], "No session 'my-ct'", "did you mean 'my-cat'"),
        (["export", "my-cat", "--with", "chekpoints"], "no part 'chekpoints'", "checkpoints, class-images"),
        (["export", "my-cat", "--wiht", "logs"], "unknown argument", "session export --help"),
        (["import"], "required: SOURCE", "session import --help"),
        (["import", "no.zip"], "no file or folder 'no.zip'", "Google Drive link"),
        (["import", "org/name"], "No connection to Hugging Face", "connect to the network"),
        (
            ["import", "https://example.org/x.zip"],
            "neither Google Drive nor",
            "download the archive yourself",
        ),
        (["import", "x.zip", "--name", "a/b"], "cannot be called 'a/b'", "type a name such as a-b"),
        (["publish", "my-cat"], "required: USER/NAME", "session publish --help"),
        (["publish", "my-cat", "my cat!"], "cannot be the name of", "me/my-cat"),
        (["publish", "my-cat", "me/cat"], "no Hugging Face token here", "HF_TOKEN"),
        (["free-space", "--keep", "0"], "0 checkpoints cannot be kept", "at least 1"),
        (["free-space", "--keep", "some"], "invalid int value: 'some'", "session free-space --help"),
        (["free-space", "--yse"], "unknown argument '--yse'", "session free-space --help"),
        (["free-space"], "no terminal to ask on", "--yes"),
        (["remove", "my-cta"], "No session 'my-cta'", "did you mean 'my-cat'"),
        (["remove", "my-cat", "--for-good"], "no terminal to ask on", "--yes"),
    ],
)
def test_a_mistake_is_two_lines_and_exit_2_and_changes_nothing(root, words, said, fix):
    before = {path: path.stat().st_size for path in root.rglob("*") if path.is_file()}
    done = _session(*words, "--root", root, cwd=root)
    assert done.returncode == 2
    assert said in done.stderr and fix in done.stderr and "Traceback" not in done.stderr
    assert 1 <= len(done.stderr.strip().splitlines()) <= 2
    assert {path: path.stat().st_size for path in root.rglob("*") if path.is_file()} == before


def test_a_session_goes_out_and_comes_back(root, tmp_path):
    made = _json("export", "my-cat", "--with", "checkpoints", "--root", root, tmp_path / "out")
    assert made["path"].endswith("out.zip") and made["bytes"] == os.path.getsize(made["path"])
    assert zipfile.is_zipfile(made["path"])
    back = _json("import", made["path"], "--name", "Кот 2", "--root", root)
    assert back["name"] == "Кот 2" and back["verified"] is True and back["files"] == made["files"]
    shown = _json("show", "Кот 2", "--root", root)
    assert shown["photos"] == 1 and shown["checkpoints"] == ["step_000001", "step_000002"]
    assert shown["models"] == ["Кот 2.safetensors"]
    again = _session("import", made["path"], "--root", root)
    assert again.returncode == 2 and "There is a session 'my-cat' already" in again.stderr
    assert "--name my-cat-2" in again.stderr


def test_a_dry_run_of_publishing_shows_each_file_and_the_card_and_needs_no_network(root):
    done = _session("publish", "my-cat", "me/cat", "--dry-run", "--root", root)
    assert done.returncode == 0, done.stderr
    assert "private: only you see it" in done.stdout and "my-cat.safetensors (5 B)" in done.stdout
    assert "pipeline_tag: text-to-image" in done.stdout and "Nothing was sent" in done.stdout
    assert "a.jpg" not in done.stdout
    planned = _json("publish", "my-cat", "me/cat", "--dry-run", "--with-photos", "--root", root)
    assert "instance_images/a.jpg" in planned["files"] and planned["sent"] is False


def test_free_space_shows_then_deletes_what_it_showed(root):
    looked = _json("free-space", "--dry-run", "--root", root)
    assert [Path(one["path"]).name for one in looked["sessions"][0]["can_go"]] == ["step_000001"]
    assert looked["freed_bytes"] == 0
    done = _json("free-space", "--yes", "--root", root, "my-cat")
    assert done["freed_bytes"] == looked["can_be_freed_bytes"] > 1000
    assert _json("show", "my-cat", "--root", root)["checkpoints"] == ["step_000002"]
    said = _session("free-space", "--root", root)
    assert said.returncode == 0 and "There is nothing that could go." in said.stdout


@pytest.mark.parametrize(("answer", "code", "left"), [("n", 2, 2), ("", 2, 2), ("y", 0, 1)])
def test_free_space_asks_on_a_terminal(root, answer, code, left):
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "fastsd_lib", "session", "free-space", "--root", str(root)]
    process = subprocess.Popen(words, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.write(ours, f"{answer}\n".encode())
    out, error = process.communicate(timeout=120)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == code and "[y/N]" in error and "can go: checkpoints/step_000001" in out
    assert len(_json("show", "my-cat", "--root", root)["checkpoints"]) == left


def test_a_removed_session_can_be_brought_back_and_the_trash_be_emptied(root):
    moved = _json("remove", "my-cat", "--root", root)
    assert _json("list", "--root", root) == []
    back = _session("import", moved["moved_to"], "--name", "my-cat", "--root", root)
    assert back.returncode == 0, back.stderr
    assert _json("show", "my-cat", "--root", root)["models"] == ["my-cat.safetensors"]
    assert "empty it: --empty-trash" in _session("free-space", "--dry-run", "--root", root).stdout
    assert _json("free-space", "--empty-trash", "--yes", "--root", root)["freed_bytes"] > 0
    assert not os.listdir(Path(moved["moved_to"]).parent)
    assert _session("remove", "my-cat", "--for-good", "--yes", "--root", root).returncode == 0
    assert _json("list", "--root", root) == []


def test_photos_none_of_which_can_be_used_are_a_mistake(root, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "notes.jpg").write_text("this is text")
    done = _session("add-images", "my-cat", tmp_path / "bad", "--root", root, "--json")
    assert done.returncode == 2 and json.loads(done.stdout)["rejected"][0]["name"] == "notes.jpg"
    assert "This cannot be used: notes.jpg" in done.stderr
    Image.effect_noise((100, 80), 90).convert("RGB").save(tmp_path / "bad" / "good.jpg")
    done = _session("add-images", "my-cat", tmp_path / "bad", "--root", root)
    assert done.returncode == 0 and "1 photo added, 1 refused" in done.stdout
