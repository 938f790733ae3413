"""`fastsd identify`, `convert` and `models` as a user types them, on real files; mistakes included."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import safetensors
import safetensors.numpy
import torch

from fastsd_lib.cli import main
from fastsd_lib.core.errors import UserError
from fastsd_lib.models.registry import EMBEDDED_FOLDER, EXTRAS_FOLDER

REPOSITORY = Path(__file__).resolve().parents[1]
LORA, CONTROL = (
    EXTRAS_FOLDER / "Lora/tiny_night.safetensors",
    EXTRAS_FOLDER / "ControlNet/tiny_canny.safetensors",
)


@pytest.fixture
def fastsd(capsys, monkeypatch, tmp_path):
    """Runs a command here; gives what it printed, as JSON where that was asked for."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def run(*words):
        capsys.readouterr()
        assert main([str(word) for word in words]) == 0
        printed = capsys.readouterr().out
        return json.loads(printed) if "--json" in words else printed

    return run


@pytest.fixture
def exported(fastsd, tmp_path):
    """The embedded model as one file."""
    fastsd("convert", EMBEDDED_FOLDER, tmp_path / "one.safetensors")
    return tmp_path / "one.safetensors"


def weights(file) -> dict:
    return safetensors.numpy.load_file(file)


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("words", "said", "fix"),
    [
        (["identify", "nothing.safetensors"], "no file or folder nothing.safetensors", "check the path"),
        (["identify"], "FILE", "identify --help"),
        (["convert", "nothing", "to.safetensors"], "no file or folder nothing", "check the path"),
        (["convert", EMBEDDED_FOLDER, "x.safetensors", "--dtype", "fp61"], "no 'fp61'", "did you mean fp16"),
        (
            ["convert", EMBEDDED_FOLDER, "x.safetensor"],
            "Nothing is written as .safetensor",
            "did you mean x.safetensors?",
        ),
        (["convert", EMBEDDED_FOLDER, ""], "No target", "name a folder"),
        (["convert", EMBEDDED_FOLDER, "x.safetensors", "--dtpye", "fp16"], "--dtpye", "--help"),
        (["convert", EMBEDDED_FOLDER, "x.safetensors", "--vae", "gone.pt"], "gone.pt", "check the path"),
        (["models"], "ACTION", "models --help"),
        (["models", "lsit"], "no 'lsit'", "did you mean list"),
        (["models", "list", "--family", "sdx"], "family cannot be 'sdx'", "did you mean sdxl?"),
        (["models", "info", "stable-difusion"], "No model 'stable-difusion'", "models list"),
        (["models", "verify", "nothing.pt"], "nothing.pt", "check the path"),
        (["models", "verify", LORA, CONTROL, "--sha256", "0" * 64], "several", "that file alone"),
        (["models", "download"], "NAME|LINK", "models download --help"),
        (
            ["models", "download", "https://[::1", "--root", "r"],
            "is no address",
            "download the file yourself",
        ),
        (["models", "download", "~nosuchuser/x"], "home folder ~nosuchuser", "check the path"),
        (["models", "download", LORA, "--to", "~nosuchuser/x"], "home folder ~nosuchuser", "check the path"),
        (["models", "info", "~nosuchuser/x"], "home folder ~nosuchuser", "check the path"),
        (["models", "table", "--root", "~nosuchuser"], "home folder ~nosuchuser", "check the path"),
        (["models", "verify", "~nosuchuser/x"], "home folder ~nosuchuser", "check the path"),
        (["identify", "~nosuchuser/x"], "home folder ~nosuchuser", "check the path"),
        (["identify", "x" * 5000], "no file or folder", "check the path"),
        (["convert", "~nosuchuser/x", "y.ckpt"], "home folder ~nosuchuser", "check the path"),
        (["models", "download", LORA, "--kind", "loar"], "kind cannot be 'loar'", "did you mean lora?"),
        (["models", "download", LORA, "--kind", "vae", "--to", "there"], "is a LoRA, not a VAE", "kind out"),
        (
            ["models", "download", "sd-vae-ft-mse", "--kind", "lora"],
            "not a LoRA: nothing was fetched",
            "kind",
        ),
        (["models", "download", "org/x", "--kind", "lora"], "not a LoRA: nothing was fetched", "kind"),
    ],
)
def test_a_mistake_says_what_is_wrong_and_what_to_type(words, said, fix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        main([str(word) for word in words])
    assert said in caught.value.message and fix in caught.value.fix
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_outside_it_is_two_lines_and_exit_2(tmp_path):
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><title>Sign in</title>" + " " * 500)
    command = [sys.executable, "-m", "fastsd_lib", "identify", str(tmp_path / "page.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert "web page" in done.stderr and len(done.stderr.strip().splitlines()) == 2


# ------------------------------------------------------------------ identify


def test_one_file_is_told_fact_by_fact(fastsd):
    told = fastsd("identify", CONTROL)
    assert (
        "kind: controlnet" in told
        and "dtypes: F16" in told
        and f"size_bytes: {CONTROL.stat().st_size:,}" in told
    )
    value = fastsd("identify", EMBEDDED_FOLDER, "--json")
    assert (value["kind"], value["family"], value["naming"]) == ("checkpoint", "sd1", "diffusers")
    assert {"path", "layout", "dtypes", "tensors", "size_bytes", "prediction", "metadata", "needs"} <= set(
        value
    )


@pytest.mark.parametrize(("spread", "said"), [(0.02, "epsilon"), (0.2, "v_prediction")])
def test_what_a_bare_sd2_file_predicts_is_told_by_its_telling_weight(fastsd, tmp_path, spread, said):
    bias = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    arrays = {
        "model.diffusion_model.input_blocks.0.0.weight": numpy.zeros((320, 4, 3, 3), "float16"),
        "cond_stage_model.model.ln_final.bias": numpy.zeros(1024, "float16"),
        "first_stage_model.decoder.conv_in.weight": numpy.zeros((512, 4, 3, 3), "float16"),
        bias: (numpy.random.default_rng(1).standard_normal(320) * spread).astype("float16"),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "2.safetensors")
    value = fastsd("identify", tmp_path / "2.safetensors", "--json")
    assert (value["family"], value["prediction"], value["unknown"]) == ("sd2", said, [])
    assert ("v-prediction" in fastsd("identify", tmp_path)) == (said == "v_prediction")


def test_several_files_are_a_table_and_a_folder_is_all_that_is_in_it(fastsd):
    told = fastsd("identify", LORA, CONTROL, EMBEDDED_FOLDER)
    assert [line.split()[0] for line in told.splitlines()] == ["kind", "LoRA", "controlnet", "checkpoint"]
    rows = fastsd("identify", EXTRAS_FOLDER, "--json")
    assert {row["kind"] for row in rows} == {"lora", "controlnet", "embedding"}


def test_a_file_that_cannot_be_told_stands_in_the_table_and_is_an_error_after_it(tmp_path, capsys):
    (tmp_path / "cut.safetensors").write_bytes(LORA.read_bytes()[:3000])
    with pytest.raises(UserError, match="1 of 2 cannot be told") as caught:
        main(["identify", str(LORA), str(tmp_path / "cut.safetensors"), "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [bool(row["problem"]) for row in rows] == [False, True] and "cut.safetensors" in str(caught.value)


# ------------------------------------------------------------------ convert


def test_a_folder_becomes_a_file_and_a_folder_again_bit_for_bit(fastsd, exported, tmp_path):
    value = fastsd("convert", exported, tmp_path / "again", "--json")
    assert (value["kind"], value["family"], value["layout"]) == ("checkpoint", "sd1", "diffusers")
    for part in ("unet", "vae"):
        name = f"{part}/diffusion_pytorch_model.safetensors"
        before, after = weights(EMBEDDED_FOLDER / name), weights(tmp_path / "again" / name)
        assert before.keys() == after.keys()
        assert all(before[key].tobytes() == after[key].tobytes() for key in before)


def test_the_number_format_is_the_one_asked_for_and_the_values_are_those_that_numpy_rounds_to(
    fastsd, exported, tmp_path
):
    fastsd("convert", exported, tmp_path / "wide.safetensors", "--dtype", "fp32")
    before, after = weights(exported), weights(tmp_path / "wide.safetensors")
    name = "model.diffusion_model.input_blocks.0.0.weight"
    assert before[name].dtype == numpy.float16 and after[name].dtype == numpy.float32
    assert (before[name].astype("float32") == after[name]).all()


def test_a_ckpt_is_written_that_torch_opens_without_running_anything(fastsd, exported, tmp_path):
    fastsd("convert", exported, tmp_path / "one.ckpt")
    state = torch.load(tmp_path / "one.ckpt", weights_only=True, map_location="cpu")["state_dict"]
    before = weights(exported)
    assert all((state[name].numpy() == value).all() for name, value in before.items())


def test_a_hash_is_in_the_metadata_where_it_is_asked_for(fastsd, exported, tmp_path):
    fastsd("convert", EMBEDDED_FOLDER, tmp_path / "hashed.safetensors", "--hash")
    with (
        safetensors.safe_open(tmp_path / "hashed.safetensors", "np") as with_hash,
        safetensors.safe_open(exported, "np") as without,
    ):
        assert with_hash.metadata()["modelspec.hash_sha256"].startswith("0x")
        assert "modelspec.hash_sha256" not in without.metadata()


def test_a_lora_changes_its_names_and_back_keeps_every_bit(fastsd, tmp_path):
    layers = ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k",
              "lora_te_text_model_encoder_layers_3_self_attn_q_proj")  # fmt: skip
    random = numpy.random.default_rng(2)
    arrays = {}
    for layer, wide in zip(layers, (640, 768), strict=True):
        arrays[f"{layer}.lora_down.weight"] = random.standard_normal((4, 768)).astype("float16")
        arrays[f"{layer}.lora_up.weight"] = random.standard_normal((wide, 4)).astype("float16")
        arrays[f"{layer}.alpha"] = numpy.array(2, "float16")
    safetensors.numpy.save_file(arrays, tmp_path / "one.safetensors")
    fastsd("convert", tmp_path / "one.safetensors", tmp_path / "peft.safetensors", "--naming", "peft")
    assert any("lora_A" in name for name in weights(tmp_path / "peft.safetensors"))
    fastsd("convert", tmp_path / "peft.safetensors", tmp_path / "kohya.safetensors", "--naming", "kohya")
    after = weights(tmp_path / "kohya.safetensors")
    assert arrays.keys() == after.keys()
    assert all(arrays[name].tobytes() == after[name].tobytes() for name in arrays)


# ------------------------------------------------------------------ models


def test_known_models_are_listed_by_family_and_told_by_any_of_their_names(fastsd):
    rows = fastsd("models", "list", "--family", "sdxl", "--json")
    assert rows and {row["family"] for row in rows} == {"sdxl"}
    assert {"licence", "gated", "mirrors", "resolution_px", "size_bytes", "sha256", "uses"} <= set(rows[0])
    assert "embedded" in fastsd("models", "list")
    assert fastsd("models", "info", "1.5", "--json")["resolution_px"] == 512
    assert fastsd("models", "info", LORA, "--json")["kind"] == "lora"


def test_the_sources_of_a_model_are_asked_when_that_is_wanted(fastsd, tmp_path):
    (tmp_path / "Fast-Dreambooth").mkdir()
    sources = ["https://127.0.0.1/a.safetensors", "https://no-such-host.invalid/a.safetensors"]
    (tmp_path / "Fast-Dreambooth/models.yaml").write_text(
        json.dumps({"mine": {"family": "sd1", "mirrors": sources}})
    )
    told = fastsd("models", "info", "mine", "--online", "--root", tmp_path, "--json")["online"]
    assert [(one["source"], one["there"]) for one in told] == [(source, False) for source in sources]
    assert "not asked" in told[0]["told"] and "no such host" in told[1]["told"]
    assert f"today: {sources[0]}: not asked" in fastsd(
        "models", "info", "mine", "--online", "--root", tmp_path
    )
    assert "online" not in fastsd("models", "info", "mine", "--root", tmp_path, "--json")
    assert "today: comes along" in fastsd("models", "info", "embedded", "--online")
    with pytest.raises(UserError, match="is a file here"):
        main(["models", "info", str(LORA), "--online"])


def test_controls_are_listed_and_told(fastsd):
    rows = fastsd("models", "list", "--controls", "--family", "sdxl", "--json")
    assert rows and {row["family"] for row in rows} == {"sdxl"}
    assert fastsd("models", "info", rows[0]["name"], "--json") == rows[0]
    with pytest.raises(UserError, match="family cannot be"):
        main(["models", "list", "--controls", "--family", "sd9"])


def test_models_that_a_user_writes_down_are_listed_and_a_wrong_word_is_named(fastsd, tmp_path):
    file = tmp_path / "Fast-Dreambooth/models.yaml"
    file.parent.mkdir()
    file.write_text("mine:\n  family: sd1\n  mirrors: ['hf:org/mine']\n  about: my own\n")
    assert "my own" in fastsd("models", "list", "--root", tmp_path)
    file.write_text("mine:\n  familly: sd1\n")
    with pytest.raises(UserError) as caught:
        main(["models", "list", "--root", str(tmp_path)])
    assert "familly" in str(caught.value) and "family" in caught.value.fix + caught.value.message


def test_a_key_in_an_address_that_a_user_wrote_down_is_not_printed(fastsd, tmp_path):
    file = tmp_path / "Fast-Dreambooth/models.yaml"
    file.parent.mkdir()
    mirrors = ["https://a.org/a.safetensors?token=SECRET", "hf:org/mine@fp16"]
    file.write_text(json.dumps({"mine": {"family": "sd1", "mirrors": mirrors}}))
    for words in (["info", "mine"], ["list"]):
        for more in ([], ["--json"]):
            assert "SECRET" not in str(fastsd("models", *words, "--root", tmp_path, *more))
    told = fastsd("models", "info", "mine", "--root", tmp_path, "--json")["mirrors"]
    assert told == ["https://a.org/a.safetensors", "hf:org/mine@fp16"]


def test_of_a_folder_it_is_said_that_nothing_was_put_where_files_were_wanted(fastsd, tmp_path):
    value = fastsd("models", "download", "embedded", "--to", tmp_path / "there", "--json")
    assert value["path"] == str(EMBEDDED_FOLDER) and not (tmp_path / "there").exists()
    assert value["notes"] == [
        f"It is a folder, and stays where it is: only files are put into {tmp_path / 'there'}."
    ]


def test_no_kind_of_controlnet_is_fetched_where_another_kind_is_wanted(fastsd, tmp_path):
    (name, *_) = (row["name"] for row in fastsd("models", "list", "--controls", "--json"))
    with pytest.raises(UserError, match="not a LoRA: nothing was fetched"):
        main(["models", "download", name, "--kind", "lora", "--root", str(tmp_path)])


def test_a_file_is_verified_and_what_is_wrong_with_it_is_an_error(fastsd, exported, tmp_path):
    digest = hashlib.sha256(exported.read_bytes()).hexdigest()
    assert fastsd("models", "verify", exported).endswith("one.safetensors: whole\n")
    value = fastsd("models", "verify", exported, "--sha256", digest, "--json")
    assert value["problems"] == [] and value["sha256"] == digest
    with pytest.raises(UserError, match="not whole"):
        main(["models", "verify", str(exported), "--sha256", "0" * 64])
    broken = weights(LORA)
    broken[next(iter(broken))].flat[0] = numpy.nan
    (tmp_path / "folder").mkdir()
    safetensors.numpy.save_file(broken, tmp_path / "folder/nan.safetensors")
    shutil.copy(LORA, tmp_path / "folder/whole.safetensors")
    with pytest.raises(UserError, match=r"1 of 2 are not whole; the first: .*nan.safetensors is not whole"):
        main(["models", "verify", str(tmp_path / "folder")])


def test_the_table_tells_what_lies_there_and_what_is_wrong_with_it(fastsd, tmp_path):
    (tmp_path / "models/Lora").mkdir(parents=True)
    shutil.copy(LORA, tmp_path / "models/Lora")
    (tmp_path / "models/Lora/cut.safetensors").write_bytes(LORA.read_bytes()[:3000])
    rows = fastsd("models", "table", "--root", tmp_path, "--json")
    assert [(row["kind"], bool(row["problem"])) for row in rows] == [("", True), ("lora", False)]
    assert "not a whole" in fastsd("models", "table", "--root", tmp_path)
    assert "No model lies in" in fastsd("models", "table", "--root", tmp_path / "empty")


def test_a_local_file_is_put_into_the_folder_of_its_kind(fastsd, tmp_path):
    shutil.copy(LORA, tmp_path / "found.safetensors")
    value = fastsd(
        "models", "download", tmp_path / "found.safetensors", "--root", tmp_path / "drive", "--json"
    )
    assert value["path"] == str(tmp_path / "drive/models/Lora/found.safetensors")
    value = fastsd("models", "download", tmp_path / "found.safetensors", "--to", tmp_path / "there", "--json")
    assert value["path"] == str(tmp_path / "there/found.safetensors")


def test_one_that_cannot_be_had_does_not_keep_the_others_from_coming(tmp_path, capsys):
    words = [tmp_path / "nothing.safetensors", LORA, CONTROL, "--to", tmp_path / "there"]
    with pytest.raises(UserError, match=r"1 of 3 could not be had; the first: .*nothing\.safetensors"):
        main(["models", "download", *map(str, words), "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["kind"] for row in rows] == ["lora", "controlnet"]
    assert {path.name for path in (tmp_path / "there").iterdir() if path.is_file()} == {
        LORA.name,
        CONTROL.name,
    }


def test_a_controlnet_of_the_list_has_its_name_here_and_is_not_fetched_twice(fastsd, tmp_path):
    (name, *_) = (row["name"] for row in fastsd("models", "list", "--controls", "--json"))
    (tmp_path / "models/ControlNet").mkdir(parents=True)
    shutil.copy(CONTROL, tmp_path / f"models/ControlNet/{name}.safetensors")
    value = fastsd("models", "download", name, "--root", tmp_path, "--json")
    assert value["there_already"] and value["path"] == str(tmp_path / f"models/ControlNet/{name}.safetensors")


def test_an_address_as_browsers_show_it_is_one(monkeypatch, tmp_path):
    """Without a network it is asked for, and not taken for a path."""
    with pytest.raises(UserError) as caught:
        main(["models", "download", "civitai.com/not-a-model", "--root", str(tmp_path)])
    assert "no file or folder" not in caught.value.message and "civitai.com/models/NUMBER" in caught.value.fix


def test_the_commands_at_the_head_of_docs_models_md_work_as_they_stand(fastsd, tmp_path, monkeypatch):
    text = (REPOSITORY / "docs/models.md").read_text("utf-8")
    commands = [line.partition("#")[0].split()[3:] for line in text.split("```")[1].strip().splitlines()]
    assert len(commands) == 8 and commands[1][0] == "convert"
    (tmp_path / "fastsd_lib").symlink_to(REPOSITORY / "fastsd_lib")
    monkeypatch.chdir(tmp_path)
    for words in commands:
        assert fastsd(*words).strip()
    assert {"tiny.safetensors", "tiny.ckpt", "tiny-folder"} <= {path.name for path in tmp_path.iterdir()}


def test_the_yaml_of_docs_models_md_is_read_as_it_stands(fastsd, tmp_path):
    text = (REPOSITORY / "docs/models.md").read_text("utf-8")
    (tmp_path / "Fast-Dreambooth").mkdir()
    (tmp_path / "Fast-Dreambooth/models.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    value = fastsd("models", "info", "mine", "--root", tmp_path, "--json")
    assert (value["name"], value["family"], len(value["mirrors"])) == ("my-style", "sdxl", 2)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_file_whose_name_is_no_utf_8_is_converted_and_identified(tmp_path, suffix):
    name = tmp_path / os.fsdecode(b"caf\xe9" + suffix.encode())  # as an archive from an old Windows has them
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}  # as a terminal in UTF-8 is printed to
    for words in (["convert", EMBEDDED_FOLDER, name], ["identify", name, "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "fastsd_lib", *words], capture_output=True, text=True, cwd=REPOSITORY, env=strict
        )  # fmt: skip
        assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    assert "caf?" in done.stdout and name.is_file()
    readable = tmp_path / f"same{suffix}"
    os.link(name, readable)
    said = (
        safetensors.safe_open(readable, "np").metadata()
        if suffix == ".safetensors"
        else torch.load(readable, weights_only=True)
    )
    assert said["modelspec.title"] == "caf?"
