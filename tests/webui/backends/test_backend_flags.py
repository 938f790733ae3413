"""Arguments, variables and files of each back end, from its choices alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.backends.config import BACKENDS, BackendConfig, find_backend
from fastsd_lib.webui.backends.flags import Places, model_folders, plan_start
from fastsd_lib.webui.backends.git import is_commit

CONFIG = BackendConfig(Path("/local"), settings_dir=Path("/drive/settings"), outputs_dir=Path("/drive/out"))
DRIVE = {"checkpoints": Path("/drive/ckpts"), "loras": Path("/drive/Lora"), "controlnet": Path("/drive/ControlNet"),
         "text_encoders": Path("/drive/te"), "vae": Path("/drive/VAE")}  # fmt: skip


def plan(name: str, config: BackendConfig = CONFIG, cpu: bool = False, found=DRIVE):
    backend = BACKENDS[name]
    return plan_start(backend, config, Places.of(backend, config), 7861, cpu, found)


def value(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


@pytest.mark.parametrize("name", BACKENDS)
def test_nothing_opens_a_second_door_or_lets_a_file_run_code(name):
    for cpu in (False, True):
        arguments = plan(name, replace(CONFIG, controlnet=True), cpu).arguments
        for flag in ("--listen", "--share", "--ngrok", "--disable-safe-unpickle", "--gradio-auth", "--api-auth",
                     "--enable-insecure-extension-access", "--autolaunch", "--server-name", "--auto-launch"):  # fmt: skip
            assert flag not in arguments
        assert value(arguments, "--port") == "7861"


@pytest.mark.parametrize("name", ["a1111", "forge"])
def test_a1111_and_forge_use_the_models_where_they_are_and_keep_settings_outside_the_code(name):
    start = plan(name, replace(CONFIG, controlnet=True, model=Path("/drive/one.safetensors")))
    told = start.arguments
    assert "--api" in told
    assert value(told, "--ckpt-dir") == "/drive/ckpts" and value(told, "--lora-dir") == "/drive/Lora"
    assert value(told, "--vae-dir") == "/drive/VAE" and value(told, "--controlnet-dir") == "/drive/ControlNet"
    assert value(told, "--ckpt") == "/drive/one.safetensors"
    assert value(told, "--ui-settings-file") == f"/drive/settings/{name}/config.json"
    assert value(told, "--styles-file") == f"/drive/settings/{name}/styles.csv"
    assert value(told, "--data-dir") == f"/local/{name}/data"
    assert ("--text-encoder-dir" in told) == (name == "forge")
    assert start.variables["SD_WEBUI_RESTARTING"] == "1"


def test_the_repository_that_was_taken_down_is_replaced_by_a_mirror_that_can_be_chosen():
    assert "w-e-w" in plan("a1111").variables["STABLE_DIFFUSION_REPO"]
    chosen = plan("a1111", replace(CONFIG, stable_diffusion_repository="https://mine/sd.git"))
    assert chosen.variables["STABLE_DIFFUSION_REPO"] == "https://mine/sd.git"


def test_packages_of_2022_are_built_with_the_setuptools_that_they_know():
    start = plan("a1111")
    constraints = Path(start.variables["PIP_CONSTRAINT"])
    assert start.variables["PIP_BUILD_CONSTRAINT"] == str(constraints)
    assert start.files[constraints] == "setuptools<81\n"


def test_controlnet_is_given_to_a1111_only_with_its_extension():
    assert "--controlnet-dir" not in plan("a1111").arguments  # unknown to A1111 without it
    assert "--controlnet-dir" in plan("forge").arguments


def test_without_a_gpu_each_is_told_so_in_its_own_words():
    assert {"--use-cpu", "all", "--no-half", "--skip-torch-cuda-test"} <= set(
        plan("a1111", cpu=True).arguments
    )
    assert {"--always-cpu", "--skip-torch-cuda-test"} <= set(plan("forge", cpu=True).arguments)
    assert "--cpu" in plan("comfyui", cpu=True).arguments
    assert "--cpu" not in plan("comfyui").arguments


def test_comfyui_reads_its_folders_from_a_file_and_writes_nothing_into_its_code():
    start = plan("comfyui", replace(CONFIG, model=Path("/other/one.safetensors")))
    (file,) = start.files
    assert value(start.arguments, "--extra-model-paths-config") == str(file)
    folders = json.loads(start.files[file])["fastsd"]
    assert folders["checkpoints"] == "/drive/ckpts\n/other" and folders["loras"] == "/drive/Lora"
    assert value(start.arguments, "--output-directory") == "/drive/out"
    assert value(start.arguments, "--user-directory") == "/drive/settings/comfyui"
    assert "--disable-auto-launch" in start.arguments


def test_credentials_stand_in_a_file_and_a_variable_and_never_among_the_arguments():
    start = plan("a1111", replace(CONFIG, credentials=("me", "se cret")))
    assert not [one for one in start.arguments if "cret" in one]
    file = Path(value(start.arguments, "--gradio-auth-path"))
    assert start.files[file] == "me:se cret\n"
    assert start.variables["COMMANDLINE_ARGS"] == "--api-auth 'me:se cret'"
    assert "cret" not in repr(start) and "cret" not in repr(replace(CONFIG, credentials=("me", "se cret")))
    with pytest.raises(UserError, match="no log-in of its own"):
        plan("comfyui", replace(CONFIG, credentials=("me", "x")))
    with pytest.raises(UserError, match="cannot take this"):
        plan("forge", replace(CONFIG, credentials=("me", "a,b")))


@pytest.mark.parametrize("argument", ["--listen", "--share", "--ngrok=abc", "--disable-safe-unpickle", "--disable-safe",
                                      "--gradio-auth=a:b", "--api-auth", "--server-name", "--allow-code", "--li",
                                      "--enable-insecure-extension-access", "--port"])  # fmt: skip
def test_arguments_that_would_open_it_are_refused_even_when_cut_short(argument):
    with pytest.raises(UserError, match="is not passed on") as error:
        plan("a1111", replace(CONFIG, arguments=(argument,)))
    assert "leave" in error.value.fix


def test_other_arguments_and_variables_pass_and_extensions_may_be_opened_on_purpose():
    config = replace(
        CONFIG, arguments=("--api", "--medvram"), environment={"A": "1"}, insecure_extensions=True
    )
    start = plan("a1111", config)
    assert start.arguments[-1] == "--medvram" and start.variables["A"] == "1"
    assert "--enable-insecure-extension-access" in start.arguments


# ------------------------------------------------------------------ folders of models


def test_folders_of_all_layouts_are_found(tmp_path):
    for name in ("checkpoints", "loras", "controlnet", "Embeddings"):
        (tmp_path / "comfy" / name).mkdir(parents=True)
    found = model_folders(tmp_path / "comfy")
    assert {kind: path.name for kind, path in found.items()} == {
        "checkpoints": "checkpoints", "loras": "loras", "controlnet": "controlnet", "embeddings": "Embeddings"
    }  # fmt: skip
    for name in ("models/Stable-diffusion", "models/Lora", "embeddings"):
        (tmp_path / "a1111" / name).mkdir(parents=True)
    found = model_folders(tmp_path / "a1111")
    assert found["checkpoints"].name == "Stable-diffusion" and found["embeddings"].parent.name == "a1111"
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "a.safetensors").touch()
    assert model_folders(tmp_path / "loose") == {"checkpoints": tmp_path / "loose"}
    assert model_folders(None) == {}


def test_a_drive_that_is_not_mounted_is_named(tmp_path):
    with pytest.raises(UserError, match=r"folder of models .*gone cannot be read") as error:
        model_folders(tmp_path / "gone")
    assert "mount Drive" in error.value.fix


# ------------------------------------------------------------------ what is known


def test_defaults_are_pinned():
    for backend in BACKENDS.values():
        assert is_commit(backend.ref) or backend.ref.startswith("v")
    with pytest.raises(UserError, match="no back end 'x'") as error:
        find_backend("x")
    assert "a1111, forge, comfyui" in error.value.fix
