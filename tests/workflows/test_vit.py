"""The steps of a ViT experiment: each finds on disk what the one before has left there."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from vit.tiny_vit import make_vit, photos

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.config import ClassifyConfig, Features, RunnerConfig
from fastsd_lib.vit.train_config import preset
from fastsd_lib.webui.vit_server.config import ServeConfig
from fastsd_lib.workflows import vit, vit_search_steps, vit_steps
from fastsd_lib.workflows.vit_experiment import open_experiment
from fastsd_lib.workflows.vit_pictures import save_uploads, take_pictures


@pytest.fixture(scope="module")
def colours(tmp_path_factory) -> Path:
    """Two classes of twelve pictures that differ in colour."""
    folder = tmp_path_factory.mktemp("pictures") / "colours"
    for number in range(24):
        name, colour = (("red", (200, 30, 30)), ("blue", (30, 30, 200)))[number % 2]
        noise = Image.effect_noise((40, 36), 40 + number).convert("RGB")
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.blend(noise, Image.new("RGB", noise.size, colour), 0.7).save(
            folder / name / f"{number:02d}.png"
        )
    return folder


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, colours):
    """One that is trained."""
    made = open_experiment("colours", tmp_path_factory.mktemp("root"))
    take_pictures(made, colours)
    config = preset(
        "scratch", epochs=10, new_image_px=16, new_width=16, new_layers=1, new_heads=2, batch_size=8, threads=1,
        augment="none",
    )  # fmt: skip
    events = []
    trained = vit_steps.train(made, config, events.append)
    told = vit_steps.told_of(trained)
    assert told["classes"] == 2 and "right" in told
    assert any("loss" in event.facts for event in events if event.task == "train")
    return made


def test_every_step_goes_on_from_the_folder_alone(experiment, colours):
    again = open_experiment("colours", experiment.path.parents[1])
    assert again.pictures == colours and vit.open_model(again.model).labels == ("blue", "red")
    held = vit_steps.held_out(again)
    found = vit_steps.classify(again, config=ClassifyConfig(top_k=1))
    assert [one.key for one in found] == [str(path) for path in held] and again.predictions.is_file()
    assert {path.parent.name for path in held} == {"red", "blue"}
    drawn = vit_steps.explain(again, ways="rollout", target="red")
    assert list(drawn) == ["rollout"] and (again.inside / "rollout.png").is_file()


def test_the_report_of_the_training_is_not_measured_again_but_other_parts_are(experiment):
    report = experiment.report / "report.json"
    before = report.stat().st_mtime_ns
    assert vit_steps.evaluate(experiment) == experiment.report and report.stat().st_mtime_ns == before
    whole = vit_steps.evaluate(experiment, "all")
    assert json.loads((whole / "report.json").read_text())["images"] == 24
    assert json.loads(report.read_text())["images"] == 4  # 15 % of each class, at least two


def test_search_leaves_out_the_picture_that_was_asked_for(experiment, colours):
    vit_search_steps.build_index(experiment, Features(pool="mean"))
    asked, found = vit_search_steps.search(experiment, str(colours / "red" / "02.png"), k=5)
    assert Path(asked).name == "02.png" and len(found) == 5
    assert all(Path(one.key).name != "02.png" for one in found)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_vectors_of_other_features_take_the_place_of_the_old_ones(experiment):
    vit_search_steps.embed(experiment, Features(pool="mean"))
    vit_search_steps.embed(experiment, Features(pool="cls"))
    (kept,) = experiment.embeddings.iterdir()
    assert json.loads((kept / "store.json").read_text())["maker"]["features"]["pool"] == "cls"


def test_odd_ones_and_clusters_are_files_that_can_be_shown(experiment):
    vit_search_steps.embed(experiment)
    (odd,) = vit_search_steps.outliers(experiment, 3).values()
    groups = vit_search_steps.clusters(experiment, 2)
    assert len(odd) == 3 and len(groups) == 2
    assert all(Path(file).is_file() for files in (odd, *groups.values()) for file in files)
    assert all(
        "phash" not in name for name in vit_search_steps.duplicates(experiment)
    )  # far too small for that


def test_compress_and_export_say_what_was_written(experiment):
    rows = vit_steps.compress(experiment, "safetensors:fp32, onnx:int8w")
    assert [row["kind"] for row in rows] == ["safetensors:fp32", "onnx:int8w"] and rows[0][
        "answers changed"
    ] == "0.00%"
    told = vit_steps.told_of_export(vit_steps.export(experiment, "onnx", "fp32"))
    assert Path(told["open this"]).is_file() and "PyTorch" in told["checked"]


def test_what_comes_too_early_names_the_step_that_is_missing(tmp_path):
    empty = open_experiment("new", tmp_path)
    with pytest.raises(UserError, match="no pictures yet") as caught:
        vit_steps.train(empty, preset("scratch"))
    assert "step 3" in str(caught.value)
    with pytest.raises(UserError, match="no model yet") as caught:
        vit_steps.explain(empty, "x.png")
    assert "step 5" in str(caught.value)
    assert vit_steps.curate(tmp_path, "") is None
    for name in ("", "../x", "a/b"):
        with pytest.raises(UserError, match="cannot be called"):
            open_experiment(name, tmp_path)


def test_pictures_come_from_a_zip_uploads_and_a_saved_data_set(tmp_path, colours):
    experiment = open_experiment("mine", tmp_path)
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as packed:
        for path in colours.rglob("*.png"):
            packed.write(path, path.relative_to(colours))
    folder = take_pictures(experiment, tmp_path / "packed.zip")
    assert folder == experiment.path / "pictures" / "packed" and len(list(folder.rglob("*.png"))) == 24
    assert json.loads(experiment.record.read_text()) == {
        "pictures": "pictures/packed"
    }  # the folder may be moved
    moved = tmp_path / "elsewhere"
    experiment.path.rename(moved)
    assert type(experiment)(moved).pictures == moved / "pictures" / "packed"

    datasets = pytest.importorskip("datasets")
    datasets.load_dataset("imagefolder", data_dir=str(colours), cache_dir=str(tmp_path / "cache"))[
        "train"
    ].save_to_disk(str(tmp_path / "saved"))
    other = open_experiment("other", tmp_path)
    folder = take_pictures(other, tmp_path / "saved")
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["blue", "red"]
    with pytest.raises(UserError, match="cannot be stored"):
        save_uploads(other, [("\x07.png", b"x")], "cat")


def test_scripts_classify_and_serve_by_the_same_names(tmp_path):
    model = make_vit(tmp_path / "model")
    paths = photos(tmp_path / "photos", 2, sizes=[(64, 48)])
    runner = RunnerConfig(backend="torch", precision="fp32")
    ours = list(vit.classify(paths, model, ClassifyConfig(top_k=3), runner))
    with vit.serve(model, ServeConfig(port=None), runner) as server:
        for path, one in zip(paths, ours, strict=True):
            answer = httpx.post(server.url + "predict", content=path.read_bytes(), timeout=60,
                                headers={"Content-Type": "image/jpeg"}).json()  # fmt: skip
            assert [row["label"] for row in answer] == list(one.labels)
            assert np.allclose([row["score"] for row in answer], one.scores, atol=1e-5)


def test_importing_it_loads_nothing_heavy():
    import subprocess
    import sys

    program = (
        "import sys\nfrom fastsd_lib.workflows import vit, vit_search_steps, vit_serve, vit_steps\n"
        "from fastsd_lib.widgets import vit_forms, vit_pictures, vit_results, vit_server\n"
        "print({'torch', 'numpy', 'transformers', 'PIL', 'fastapi', 'ipywidgets'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
