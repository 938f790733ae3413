"""What a conversion leaves when it fails, what it finds lying about, and what it may say of a model as a fact."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_families import save_sd2, save_sdxl, save_single_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.said_prediction import TELLING_BIAS
from fastsd_lib.formats.conversion import ConversionChoices, convert_model
from fastsd_lib.models.identify import describe

BIAS = f"model.diffusion_model.{TELLING_BIAS}"
SPREAD = {BIAS: np.tile([-1.0, 1.0], 32).astype(np.float32)}  # as in models that predict velocity
EPSILON_YAML = 'model:\n  params:\n    parameterization: "eps"\n'


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_pipeline) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("traces")
    return {
        "sd1": tiny_pipeline.path,
        "sd2": save_sd2(folder / "sd2", prediction="v_prediction").path,
        "sdxl": save_sdxl(folder / "sdxl").path,
    }


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="np") as file:
        return dict(file.metadata())


def bare(models: dict[str, Path], path: Path, more: dict | None = None, says: dict | None = None) -> Path:
    """The SD 2.x model as a single file without configs."""
    return save_single_file(ModelFiles("sd2", "diffusers", models["sd2"]), path, more, says)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ------------------------------------------------------------------ what other runs left


def test_what_a_killed_process_of_the_same_number_left_is_no_part_of_the_new_folder(models, tmp_path):
    stale = tmp_path / f".out.{os.getpid()}.partial"
    (stale / "vae").mkdir(parents=True)
    for name in ("single_file_extras.safetensors", "vae/old.json"):
        (stale / name).write_bytes(b"another model's")
    file = convert_model(models["sdxl"], tmp_path / "m.safetensors").path
    made = convert_model(file, tmp_path / "out").path
    assert names(tmp_path) == {"m.safetensors", "out"}
    assert not (made / "single_file_extras.safetensors").exists() and not (made / "vae" / "old.json").exists()


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_a_scratch_that_is_a_link_is_not_written_through(models, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "photo").write_bytes(b"mine")
    (tmp_path / f".out.{os.getpid()}.partial").symlink_to(elsewhere)
    file = convert_model(models["sdxl"], tmp_path / "m.safetensors").path
    made = convert_model(file, tmp_path / "out").path
    assert not made.is_symlink() and names(elsewhere) == {"photo"}


# ------------------------------------------------------------------ the .yaml of a model that predicts velocity


@pytest.mark.parametrize("source", ["folder", "file"])
def test_when_the_model_cannot_be_written_its_yaml_goes_as_well(models, tmp_path, source):
    given = models["sd2"]
    (tmp_path / "new").mkdir()
    if source == "file":
        given = bare(models, tmp_path / "m.safetensors", says={"modelspec.prediction_type": "v"})
    seen = []

    def fail(event):
        seen.append(names(tmp_path / "new"))
        if event.done > 3:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        convert_model(given, tmp_path / "new" / "o.safetensors", ConversionChoices(), fail)
    assert (
        seen[0] & {"o.yaml"} and "o.safetensors" not in seen[-1]
    )  # so that a kill leaves no model without it
    assert names(tmp_path / "new") == set()


def test_a_model_whose_yaml_cannot_be_told_is_refused_before_anything_is_written(models, tmp_path):
    tensors = load_file(convert_model(models["sd1"], tmp_path / "m.safetensors").path)
    save_file(tensors, tmp_path / "bare.safetensors", {"modelspec.prediction_type": "v"})
    before = names(tmp_path)
    with pytest.raises(UserError, match=r"of no published SD 1\.x model's shape") as error:
        convert_model(tmp_path / "bare.safetensors", tmp_path / "o.ckpt")
    assert "--config-from" in error.value.fix and names(tmp_path) == before


def test_a_yaml_that_says_otherwise_is_neither_claimed_nor_overwritten(models, tmp_path):
    (tmp_path / "o.yaml").write_text(EPSILON_YAML)
    with pytest.raises(UserError, match=r"o\.yaml is there already and does not say") as error:
        convert_model(models["sd2"], tmp_path / "o.safetensors")
    assert "move the .yaml away" in error.value.fix
    assert names(tmp_path) == {"o.yaml"} and (tmp_path / "o.yaml").read_text() == EPSILON_YAML
    own = EPSILON_YAML.replace("eps", "v") + "# my own settings\n"
    (tmp_path / "o.yaml").write_text(own)
    made = convert_model(models["sd2"], tmp_path / "o.safetensors")
    assert (tmp_path / "o.yaml").read_text() == own
    assert any("o.yaml" in note and "was there already" in note for note in made.notes)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_yaml_of_velocity_beside_a_model_of_noise_is_refused(models, tmp_path, name):
    (tmp_path / "o.yaml").write_text(EPSILON_YAML.replace("eps", "v"))
    with pytest.raises(
        UserError, match="says that the model predicts velocity; this one predicts noise"
    ) as error:
        convert_model(models[name], tmp_path / "o.safetensors")
    assert "move the .yaml away" in error.value.fix and names(tmp_path) == {"o.yaml"}
    (tmp_path / "o.yaml").write_text(EPSILON_YAML)
    convert_model(models[name], tmp_path / "o.safetensors")
    assert names(tmp_path) == {"o.yaml", "o.safetensors"}


def test_the_yaml_that_a_killed_run_left_is_taken_as_it_is(models, tmp_path):
    convert_model(models["sd2"], tmp_path / "o.safetensors")
    (tmp_path / "o.safetensors").unlink()
    made = convert_model(models["sd2"], tmp_path / "o.safetensors")
    assert not any("was there already" in note for note in made.notes)
    assert names(tmp_path) == {"o.safetensors", "o.yaml"}


def test_a_guess_of_velocity_is_written_nowhere(models, tmp_path):
    file = bare(models, tmp_path / "bare.safetensors", SPREAD)
    for target in ("m.safetensors", "m.ckpt"):
        made = convert_model(file, tmp_path / target)
        assert any(
            "Nothing says what the model predicts, velocity by the look" in note for note in made.notes
        )
    said = metadata(tmp_path / "m.safetensors")
    assert "modelspec.prediction_type" not in said and not (tmp_path / "m.yaml").exists()
    assert (
        said["modelspec.architecture"] == "stable-diffusion-v2"
    )  # the published names say what they predict
    assert describe(tmp_path / "m.safetensors").prediction == describe(tmp_path / "m.ckpt").prediction == ""


# ------------------------------------------------------------------ names and header entries


@pytest.mark.parametrize("target", ["o.ckpt", "O.CKPT"])
def test_header_entries_never_take_the_place_of_the_weights(models, tmp_path, target):
    good = load_file(convert_model(models["sd1"], tmp_path / "good.safetensors").path)
    says = {"state_dict": "x", "epoch": "many", "global_step": "7", "note": "hello"}
    save_file(good, tmp_path / "m.safetensors", says)
    made = torch.load(convert_model(tmp_path / "m.safetensors", tmp_path / target).path, weights_only=True)
    assert (made["epoch"], made["global_step"], made["note"]) == (0, 0, "hello")
    assert made["state_dict"].keys() == good.keys()
    assert all(torch.equal(one, good[name]) for name, one in made["state_dict"].items())


def test_a_model_is_not_written_over_itself(models, tmp_path):
    file = convert_model(models["sd1"], tmp_path / "m.safetensors").path
    before = file.read_bytes()
    for same in (file, tmp_path / "." / "x" / ".." / "m.safetensors"):
        with pytest.raises(UserError, match="is the source itself"):
            convert_model(file, same, ConversionChoices("fp16"))
    assert file.read_bytes() == before and names(tmp_path) == {"m.safetensors"}


# ------------------------------------------------------------------ what it predicts


@pytest.mark.parametrize(
    ("says", "predicts"),
    [
        ({"modelspec.prediction_type": "velocity"}, "v_prediction"),
        ({"modelspec.prediction_type": "eps"}, "epsilon"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v_prediction"),
        ({"modelspec.architecture": "stable-diffusion-v2-512"}, "epsilon"),
    ],
)
def test_identify_and_convert_agree_on_what_a_model_predicts(models, tmp_path, says, predicts):
    file = bare(models, tmp_path / "m.safetensors", says=says)
    assert describe(file).prediction == predicts
    again = convert_model(file, tmp_path / "again.safetensors")
    assert describe(again.path).prediction == predicts
    assert (tmp_path / "again.yaml").exists() == (predicts == "v_prediction")
    folder = convert_model(file, tmp_path / "folder", ConversionChoices(config_from=models["sd1"])).path
    schedule = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert schedule["prediction_type"] == predicts and "fastsd_guessed" not in schedule


@pytest.mark.parametrize("mark", ["edm_vpred.sigma_max", "edm_mean"])
def test_a_model_of_the_edm_kind_is_called_nothing_else(models, tmp_path, mark):
    model = ModelFiles("sdxl", "diffusers", models["sdxl"])
    file = save_single_file(model, tmp_path / "m.safetensors", {mark: np.ones(1, np.float32)})
    choices = ConversionChoices(config_from=models["sd1"])
    again = convert_model(file, tmp_path / "again.safetensors")
    folder = convert_model(file, tmp_path / "folder", choices)
    back = convert_model(folder.path, tmp_path / "back.safetensors")
    for made in (again, folder, back):
        assert any("drawn by EDM's formulas" in note for note in made.notes)
    for made in (again, back):
        assert "modelspec.prediction_type" not in metadata(made.path)
        assert describe(made.path).prediction == "edm" and "v_pred" not in load_file(made.path)


def test_a_folder_with_a_schedule_for_edm_gets_no_mark_of_velocity(models, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(models["sdxl"], folder)
    schedule = {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction", "sigma_max": 120.0}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
    made = convert_model(folder, tmp_path / "m.safetensors")
    assert "v_pred" not in load_file(made.path) and "modelspec.prediction_type" not in metadata(made.path)
    assert any("drawn by EDM's formulas" in note for note in made.notes)
