"""Folders as the older fast-DreamBooth notebooks left them on people's Drives."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from fastsd_lib.core.config import read_yaml
from fastsd_lib.core.errors import UserError
from fastsd_lib.sessions import legacy
from fastsd_lib.sessions.session import (
    Session,
    list_sessions,
    open_session,
    read_manifest,
    sessions_dir,
    summary,
)
from fastsd_lib.sessions.verify import verify
from fastsd_lib.workflows import dreambooth, older_sessions

OLD_PICKLE = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


def photo(number: int) -> bytes:
    """A JPEG of 96 x 96 that differs from all others."""
    data = io.BytesIO()
    picture = Image.new("RGB", (96, 96), "white")
    picture.paste(("red", "green", "blue", "orange")[number % 4], (10 + number, 20, 60 + number, 80))
    picture.save(data, "JPEG")
    return data.getvalue()


def zip_of(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def whole_checkpoint(path: Path) -> Path:
    """A file with the outside of a PyTorch checkpoint; nothing here opens it further."""
    return zip_of(path, {f"{path.stem}/data.pkl": b"\x80\x02}.", f"{path.stem}/version": b"3"})


def legacy_folder(root: Path, name: str = "phtmejhn", *, unpacked: bool = True) -> Path:
    """Every kind of file that the older notebooks wrote."""
    folder = sessions_dir(root) / name
    folder.mkdir(parents=True)
    photos = {f"phtmejhn ({number}).jpg": photo(number) for number in range(1, 4)}
    captions = {"phtmejhn (1).txt": b"smiling\r\n", "phtmejhn (2).txt": "in M\u00fcnchen".encode("latin-1")}
    zip_of(folder / "instance_images.zip", {f"instance_images/{name}": data for name, data in photos.items()})
    zip_of(folder / "captions.zip", {f"captions/{name}": data for name, data in captions.items()})
    if unpacked:
        for part, files in (("instance_images", photos), ("captions", captions)):
            (folder / part / ".ipynb_checkpoints").mkdir(parents=True)
            for file, data in files.items():
                (folder / part / file).write_bytes(data)
    whole_checkpoint(folder / f"{name}.ckpt")
    for step in (500, 1000):
        whole_checkpoint(folder / f"{name}_step_{step}.ckpt")
    (root / "Fast-Dreambooth" / "token.txt").write_text("hf_verysecret\n")
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_it_is_listed_opened_and_shown_and_nothing_is_written(tmp_path):
    folder = legacy_folder(tmp_path)
    before = hashes(tmp_path)
    assert [session.name for session in list_sessions(tmp_path)] == ["phtmejhn"]
    shown = summary(open_session(tmp_path, "phtmejhn"))
    assert shown["photos"] == 3 and shown["captions"] == 2 and shown["legacy"]
    assert shown["models"] == ["phtmejhn.ckpt", "phtmejhn_step_1000.ckpt", "phtmejhn_step_500.ckpt"]
    assert shown["zips"] == ["instance_images.zip", "captions.zip"]
    assert shown["identifiers"] == {"phtmejhn": 3}
    assert shown["proposed_prompt"] == "photo of phtmejhn"
    assert "hf_verysecret" not in str(shown)
    assert verify(Session(folder)) == []
    assert hashes(tmp_path) == before


def test_it_is_completed_and_its_own_files_stay_byte_for_byte(tmp_path):
    folder = legacy_folder(tmp_path)
    before = hashes(tmp_path)
    session = dreambooth.open_session("phtmejhn", tmp_path)
    assert read_yaml(session.recipe)["instance_prompt"] == "photo of phtmejhn"
    assert session.manifest.is_file() and session.checkpoints.is_dir()
    dreambooth.crop_photos(session)
    prompts = dreambooth.caption_photos(session, "photo of phtmejhn")
    assert prompts["phtmejhn (1).jpg"] == "photo of phtmejhn, smiling"
    assert prompts["phtmejhn (2).jpg"] == "photo of phtmejhn, in M\ufffdnchen"
    assert prompts["phtmejhn (3).jpg"] == "photo of phtmejhn"
    after = hashes(tmp_path)
    assert {name: after[name] for name in before} == before
    written = folder / "recipe.yaml"
    written.write_text("instance_prompt: mine\n")
    assert older_sessions.complete(session) is None
    assert written.read_text() == "instance_prompt: mine\n"


def test_photos_and_captions_that_are_there_as_zips_only_are_used(tmp_path):
    folder = legacy_folder(tmp_path, unpacked=False)
    before = hashes(tmp_path)
    session = open_session(tmp_path, "phtmejhn")
    assert summary(session)["identifiers"] == {"phtmejhn": 3}
    assert verify(session) == []
    session = dreambooth.open_session("phtmejhn", tmp_path)
    names = [path.name for path in dreambooth.photos(session)]
    assert names == ["phtmejhn (1).jpg", "phtmejhn (2).jpg", "phtmejhn (3).jpg"]
    assert (folder / "captions" / "phtmejhn (1).txt").read_text() == "smiling\n"
    assert read_yaml(session.recipe)["instance_prompt"] == "photo of phtmejhn"
    assert read_manifest(session)["history"][-1] | {"when": ""} == {
        "when": "", "event": "zips unpacked", "zips": ["instance_images.zip", "captions.zip"], "photos": 3,
        "captions": 2,
    }  # fmt: skip
    after = hashes(tmp_path)
    assert {name: after[name] for name in before} == before
    dreambooth.open_session("phtmejhn", tmp_path)
    assert hashes(tmp_path) == after  # a second time there is nothing to do


def test_a_zip_that_leads_out_of_the_session_is_refused_and_the_session_still_opens(tmp_path):
    folder = legacy_folder(tmp_path, unpacked=False)
    zip_of(folder / "instance_images.zip", {"../../../../evil.jpg": photo(1)})
    session = dreambooth.open_session("phtmejhn", tmp_path)
    assert dreambooth.photos(session) == [] and not list(tmp_path.parent.glob("evil*"))
    outcome = older_sessions.complete(session)
    assert [one.code for one in outcome.rejected] == ["unsafe_zip"]


def test_the_model_to_go_on_from_is_the_newest_whole_one_and_none_is_renamed(tmp_path):
    folder = legacy_folder(tmp_path)
    for seconds, name in enumerate(("phtmejhn_step_500", "phtmejhn", "phtmejhn_step_1000")):
        os.utime(folder / f"{name}.ckpt", (1_600_000_000 + seconds, 1_600_000_000 + seconds))
    assert [path.stem for path in legacy.trained_models(folder)][-1] == "phtmejhn_step_1000"
    with (folder / "phtmejhn_step_1000.ckpt").open("r+b") as cut:
        cut.truncate(60)  # the disk was full, or Drive had not finished
    assert legacy.trained_models(folder)[-1].stem == "phtmejhn"
    (finding,) = verify(Session(folder))
    assert (finding.file, finding.problem) == ("phtmejhn_step_1000.ckpt", "is cut short")
    session = open_session(tmp_path, "phtmejhn")
    with pytest.raises(UserError, match="No base model was chosen") as error:
        dreambooth.planned(session)
    assert error.value.fix == f'go on from its own model: add --model "{folder / "phtmejhn.ckpt"}"'


@pytest.mark.parametrize(
    ("content", "wrong"),
    [(b"", "is empty"), (b"<html>quota</html>", "is no PyTorch checkpoint"), (OLD_PICKLE + b"...", "")],
)
def test_what_a_checkpoint_looks_like_from_outside(tmp_path, content, wrong):
    (tmp_path / "a.ckpt").write_bytes(content)
    assert legacy.damage(tmp_path / "a.ckpt") == wrong


@pytest.mark.parametrize(
    ("names", "found", "prompt"),
    [
        (["phtmejhn (1).jpg", "phtmejhn (2).jpg"], {"phtmejhn": 2}, "photo of phtmejhn"),
        (["mafk4 smiling.png", "mafk4 (2).png"], {"mafk4": 2}, "photo of mafk4"),
        (["mafk4 smiling.png"], {"mafk4": 1}, "photo of mafk4"),
        (["rvd (1).jpg", "phtm (1).jpg", "phtm (2).jpg"], {"phtm": 2, "rvd": 1}, "photo"),
        (["a man driving a car (2).jpg", "a-man-driving-a-car-(3).jpg"], {}, ""),
        (["IMG_0001.jpg", "WhatsApp Image 2023-01-01.jpeg", "20230101_101010.jpg"], {}, ""),
        ([], {}, ""),
    ],
)
def test_subjects_are_read_from_photo_names(names, found, prompt):
    photos = [Path(name) for name in names]
    assert legacy.identifiers(photos) == found
    assert legacy.instance_prompt_for(photos) == prompt


def test_several_subjects_are_each_learned_by_their_own_word(tmp_path):
    folder = sessions_dir(tmp_path) / "two" / "instance_images"
    folder.mkdir(parents=True)
    for number, name in enumerate(("rvdbr (1).jpg", "phtmejhn (1).jpg", "phtmejhn (2).jpg")):
        (folder / name).write_bytes(photo(number))
    session = dreambooth.open_session("two", tmp_path)
    prompt = read_yaml(session.recipe)["instance_prompt"]
    assert set(dreambooth.caption_photos(session, prompt).values()) == {"photo, phtmejhn", "photo, rvdbr"}
