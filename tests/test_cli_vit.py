"""`fastsd vit ...` as a user types it, mistakes included."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from vit.tiny_vit import make_vit, photos

from fastsd_lib import cli, cli_vit
from fastsd_lib.core.errors import UserError
from fastsd_lib.workflows import dreambooth


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_vit(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Two classes of ten small pictures, told apart by their colour."""
    folder = tmp_path_factory.mktemp("pictures") / "colours"
    for number in range(20):
        name, colour = (("red", (200, 30, 30)), ("blue", (30, 30, 200)))[number % 2]
        picture = Image.effect_noise((40, 36), 40 + number).convert("RGB")
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.blend(picture, Image.new("RGB", picture.size, colour), 0.7).save(
            folder / name / f"{number:02d}.png"
        )
    return folder


def said(capsys, *words: object) -> str:
    """What a command prints; it must have gone well."""
    assert cli.main(["vit", *map(str, words)]) == 0
    return capsys.readouterr().out


def refused(*words: object) -> str:
    """What a command says that cannot be done: one or two lines."""
    with pytest.raises(UserError) as caught:
        cli.main(["vit", *map(str, words)])
    assert 1 <= len(str(caught.value).splitlines()) <= 2, str(caught.value)
    return str(caught.value)


def test_vit_alone_names_each_verb_on_a_line_and_loads_nothing_heavy():
    program = "import sys; from fastsd_lib import cli; cli.main(sys.argv[1:]); print(*sorted(sys.modules))"
    for words in (["vit"], ["vit", "train", "--help"], ["vit", "serve", "--help"]):
        ran = subprocess.run(
            [sys.executable, "-c", f"try:\n    {program}\nexcept SystemExit:\n    print(*sorted(sys.modules))", *words],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        *shown, modules = ran.stdout.splitlines()
        assert not {"torch", "numpy", "transformers", "PIL", "fastapi"} & set(modules.split())
        if words == ["vit"]:
            for verb in cli_vit.verbs():
                assert any(line.split()[:1] == [verb] and len(line.split()) > 3 for line in shown), verb
        if "train" in words:
            assert any(line.startswith("  learning_rate=0.0001") for line in shown)


@pytest.mark.parametrize(
    ("words", "message", "fix"),
    [
        (["clasify", "x.png"], "no 'clasify'", "did you mean classify?"),
        (["classify", "x.png", "--topk", "3"], "unknown argument '--topk'", "did you mean --top-k?"),
        (["classify"], "PICTURES", "vit classify --help"),
        (["classify", "x.png", "--fit", "crp"], "no 'crp'", "did you mean crop?"),
        (["classify", "x.png", "--top-k", "many"], "--top-k", "vit classify --help"),
        (["sample-data", "digit"], "no 'digit'", "did you mean digits?"),
        (["train", "x", "epoch=3"], "epoch is not a setting (did you mean epochs?)", "the settings are"),
        (["train", "x", "epochs=none"], "epochs is", "mend it"),
        (["train", "x", "--preset", "rorshach"], "no 'rorshach'", "did you mean rorshark?"),
        (["train", "nowhere/at/all"], "nowhere/at/all", "folder"),
        (["distil", "x"], "--teacher", "vit distil --help"),
        (["search", "x.png", "--index", "nowhere"], "nowhere", ""),
        (["index", "nowhere"], "nowhere", ""),
        (["outliers", "nowhere"], "nowhere", ""),
    ],
)
def test_a_mistake_is_said_in_two_lines_with_the_way_out(words, message, fix):
    text = refused(*words)
    assert message in text and fix in text


@pytest.mark.parametrize("verb", ["classify", "embed"])
def test_pictures_that_are_not_there_are_said(verb, tmp_path, model):
    (tmp_path / "empty").mkdir()
    out = ["--out", tmp_path / "out.csv"]
    assert "gone.jpg" in refused(verb, tmp_path / "gone.jpg", "--model", model, *out)
    assert "empty" in refused(verb, tmp_path / "empty", "--model", model, *out)
    assert "http" in refused(verb, "http://example.com/a.jpg", "--model", model, *out)


def test_a_model_that_is_not_there_is_said(tmp_path):
    (picture,) = photos(tmp_path, 1, sizes=[(64, 48)])
    assert "nowhere/at/all" in refused("classify", picture, "--model", "nowhere/at/all")
    (tmp_path / "model").mkdir()
    assert "config.json" in refused("classify", picture, "--model", tmp_path / "model")


def test_classify_tells_labels_with_probabilities_and_bad_files_with_their_reason(tmp_path, model, capsys):
    folder = tmp_path / "mixed"
    photos(folder, 3, sizes=[(64, 48), (30, 50)])
    (folder / "text.jpg").write_text("no picture")
    rows = json.loads(said(capsys, "classify", folder, "--model", model, "--top-k", 2, "--json"))
    assert [Path(row["picture"]).name for row in rows] == [
        "photo_0000.jpg", "photo_0001.jpg", "photo_0002.jpg", "text.jpg",
    ]  # fmt: skip
    assert all(len(row["labels"]) == 2 and sum(row["scores"]) <= 1 + 1e-6 for row in rows[:3])
    assert rows[3]["labels"] == [] and rows[3]["error"]
    text = said(capsys, "classify", folder, "--model", model, "--backend", "torch")
    assert "text.jpg: not read: " in text and "%" in text and len(text.splitlines()) == 4
    assert "No picture could be read" in refused("classify", folder / "text.jpg", "--model", model)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_classify_writes_a_row_for_each_picture(tmp_path, model, capsys, suffix):
    folder = tmp_path / "mixed"
    photos(folder, 3, sizes=[(64, 48)])
    (folder / "text.jpg").write_text("no picture")
    out = tmp_path / f"out.{suffix}"
    summary = json.loads(said(capsys, "classify", folder, "--model", model, "--out", out, "--json"))
    assert (summary["pictures"], summary["bad"]) == (4, 1) and Path(summary["path"]) == out
    if suffix == "csv":
        rows = list(csv.DictReader(out.open()))
        assert [row["label"] in ("cat", "dog", "fish") for row in rows] == [True, True, True, False]
    assert ".xls" in refused("classify", folder, "--model", model, "--out", tmp_path / "out.xls")


def test_classify_looks_into_zips(tmp_path, model, capsys):
    (picture,) = photos(tmp_path, 1, sizes=[(64, 48)])
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as packed:
        packed.write(picture, "a/first.jpg")
        packed.write(picture, "second.jpg")
    rows = json.loads(said(capsys, "classify", tmp_path / "two.zip", "--model", model, "--json"))
    assert len(rows) == 2 and rows[0]["scores"] == rows[1]["scores"]


def test_explain_writes_a_picture_for_each_way(tmp_path, model, capsys):
    (picture,) = photos(tmp_path, 1, sizes=[(64, 48)])
    out = tmp_path / "inside"
    words = ["explain", picture, "--model", model, "--out", out]
    files = json.loads(said(capsys, *words, "--ways", "rollout, gradcam", "--json"))
    assert list(files) == ["rollout", "gradcam"]
    assert all(Image.open(file).size[0] > 100 for file in files.values())
    assert "no way 'rolout'" in refused(*words, "--ways", "rolout")
    assert "cow" in refused(*words, "--target", "cow")


def test_embed_index_search_and_what_stands_out(tmp_path, model, pictures, capsys):
    store, index = tmp_path / "vectors", tmp_path / "index"
    made = json.loads(said(capsys, "embed", pictures, "--model", model, "--out", store, "--json"))
    assert (made["vectors"], made["dimension"], made["errors"]) == (20, 32, {})
    assert json.loads(said(capsys, "index", store, "--json"))["vectors"] == 20 and index.is_dir()
    asked = pictures / "red" / "00.png"
    words = ["search", asked, "--index", index, "--model", model]
    found = json.loads(said(capsys, *words, "--k", 3, "--sheet", tmp_path / "page.png", "--json"))
    assert len(found) == 3 and Path(found[0]["file"]) == asked and found[0]["score"] > 0.999
    assert Image.open(tmp_path / "page.png").width > 200
    other = make_vit(tmp_path / "other", seed=1)
    assert "another model" in refused("search", asked, "--index", index, "--model", other)
    doubled = tmp_path / "doubled"
    for name in ("a", "b"):
        (doubled / name).mkdir(parents=True)
        (doubled / name / "same.png").write_bytes(asked.read_bytes())
    said(capsys, "embed", doubled, pictures / "blue", "--model", model, "--out", tmp_path / "more")
    (group,) = json.loads(said(capsys, "duplicates", tmp_path / "more", "--ways", "bytes", "--json"))
    assert [Path(key).name for key in group["pictures"]] == ["same.png", "same.png"]
    odd = json.loads(said(capsys, "outliers", store, "--count", 4, "--json"))
    assert len(odd) == 4 and odd[0]["score"] >= odd[-1]["score"]
    groups = json.loads(said(capsys, "clusters", store, "--count", 2, "--json"))
    assert sum(groups["sizes"]) == 20 and set(groups["cluster_of"].values()) == {0, 1}


TINY = [
    "new_image_px=16",
    "new_width=16",
    "new_layers=1",
    "new_heads=2",
    "batch_size=8",
    "augment=none",
    "threads=1",
]


def test_train_evaluate_probe_and_distil(tmp_path, pictures, capsys):
    run, report = tmp_path / "run", tmp_path / "report"
    words = ["train", pictures, "--preset", "scratch", "--out", run, "epochs=12", *TINY]
    made = json.loads(said(capsys, *words, "--json"))
    assert made["metrics"]["accuracy"] >= 0.5 and (run / "report" / "report.html").is_file()
    assert "epochs: 12" in (run / "recipe.yaml").read_text()
    text = said(capsys, "evaluate", pictures, "--model", run, "--split", "all", "--out", report)
    assert "accuracy: " in text and (report / "confusion.png").is_file()
    assert "does not know the class" in refused("evaluate", pictures, "--model", make_vit(tmp_path / "other"))
    rows = json.loads(
        said(
            capsys,
            "probe",
            pictures,
            "--model",
            run,
            "--out",
            tmp_path / "features",
            "--pool",
            "mean",
            "--json",
        )
    )
    assert len(rows) == 2 and all(row["images"] == 20 for row in rows)
    table = json.loads(
        said(capsys, "quantize", pictures, "--model", run, "--kinds", "safetensors:fp32,onnx:int8w", "--seconds", "0.05",
             "--out", tmp_path / "small", "--json")
    )  # fmt: skip
    assert [row["kind"] for row in table["rows"]] == ["safetensors:fp32", "onnx:int8w"]
    assert (tmp_path / "small" / "table.md").is_file() and table["rows"][0]["images_per_s_b1"] > 0
    assert "no kind 'onnx'" in refused("quantize", pictures, "--model", run, "--kinds", "onnx")
    words = ["distil", pictures, "--teacher", run, "--out", tmp_path / "student", "max_steps=2", *TINY]
    assert json.loads(said(capsys, *words, "--json"))["steps"] == 2
    assert "teacher:" in (tmp_path / "student" / "recipe.yaml").read_text()


def test_export_writes_what_other_programs_open_and_says_how_it_was_checked(tmp_path, model, capsys):
    out = tmp_path / "onnx"
    made = json.loads(said(capsys, "export", "--model", model, "--out", out, "--json"))
    assert Path(made["opens"]).suffix == ".onnx" and made["max_abs_logit_error"] < 1e-3 and made["runs_here"]
    (picture,) = photos(tmp_path, 1, sizes=[(64, 48)])
    (ours,) = json.loads(said(capsys, "classify", picture, "--model", model, "--precision", "fp32", "--json"))
    (theirs,) = json.loads(said(capsys, "classify", picture, "--model", out, "--json"))
    assert theirs["labels"] == ours["labels"] and theirs["scores"] == pytest.approx(ours["scores"], abs=1e-3)
    assert "no 'onxx'" in refused("export", "--model", model, "--format", "onxx")


def test_curate_judges_the_photos_of_a_session_and_moves_nothing(tmp_path, capsys):
    session = dreambooth.open_session("subject", tmp_path)
    dreambooth.add_photos(session, photos(tmp_path / "photos", 4, sizes=[(320, 320)]))
    before = sorted(path.name for path in session.instance_images.glob("*.jpg"))
    photos(tmp_path / "others", 12, sizes=[(200, 180), (180, 200)])
    words = ["curate", "subject", "--root", tmp_path, "--class-images", tmp_path / "others"]
    found = json.loads(said(capsys, *words, "--json"))
    assert {row["name"] for row in found["photos"]} == set(before) and Path(found["sheet"]).is_file()
    assert sorted(path.name for path in session.instance_images.glob("*.jpg")) == before
    assert "No session 'nobody'" in refused("curate", "nobody", "--root", tmp_path)


def test_sample_data_are_pictures_in_folders(tmp_path, capsys):
    made = json.loads(said(capsys, "sample-data", "faces", tmp_path / "faces", "--json"))
    assert made["pictures"] == 200
    assert {path.name for path in (tmp_path / "faces").iterdir()} == {"face", "no_face"}


def test_a_real_process_says_mistakes_without_a_traceback_and_ctrl_c_is_clean(tmp_path, model):
    command = [sys.executable, "-m", "fastsd_lib", "vit"]
    done = subprocess.run(
        [*command, "classify", str(tmp_path / "x.png")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert 1 <= len(done.stderr.strip().splitlines()) <= 2
    (picture,) = photos(tmp_path, 1, sizes=[(64, 48)])
    home = {
        **os.environ,
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path),
    }  # nothing is traced there yet
    words = [*command, "classify", str(picture), "--model", str(model)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=home)
    assert done.returncode == 0 and "pictures 1/1" in done.stderr and "transformers" not in done.stderr
    process = subprocess.Popen(
        [*command, "serve", "--model", str(model), "--port", "0", "--backend", "torch"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "answers at http://127.0.0.1:" in line, process.communicate()[1]
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode in (0, 130) and "Traceback" not in error
