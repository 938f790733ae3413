"""The widgets of notebooks/vit.ipynb: pictures are chosen, shown and refused; results are markup that holds no surprise."""

from __future__ import annotations

import asyncio
import io
import zipfile
from datetime import datetime, timezone

import httpx
import pytest
from PIL import Image
from vit.tiny_vit import make_vit

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.predictions import Prediction
from fastsd_lib.vit.train_config import PRESETS
from fastsd_lib.widgets import vit_results
from fastsd_lib.widgets.forms import AUTO
from fastsd_lib.widgets.vit_forms import training_form
from fastsd_lib.widgets.vit_pictures import VitPictures
from fastsd_lib.widgets.vit_server import VitServer
from fastsd_lib.workflows.vit_experiment import open_experiment
from fastsd_lib.workflows.vit_serve import VitServeConfig


@pytest.fixture
def shown(monkeypatch):
    """The markup that is displayed."""
    texts: list[str] = []

    def show(box):
        texts.append("".join(getattr(child, "value", "") for child in box.children))

    monkeypatch.setattr("IPython.display.display", show)
    return texts


def png(colour="red", size=(40, 30)) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", size, colour).save(held, "PNG")
    return held.getvalue()


def upload(name: str, content: bytes) -> dict:
    return {
        "name": name,
        "type": "image/png",
        "size": len(content),
        "content": content,
        "last_modified": datetime.now(timezone.utc),
    }


# --- pictures


def test_sample_data_is_taken_when_the_widget_is_shown_and_stays_chosen(tmp_path, shown):
    experiment = open_experiment("faces", tmp_path)
    chooser = VitPictures(experiment, "faces")
    assert "no pictures yet" in chooser._classes.value
    chooser.show()
    assert "2 classes, 170 train, 30 validation" in chooser._classes.value
    assert chooser._classes.value.count("data:image/png") == 16  # eight of each class
    again = VitPictures(open_experiment("faces", tmp_path))
    assert "2 classes" in again._classes.value


def test_what_is_no_folder_of_pictures_is_said_below_the_field_and_ends_a_run(tmp_path, shown):
    chooser = VitPictures(open_experiment("x", tmp_path))
    chooser.source.value = "digts"
    chooser.take_button.click()
    assert "did you mean digits?" in chooser._message.value
    with pytest.raises(UserError, match="no pictures at"):
        VitPictures(open_experiment("x", tmp_path), str(tmp_path / "nowhere")).show()


def test_uploads_become_the_pictures_of_a_class_and_a_zip_brings_its_own(tmp_path, shown):
    experiment = open_experiment("mine", tmp_path)
    chooser = VitPictures(experiment)
    chooser.upload.value = (upload("a.png", png()),)
    assert "it is empty" in chooser._message.value and not (experiment.path / "pictures").exists()
    chooser.label.value = "cat"
    chooser.upload.value = tuple(upload(f"{n}.png", png((n, 9, 9))) for n in range(8))
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as packed:
        for n in range(8):
            packed.writestr(f"dog/{n}.png", png((9, n, 99)))
        packed.writestr("__MACOSX/dog/._1.png", b"junk")
    chooser.upload.value = (upload("dogs.zip", held.getvalue()),)
    assert chooser._message.value == "" and "2 classes" in chooser._classes.value
    assert sorted(path.name for path in experiment.pictures.iterdir()) == ["cat", "dog"]
    assert chooser.upload.value == ()


def test_an_upload_cannot_leave_its_folder(tmp_path):
    chooser = VitPictures(open_experiment("mine", tmp_path))
    chooser.label.value = "x/../../out"
    chooser.upload.value = (upload("a.png", png()),)
    assert "contains /" in chooser._message.value
    chooser.label.value = "cat"
    chooser.upload.value = (upload("..\\..\\b.png", png()),)
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as packed:
        packed.writestr("../../evil.png", png())
    chooser.upload.value = (upload("evil.zip", held.getvalue()),)
    assert "points out of the archive" in chooser._message.value
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert files == {"vit/mine/pictures/uploaded/cat/b.png"}


# --- the form


def test_the_form_has_the_choices_of_the_preset_and_leaves_what_is_auto():
    form = training_form("scratch", epochs=3, seed=AUTO, model="")
    assert (form.value.epochs, form.value.seed, form.value.model) == (3, 1337, "new")
    assert form.value.learning_rate == PRESETS["scratch"]["learning_rate"]
    assert [label for label, _ in form.inputs["augment"].options] == ["none", "light", "standard", "strong"]
    with pytest.raises(UserError, match="no preset 'scrach'"):
        training_form("scrach")


# --- results


def test_predictions_stand_below_their_pictures_and_bad_files_say_why(tmp_path, shown):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").write_text("no picture")
    found = [
        Prediction(str(tmp_path / "a.png"), ("<b>cat</b>", "dog"), (0.75, 0.25)),
        Prediction(str(tmp_path / "b.png"), (), (), "it is a text file"),
        Prediction("https://example.com/c.jpg", ("dog",), (1.0,)),
    ]
    vit_results.show_predictions(found, note="All answers: predictions.csv")
    (text,) = shown
    assert "75.0 %" in text and "width:75%" in text and "&lt;b&gt;cat" in text and "<b>cat" not in text
    assert "it is a text file" in text and text.count("<img") == 1 and "predictions.csv" in text


def test_only_some_predictions_are_shown_and_the_rest_counted(shown):
    vit_results.show_predictions([Prediction(f"{n}.png", ("a",), (1.0,)) for n in range(30)], limit=4)
    assert shown[0].count("100.0 %") == 4 and "26 more are not shown" in shown[0]


def test_a_table_escapes_its_cells_and_puts_numbers_to_the_right():
    text = vit_results.table(
        [{"kind": "<i>", "MiB": 1234.5678, "ok": True}, {"kind": None, "MiB": 2, "ok": False}]
    )
    assert "&lt;i&gt;" in text and '<td class="fsd-number">1,235</td>' in text and "<td>yes</td>" in text
    assert "<td>–</td>" in text and vit_results.table([]) == "Nothing yet."


def test_groups_and_an_empty_set_of_them(tmp_path, shown):
    (tmp_path / "a.png").write_bytes(png())
    vit_results.show_groups({"1 · alike by bytes": [str(tmp_path / "a.png")] * 12}, "Near-duplicates")
    vit_results.show_groups({}, "Near-duplicates")
    assert "12 pictures" in shown[0] and shown[0].count("<img") == 9 and "None were found." in shown[1]


# --- the server


def test_the_server_answers_until_it_is_stopped_and_a_second_run_takes_its_place(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    model = make_vit(tmp_path / "model")
    first = VitServer(VitServeConfig(model, port=0))
    asyncio.run(first.run(keep_cell_running=False))
    address = first.launched.url
    assert "The model answers at" in first._address.value and address in first._address.value
    answer = httpx.post(address + "predict", content=png(), headers={"Content-Type": "image/png"}, timeout=60)
    assert answer.status_code == 200 and {one["label"] for one in answer.json()} == {"cat", "dog", "fish"}
    second = VitServer(VitServeConfig(model, port=first.launched.server.port))
    assert "nothing is left running" in first._status.value
    asyncio.run(second.run(keep_cell_running=False))
    assert second.launched.url == address
    second.stop_button.click()
    with pytest.raises(httpx.TransportError):
        httpx.get(address)


def test_on_colab_a_public_address_is_refused_until_the_tick_is_set(tmp_path, monkeypatch):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    panel = VitServer(VitServeConfig(make_vit(tmp_path / "model"), tunnels="gradio", port=0))
    with pytest.raises(UserError, match="terms of service"):
        asyncio.run(panel.run(keep_cell_running=False))
