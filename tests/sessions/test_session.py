from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fastsd_lib.core.config import read_yaml
from fastsd_lib.core.errors import UserError
from fastsd_lib.sessions.photos import photos
from fastsd_lib.sessions.session import (
    FOLDERS,
    create_session,
    list_sessions,
    open_session,
    read_manifest,
    record,
    sessions_dir,
    set_facts,
    summary,
    template_dir,
)
from fastsd_lib.sessions.verify import verify
from fastsd_lib.training.config import DreamBoothConfig

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


def legacy_session(root: Path, name: str = "old one") -> Path:
    """A folder as the older notebooks left it: photos, captions, a checkpoint, and no session.json."""
    folder = sessions_dir(root) / name
    (folder / "instance_images").mkdir(parents=True)
    (folder / "captions").mkdir()
    (folder / "instance_images" / "phtmejhn (1).jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(40))
    (folder / "captions" / "phtmejhn (1).txt").write_text("smiling")
    with zipfile.ZipFile(folder / f"{name}.ckpt", "w") as checkpoint:
        checkpoint.writestr("archive/data.pkl", b"")
    return folder


def listing(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_new_session_has_every_part_and_its_manifest(tmp_path):
    session = create_session(tmp_path, "Мой кот")
    assert session.path == tmp_path / "Fast-Dreambooth" / "Sessions" / "Мой кот"
    assert all((session.path / part).is_dir() for part in FOLDERS)
    assert session.recipe.is_file() and (session.path / "README.md").is_file()
    manifest = read_manifest(session)
    assert (manifest["schema"], manifest["name"]) == (1, "Мой кот")
    assert [entry["event"] for entry in manifest["history"]] == ["created"]
    assert session.model_file.name == "Мой кот.safetensors"
    assert open_session(tmp_path, "Мой кот") == session
    (finding,) = verify(session)
    assert finding.file == "instance_images" and "session add-images 'Мой кот' FOLDER" in finding.fix


def test_creating_it_again_completes_it_and_keeps_what_is_there(tmp_path):
    session = create_session(tmp_path, "cat")
    session.recipe.write_text("instance_prompt: mine\n")
    session.samples.rmdir()
    before = session.manifest.read_bytes()
    assert create_session(tmp_path, "cat") == session
    assert session.recipe.read_text() == "instance_prompt: mine\n"
    assert session.samples.is_dir()
    assert session.manifest.read_bytes() == before


def test_a_session_that_broke_off_while_it_was_made_is_completed(tmp_path):
    (sessions_dir(tmp_path) / "cat" / "instance_images").mkdir(parents=True)
    session = create_session(tmp_path, "cat")
    assert session.manifest.is_file() and session.recipe.is_file()


def test_a_name_that_differs_only_in_case_is_refused_by_the_name_of_the_other(tmp_path):
    create_session(tmp_path, "Cat")
    with pytest.raises(UserError, match="There is a session 'Cat' already") as error:
        create_session(tmp_path, "cAT")
    assert error.value.fix == "open 'Cat', or choose another name."
    with pytest.raises(UserError, match="No session 'cAT'") as error:
        open_session(tmp_path, "cAT")
    assert error.value.fix == "did you mean 'Cat'?"


def test_a_folder_in_another_unicode_spelling_is_the_same_session(tmp_path):
    session = create_session(tmp_path, "caf\u00e9")
    session.path.rename(session.path.with_name("cafe\u0301"))
    assert open_session(tmp_path, "caf\u00e9").path.name == "cafe\u0301"
    assert create_session(tmp_path, "caf\u00e9").path.name == "cafe\u0301"
    assert len(list_sessions(tmp_path)) == 1


def test_a_missing_session_names_those_that_are_there(tmp_path):
    with pytest.raises(UserError, match=r"No session 'cat' in .*Sessions \(there: none yet\)") as error:
        open_session(tmp_path, "cat")
    assert error.value.fix == "create it: python3 -m fastsd_lib session create cat"
    for name in ("b", "a"):
        create_session(tmp_path, name)
    with pytest.raises(UserError, match=r"\(there: a, b\)"):
        open_session(tmp_path, "cat")


@pytest.mark.parametrize("name", ["../x", "a/b", "", "CON"])
def test_no_bad_name_creates_or_opens_anything(tmp_path, name):
    for act in (create_session, open_session):
        with pytest.raises(UserError):
            act(tmp_path, name)
    assert list(tmp_path.rglob("*")) == []


def test_sessions_are_listed_by_name_without_junk_and_strangers(tmp_path):
    for name in ("b", "A", "c"):
        create_session(tmp_path, name)
    for stray in (".ipynb_checkpoints", "__MACOSX", "empty"):
        (sessions_dir(tmp_path) / stray).mkdir()
    (sessions_dir(tmp_path) / "file").write_text("x")
    assert [session.name for session in list_sessions(tmp_path)] == ["A", "b", "c"]
    assert list_sessions(tmp_path / "nowhere") == []


def test_a_folder_of_the_older_notebooks_opens_unchanged(tmp_path):
    folder = legacy_session(tmp_path)
    before = listing(folder)
    session = open_session(tmp_path, "old one")
    shown = summary(session)
    assert (shown["photos"], shown["captions"], shown["models"], shown["legacy"]) == (
        1,
        1,
        ["old one.ckpt"],
        True,
    )
    assert [path.name for path in photos(session)] == ["phtmejhn (1).jpg"]
    assert verify(session) == []
    assert listing(folder) == before


def test_a_folder_of_the_older_notebooks_is_completed_but_never_rewritten(tmp_path):
    folder = legacy_session(tmp_path)
    before = listing(folder)
    session = create_session(tmp_path, "old one")
    record(session, "trained")
    assert {name: listing(folder)[name] for name in before} == before
    assert [entry["event"] for entry in read_manifest(session)["history"]] == ["created", "trained"]


def test_events_are_kept_in_order_with_paths_that_survive_a_move(tmp_path):
    session = create_session(tmp_path, "cat")
    record(
        session,
        "trained",
        checkpoint=session.checkpoints / "step_000500",
        steps=500,
        outside=Path("elsewhere"),
    )
    record(session, "exported", files=[session.model_file])
    _, trained, exported = read_manifest(session)["history"]
    assert trained["checkpoint"] == "checkpoints/step_000500"
    assert (trained["steps"], trained["outside"]) == (500, "elsewhere")
    assert exported["files"] == ["cat.safetensors"]
    assert trained["when"] <= exported["when"]
    set_facts(session, base_model="embedded")
    assert summary(session)["base_model"] == "embedded"
    assert len(read_manifest(session)["history"]) == 3


def test_a_record_that_cannot_be_written_leaves_the_history_whole(tmp_path, monkeypatch):
    session = create_session(tmp_path, "cat")
    before = session.manifest.read_bytes()

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match="No space left on device") as error:
        record(session, "trained")
    assert "free some space" in error.value.fix
    assert session.manifest.read_bytes() == before
    assert [path.name for path in session.path.glob(".*")] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"schema": 1,', "not valid JSON"),
        ("[]", "not a session's manifest"),
        ('{"schema": "1", "history": []}', "not a session's manifest"),
        ('{"schema": 2, "history": []}', "written by a newer fastsd (schema 2, this one reads 1)"),
    ],
)
def test_a_damaged_or_newer_manifest_is_said_on_opening(tmp_path, text, words):
    session = create_session(tmp_path, "cat")
    session.manifest.write_text(text)
    with pytest.raises(UserError) as error:
        open_session(tmp_path, "cat")
    assert words in error.value.message and error.value.fix
    assert session.manifest.read_text() == text


def test_the_summary_counts_what_is_there(tmp_path):
    session = create_session(tmp_path, "cat")
    (session.instance_images / "a.png").write_bytes(PNG)
    (session.instance_images / "fake.png").write_text("no photo")
    (session.instance_images / ".photos.jsonl").write_text("{}")
    (session.captions / "a.txt").write_text("x")
    (session.checkpoints / "step_000500").mkdir()
    session.model_file.write_bytes(b"12345")
    shown = summary(session)
    assert (shown["photos"], shown["captions"], shown["checkpoints"]) == (1, 1, ["step_000500"])
    assert shown["models"] == ["cat.safetensors"]
    assert shown["bytes"] == sum(path.stat().st_size for path in session.path.rglob("*") if path.is_file())
    assert json.loads(json.dumps(shown)) == shown


def test_verify_names_each_thing_that_is_wrong(tmp_path):
    session = create_session(tmp_path, "cat")
    (session.instance_images / "a.png").write_bytes(PNG)
    assert verify(session) == []
    (session.instance_images / "page.png").write_text("<html>")
    session.crops_file.write_text('{"schema": 1, "photos": {"gone.png": {}, "a.png": {}}}')
    (session.captions / "lost.txt").write_text("x")
    (session.checkpoints / "step_000500").mkdir()
    (session.path / ".cat.1.partial.safetensors").write_text("x")
    session.model_file.write_bytes(b"")
    session.manifest.write_text("{")
    found = {finding.file: finding for finding in verify(session)}
    assert set(found) == {
        "session.json", "instance_images/page.png", "crops.json", "captions/lost.txt", "checkpoints/step_000500",
        ".cat.1.partial.safetensors", "cat.safetensors",
    }  # fmt: skip
    assert "gone.png" in found["crops.json"].problem
    assert all(finding.fix for finding in found.values())


def test_a_file_where_the_folder_should_be_is_a_clear_line(tmp_path):
    (tmp_path / "Fast-Dreambooth").write_text("not a folder")
    with pytest.raises(UserError, match="Could not create the session 'cat'") as error:
        create_session(tmp_path, "cat")
    assert "a file stands where a folder should be" in error.value.fix
    assert list_sessions(tmp_path) == []


def test_the_template_recipe_has_every_setting_with_its_default():
    values = read_yaml(template_dir() / "recipe.yaml")
    fields = dataclasses.fields(DreamBoothConfig)
    assert set(values) == {field.name for field in fields}
    defaults = dataclasses.asdict(DreamBoothConfig(instance_prompt=""))
    assert values == defaults
    assert {name: type(value) for name, value in values.items()} == {n: type(v) for n, v in defaults.items()}


def test_the_template_explains_every_part():
    text = (template_dir() / "README.md").read_text(encoding="utf-8")
    assert all(
        part in text for part in (*FOLDERS, "session.json", "recipe.yaml", "crops.json", ".safetensors")
    )


def test_the_rooms_are_light():
    code = (
        "import sys\n"
        "import fastsd_lib.sessions.session, fastsd_lib.sessions.photos, fastsd_lib.sessions.verify\n"
        "import fastsd_lib.core.config, fastsd_lib.core.file_kinds\n"
        "print({'numpy', 'PIL', 'yaml', 'torch'} & set(sys.modules))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    ).stdout
    assert printed.strip() == "set()"
