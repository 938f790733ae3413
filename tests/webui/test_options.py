"""The settings: checked one by one, saved whole or not at all."""

from __future__ import annotations

import json

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.api_errors import Refused
from fastsd_lib.webui.options import OPTIONS, Options


def test_defaults_can_be_set_to_themselves(tmp_path):
    options = Options(tmp_path / "config.json")
    options.change(options.values())
    assert options.values() == {name: option.default for name, option in OPTIONS.items()}


def test_a_kept_value_that_is_refused_today_does_not_stop_the_start(tmp_path, caplog):
    file = tmp_path / "options.json"
    file.write_text('{"eta_ancestral": 0.5, "initial_noise_multiplier": 1.2}')
    options = Options(file)
    assert (options["eta_ancestral"], options["initial_noise_multiplier"]) == (0.5, 1.0)
    assert (
        "initial_noise_multiplier is 1.2: this server cannot do that. Its default is used: 1.0" in caplog.text
    )
    assert "1.2" in file.read_text()


@pytest.mark.parametrize(
    ("name", "sent", "kept"),
    [
        ("jpeg_quality", 90.0, 90),
        ("jpeg_quality", "90", 90),
        ("enable_pnginfo", 0, False),
        ("samples_format", "WebP", "webp"),
        ("eta_ancestral", 1, 1.0),
        ("sd_vae", None, "Automatic"),
        ("sd_hypernetwork", "None", "None"),
    ],
)
def test_values_are_kept_in_the_options_own_type(name, sent, kept):
    options = Options()
    options.change({name: sent})
    assert options[name] == kept and type(options[name]) is type(kept)


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("jpeg_quality", 90.5),
        ("jpeg_quality", True),
        ("jpeg_quality", 10**400),
        ("jpeg_quality", 0),
        ("eta_ancestral", float("nan")),
        ("eta_ancestral", "inf"),
        ("s_tmax", -1),
        ("samples_format", "gif"),
        ("samples_format", ["png"]),
        ("sd_vae", "x" * 2000),
        ("sd_vae", {"a": 1}),
        ("enable_pnginfo", "maybe"),
        ("quicksettings_list", "sd_vae"),
        ("token_merging_ratio", 0.5),
        ("outdir_samples", "/etc"),
        ("__class__", 1),
    ],
)
def test_what_an_option_cannot_be_is_refused_by_its_name(name, sent):
    options = Options()
    with pytest.raises(Refused) as refused:
        options.change({"samples_save": False, name: sent})
    assert name in refused.value.message and refused.value.fix
    assert options["samples_save"] is True  # nothing of the rest either


def test_a_change_outlives_the_server_and_leaves_no_scratch(tmp_path):
    path = tmp_path / "config.json"
    Options(path).change({"jpeg_quality": 91})
    assert Options(path)["jpeg_quality"] == 91
    assert list(tmp_path.iterdir()) == [path] and json.loads(path.read_text()) == {"jpeg_quality": 91}


def test_a_file_of_a1111_is_read_for_what_is_known_here(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"jpeg_quality": 70, "outdir_samples": "x", "hide_samplers": []}))
    assert Options(path)["jpeg_quality"] == 70


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_file_that_is_no_settings_is_said_so(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        Options(path)
    assert error.value.fix


def test_overrides_of_a_request_leave_the_settings_alone():
    options = Options()
    settings, unknown = options.with_overrides({"jpeg_quality": 50, "filter_nsfw": True})
    assert (settings["jpeg_quality"], unknown, options["jpeg_quality"]) == (50, ["filter_nsfw"], 80)
