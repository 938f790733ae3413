"""Curation advises and moves nothing; setting aside moves and deletes nothing; judging tells before from after."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image, ImageFilter
from skimage import data

from fastsd_lib import cli
from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.single_file import export_single_file
from fastsd_lib.images.sharpness import blur
from fastsd_lib.models.registry import EMBEDDED_FOLDER
from fastsd_lib.sessions import session as sessions
from fastsd_lib.sessions.contents import contents
from fastsd_lib.sessions.lock import session_lock
from fastsd_lib.workflows import curation, dreambooth, judging, setting_aside

MONSTERS = sorted((EMBEDDED_FOLDER / "sample_photos" / "monster").glob("*.png"))


def write_class(folder, count=14):
    """Photographs of other things, each a piece of one of scikit-image's."""
    folder.mkdir(parents=True, exist_ok=True)
    wholes = [
        Image.fromarray(getattr(data, name)()).convert("RGB") for name in ("coffee", "rocket", "astronaut")
    ]
    random = np.random.default_rng(3)
    for number in range(count):
        whole = wholes[number % 3]
        left, top = random.integers(0, whole.width - 200), random.integers(0, whole.height - 200)
        whole.crop((left, top, left + 200, top + 200)).save(folder / f"other_{number}.jpg", quality=90)
    return folder


@pytest.fixture
def session(tmp_path):
    """The sample monster's photos; a copy, an intruder, a blurred and a tiny one among them."""
    brought = tmp_path / "brought"
    brought.mkdir()
    for photo in MONSTERS:
        Image.open(photo).convert("RGB").save(brought / photo.name)
    first = Image.open(MONSTERS[0]).convert("RGB")
    first.resize((200, 200)).save(brought / "again.jpg", quality=80)
    Image.open(MONSTERS[1]).convert("RGB").filter(ImageFilter.GaussianBlur(7)).save(brought / "shaken.png")
    Image.fromarray(data.chelsea()).crop((40, 0, 340, 300)).save(brought / "intruder.jpg", quality=92)
    Image.open(MONSTERS[2]).convert("RGB").rotate(12).resize((70, 70)).save(brought / "tiny.png")
    made = sessions.create_session(tmp_path / "root", "monster")
    dreambooth.add_photos(made, brought)
    dreambooth.caption_photos(made, "a photo of sks monster")
    recipe = made.recipe.read_text().replace("resolution_px: 512", "resolution_px: 128")
    made.recipe.write_text(recipe.replace('instance_prompt: ""', 'instance_prompt: "a photo of sks monster"'))
    write_class(made.class_images)
    return made


def files_of(session):
    return {item.name: item.path.read_bytes() for item in contents(session) if item.part != "lock"}


def test_each_fault_is_named_and_nothing_is_moved(session):
    before = files_of(session)
    found = curation.curate(session)
    by_name = {row.name: row for row in found.rows}
    assert by_name["again.jpg"].verdict == "drop"
    assert by_name["again.jpg"].twin_of == MONSTERS[0].name
    assert by_name["shaken.png"].verdict == "drop" and "blurred" in by_name["shaken.png"].reasons
    assert by_name["tiny.png"].verdict == "drop" and "too small" in " ".join(by_name["tiny.png"].reasons)
    assert by_name["intruder.jpg"].verdict == "look"
    assert "class" in " ".join(by_name["intruder.jpg"].reasons)
    assert {by_name[photo.name].verdict for photo in MONSTERS} == {"keep"}
    assert set(found.advised) == {"again.jpg", "shaken.png", "tiny.png"}
    assert files_of(session) == before


def test_the_table_and_the_sheet_say_the_same(session):
    found = curation.curate(session)
    sheet, table = curation.save(found)
    rows = list(csv.DictReader(table.open()))
    assert {row["photo"]: row["advice"] for row in rows} == {row.name: row.verdict for row in found.rows}
    assert len(found.lines()) == len(rows) + 2
    assert Image.open(sheet).width > 3 * 192
    (item,) = (one for one in contents(session) if one.name == "samples/curation.png")
    from fastsd_lib.sessions.contents import SHOWS_PHOTOS

    assert item.name in SHOWS_PHOTOS  # who shares no photos does not share this either


def test_scores_that_cannot_be_trusted_give_no_verdict(session, tmp_path):
    """Subject and class are the same kind of picture here: nothing separates them, and it says so."""
    same = tmp_path / "same"
    same.mkdir()
    for number, photo in enumerate(MONSTERS):
        Image.open(photo).convert("RGB").save(same / f"{number}.png")
    found = curation.curate(session, class_images=same)
    assert found.separation < curation.TRUSTED
    assert "say little" in found.lines()[-1]
    assert all(row.verdict != "look" for row in found.rows)


@pytest.mark.parametrize("lacking", ["photos", "class"])
def test_what_is_missing_is_said(session, tmp_path, lacking):
    empty = tmp_path / "empty"
    empty.mkdir()
    if lacking == "photos":
        session = sessions.create_session(tmp_path / "root", "bare")
        with pytest.raises(UserError, match="no photos") as refused:
            curation.curate(session)
        assert "add-images" in refused.value.fix
    else:
        with pytest.raises(UserError, match="pictures of the class") as refused:
            curation.curate(session, class_images=empty)
        assert "folder" in refused.value.fix


# Setting aside


def test_a_photo_set_aside_and_back_is_the_same_with_its_caption(session):
    before = files_of(session)
    setting_aside.set_aside(session, ["again.jpg", "tiny.png"])
    assert {path.name for path in setting_aside.photos_set_aside(session)} == {"again.jpg", "tiny.png"}
    assert "again.jpg" not in {path.name for path in dreambooth.photos(session)}
    assert not (session.captions / "again.txt").exists()
    assert {item.part for item in contents(session) if item.name.startswith("set_aside/")} == {"photos"}
    assert setting_aside.bring_back(session) == ["again.jpg", "tiny.png"]
    after = files_of(session)
    assert {name: after[name] for name in before if name != "session.json"} == {
        name: before[name] for name in before if name != "session.json"
    }
    events = [entry["event"] for entry in sessions.read_manifest(session)["history"]]
    assert events[-2:] == ["photos set aside", "photos brought back"]


@pytest.mark.parametrize("name", ["../recipe.yaml", "nobody.png", "/etc/passwd", ".photos.jsonl"])
def test_only_photos_of_the_session_can_be_named(session, name):
    before = files_of(session)
    with pytest.raises(UserError, match="no photo"):
        setting_aside.set_aside(session, ["again.jpg", name])
    assert files_of(session) == before


def test_one_photo_always_stays(session):
    with pytest.raises(UserError, match="No photo would be left"):
        setting_aside.set_aside(session, [path.name for path in dreambooth.photos(session)])
    assert len(dreambooth.photos(session)) == len(MONSTERS) + 4


def test_a_photo_of_that_name_is_not_overwritten(session):
    setting_aside.set_aside(session, ["again.jpg"])
    Image.new("RGB", (80, 80), "red").save(session.instance_images / "again.jpg")
    with pytest.raises(UserError, match="another photo"):
        setting_aside.set_aside(session, ["again.jpg"])
    with pytest.raises(UserError, match="another photo"):
        setting_aside.bring_back(session)
    assert Image.open(session.instance_images / "again.jpg").size == (80, 80)


def test_nothing_moves_while_somebody_trains(session):
    with session_lock(session.path, "training"), pytest.raises(UserError, match="training"):
        setting_aside.set_aside(session, ["again.jpg"])
    assert (session.instance_images / "again.jpg").is_file()


# Judging


def test_samples_are_judged_step_by_step(session):
    """Step 100 shows other things, step 200 the subject as another photo of it would."""
    others = sorted(session.class_images.glob("*.jpg"))
    for number in (1, 2):
        Image.open(others[number]).resize((64, 64)).save(session.samples / f"step_000100_{number}.png")
        Image.open(MONSTERS[number]).convert("RGB").resize((64, 64)).save(
            session.samples / f"step_000200_{number}.png"
        )
    judged = judging.judge_samples(session)
    by_name = {one.name: one for one in judged.series}
    assert list(by_name) == ["your photos", "class pictures", "step 100", "step 200"]
    assert by_name["step 100"].share == 0 and by_name["step 200"].share == 1
    assert by_name["step 200"].mean > by_name["step 100"].mean + 0.3
    assert judged.gained is None
    assert judging.judged_sheet(judged).width > 2 * 128


def test_a_folder_can_be_judged_too_and_an_empty_one_is_said(session, tmp_path):
    judged = judging.judge_samples(session, session.instance_images)
    assert judged.series[-1].name == "these pictures" and judged.series[-1].share > 0.5
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no pictures"):
        judging.judge_samples(session, tmp_path / "empty")


def test_pictures_are_drawn_before_and_after_of_the_same_seeds(session, tiny_pipeline, capsys, tmp_path):
    """The "trained" model is the base itself, so nothing was learned: each seed scores the same in both."""
    sessions.set_facts(session, base_model=str(tiny_pipeline.path))
    export_single_file(tiny_pipeline, session.model_file)
    recipe = session.recipe.read_text().replace('class_prompt: ""', 'class_prompt: "a photo of a monster"')
    session.recipe.write_text(recipe)
    words = [
        "--draw",
        "2",
        "--json",
        "--sheet",
        str(tmp_path / "sheet.png"),
        "--root",
        str(session.path.parents[2]),
    ]
    assert cli.main(["session", "judge", "monster", *words]) == 0
    told = json.loads(capsys.readouterr().out)
    before, after, of_class = list(told["series"].values())[2:]
    assert [name.split(":")[0] for name in told["series"]][2:] == ["before", "after", "after"]
    assert np.allclose(before["scores"], after["scores"], atol=0.02)
    assert len(of_class["scores"]) == 2 and of_class["scores"] != after["scores"]
    assert 0 <= told["gained"] <= 1
    assert Image.open(tmp_path / "sheet.png").height > 3 * 128


def test_without_samples_or_a_model_it_says_what_to_do(session):
    with pytest.raises(UserError, match="no pictures to judge") as refused:
        judging.judge_samples(session)
    assert "--draw" in refused.value.fix
    with pytest.raises(UserError, match="no trained model") as refused:
        judging.judge_samples(session, draw=2)
    assert "train" in refused.value.fix


def test_the_command_prints_advice_and_how_to_follow_it(session, capsys):
    root = ["--root", str(session.path.parents[2])]
    assert cli.main(["session", "curate", "monster", "--json", *root]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["advised"]) == {"again.jpg", "shaken.png", "tiny.png"}
    assert cli.main(["session", "set-aside", "monster", *told["advised"], *root]) == 0
    assert "bring-back monster" in capsys.readouterr().out
    assert cli.main(["session", "bring-back", "monster", "again.jpg", *root]) == 0
    assert len(setting_aside.photos_set_aside(session)) == 2


# Sharpness


def test_blur_grows_with_blurring_and_not_with_size():
    picture = Image.fromarray(data.astronaut())
    values = [blur(picture.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 2, 4, 8)]
    assert values == sorted(values) and values[0] < 0.4 < curation.BLURRED < values[2]
    assert abs(blur(picture) - blur(picture.resize((1024, 1024)))) < 0.03
    assert blur(Image.new("RGB", (64, 64), "gray")) == 1.0
