"""Models by name, folder and Hub id: opened in full, or refused in one line that says what to do."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from local_hub import SECRET, served
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_vit import CLASSES, make_vit, photos

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit import model_files
from fastsd_lib.vit.calibration_file import read_facts, write_facts
from fastsd_lib.vit.model import load_torch, memory_needed_mib, open_model, refuse_without_memory

KINDS = ("vit", "deit", "dinov2", "swin", "convnext")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_vit(tmp_path_factory.mktemp("made") / "tiny")


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """A copy that a test may break; our cache is below tmp_path as well."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shutil.copytree(made, tmp_path / "tiny")


def change(folder, name="config.json", **values):
    raw = json.loads((folder / name).read_text())
    raw.update(values)
    (folder / name).write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))


def logits_of(model):
    pixels = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    with torch.inference_mode():
        return load_torch(model)(pixels).logits


def test_what_a_folder_says_is_known_without_loading_a_weight(made):
    model = open_model(made)
    assert (model.path, model.name, model.architecture) == (made, "tiny", "ViTForImageClassification")
    assert (model.labels, model.generic_labels, model.multi_label) == (CLASSES, False, False)
    assert (model.image_px, model.temperature) == ((32, 32), None)
    assert model.parameters == sum(one.numel() for one in load_file(made / "model.safetensors").values())
    assert open_model(str(made / "model.safetensors")) == model  # its file will do


def test_opening_a_model_loads_neither_torch_nor_transformers(made):
    program = (
        "import sys; from fastsd_lib.vit.model import open_model; open_model(sys.argv[1])\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(made)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers_own_loading_and_preprocessing(tmp_path, kind):
    """The witness: AutoModel and AutoImageProcessor, as their users call them."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from fastsd_lib.vit.config import RunnerConfig
    from fastsd_lib.vit.runner import open_runner
    from fastsd_lib.vit.transform import Transform

    model = open_model(make_vit(tmp_path / kind, kind=kind))
    processor = AutoImageProcessor.from_pretrained(model.path, backend="pil")
    theirs = AutoModelForImageClassification.from_pretrained(model.path)
    images = [Image.open(path) for path in photos(tmp_path / "photos", 5)]
    with torch.inference_mode():
        expected = theirs(**processor(images, return_tensors="pt")).logits.numpy()
    runner = open_runner(model, config=RunnerConfig("torch", "fp32"))
    transform = Transform.of(model)
    ours = runner.run(np.stack([transform(image) for image in images]))
    runner.close()
    assert np.abs(expected).max() > 0.1 and np.ptp(expected, axis=0).min() > 0.01  # pictures are told apart
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)


def test_generic_labels_are_noticed_and_told(folder):
    change(folder, id2label={"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"})
    model = open_model(folder)
    assert model.generic_labels
    assert model.notes == (
        "tiny names its classes LABEL_0 to LABEL_2: what they mean is not written in the model",
    )
    change(folder, id2label=None, num_labels=3)
    assert open_model(folder).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    change(folder, id2label={"0": "7", "1": "8", "2": "9"})
    assert open_model(folder).generic_labels
    write_facts(folder, recipe={"epochs": 3})  # trained here: the digits are the user's own names
    assert not open_model(folder).generic_labels and open_model(folder).notes == ()


def test_what_fastsd_knows_of_a_model_stands_in_a_file_beside_it(folder):
    write_facts(folder, temperature=1.7, figures={"accuracy": 0.9})
    write_facts(folder, recipe={"epochs": 3})
    assert open_model(folder).temperature == 1.7
    assert read_facts(folder)["figures"] == {"accuracy": 0.9}
    assert read_facts(folder)["recipe"] == {"epochs": 3}


@pytest.mark.parametrize(
    "text",
    ['{"schema": 1, "temperature": 0}', '{"schema": 99}', '{"schema": 1, "temperature": "hot"}', "[]", "{"],
)
def test_a_strange_file_beside_a_model_is_refused_by_name(folder, text):
    (folder / "fastsd_vit.json").write_text(text)
    with pytest.raises(UserError, match=r"fastsd_vit\.json") as error:
        open_model(folder)
    assert "delete" in error.value.fix


# ---------------------------------------------------------------- pickled weights


def pickled(folder):
    """As transformers 4 saved it."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def test_pickled_weights_are_copied_to_safetensors_once_and_nothing_is_written_beside_them(
    folder, made, tmp_path
):
    pickled(folder)
    before = sorted(path.name for path in folder.iterdir())
    model = open_model(folder)
    assert model.path.is_relative_to(tmp_path / "cache") and model.name == "tiny"
    torch.testing.assert_close(logits_of(model), logits_of(open_model(made)), atol=0, rtol=0)
    assert sorted(path.name for path in folder.iterdir()) == before
    written = (model.path / "model.safetensors").stat().st_mtime_ns
    assert open_model(folder).path == model.path
    assert (model.path / "model.safetensors").stat().st_mtime_ns == written
    write_facts(folder, temperature=2.0)  # the folder changes: so does the copy, and the old one goes
    again = open_model(folder)
    assert again.temperature == 2.0 and again.path != model.path and not model.path.exists()


class _Harm:
    def __reduce__(self):
        return (print, ("harm was done",))


def test_a_malicious_pickle_is_refused_named_and_never_run(folder, capsys, tmp_path):
    (folder / "model.safetensors").unlink()
    torch.save({"classifier.weight": torch.zeros(3), "harm": _Harm()}, folder / "pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"pytorch_model\.bin is refused: opening it would run .*print"
    ) as error:
        open_model(folder)
    assert error.value.fix.startswith("take the model's .safetensors file")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Harm()))
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        open_model(folder)
    assert "harm was done" not in capsys.readouterr().out
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


# ---------------------------------------------------------------- every weight is accounted for


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["lacks", "too many", "shape"])
def test_a_weight_that_is_missing_added_or_of_another_shape_is_named(tmp_path, kind, fault):
    folder = make_vit(tmp_path / kind, kind=kind)
    tensors = load_file(folder / "model.safetensors")
    name = next(one for one in sorted(tensors) if one.endswith("weight") and "classifier" not in one)
    if fault == "lacks":
        del tensors[name]
    elif fault == "too many":
        tensors["another.weight"] = torch.zeros(2)
    else:
        tensors[name] = torch.zeros(2, *tensors[name].shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    said = {"lacks": " lacks ", "too many": r"does not: another\.weight", "shape": "has another shape of"}[
        fault
    ]
    with pytest.raises(UserError, match=said) as error:
        load_torch(open_model(folder))
    assert error.value.fix == "download or save the model again, or take another one."


def test_a_pooler_more_or_less_is_no_fault(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors |= {"vit.pooler.dense.weight": torch.zeros(32, 32), "vit.pooler.dense.bias": torch.zeros(32)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    load_torch(open_model(folder))


def test_a_new_head_is_made_for_new_classes_and_the_rest_is_as_it_was(folder):
    model = open_model(folder)
    torch.manual_seed(1)
    new = load_torch(model, labels=("a", "b", "c", "d", "e"))
    assert new.classifier.weight.shape == (5, 32) and new.config.id2label[4] == "e"
    old = load_torch(model)
    assert torch.equal(new.vit.layernorm.weight, old.vit.layernorm.weight)
    assert torch.equal(new.vit.layers[1].mlp.fc1.weight, old.vit.layers[1].mlp.fc1.weight)


def test_a_model_without_a_head_serves_for_features_and_as_the_start_of_training(folder):
    from transformers import ViTModel

    ViTModel.from_pretrained(folder, add_pooling_layer=False).save_pretrained(folder.parent / "bare")
    shutil.copy(folder / "preprocessor_config.json", folder.parent / "bare")
    with pytest.raises(UserError, match="bare is not an image classifier: it is a ViTModel model"):
        open_model(folder.parent / "bare")
    bare = open_model(folder.parent / "bare", classifier=False)
    assert bare.labels == ()
    pixels = torch.zeros(1, 3, 32, 32)
    with torch.inference_mode():
        found = load_torch(bare)(pixels).last_hidden_state
        expected = load_torch(open_model(folder)).vit(pixels).last_hidden_state
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
    assert load_torch(bare, labels=("a", "b")).classifier.out_features == 2


def test_eager_attention_returns_the_maps_that_sdpa_does_not(made):
    with torch.inference_mode():
        maps = load_torch(open_model(made), attention="eager")(
            torch.zeros(1, 3, 32, 32), output_attentions=True
        ).attentions
    assert len(maps) == 2 and maps[0].shape == (1, 4, 17, 17)


# ---------------------------------------------------------------- what is no model


@pytest.mark.parametrize(
    ("change_it", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"it has no config\.json"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds no settings by name"),
        (lambda folder: change(folder, model_type=None), "its config.json names no model_type"),
        (lambda folder: change(folder, architectures=["BertForMaskedLM"]), "it is a BertForMaskedLM model"),
        (
            lambda folder: change(folder, architectures=["ViTForMaskedImageModeling"]),
            "not an image classifier",
        ),
        (lambda folder: change(folder, id2label={"1": "a", "3": "b"}), "are not numbered 0, 1, 2"),
        (lambda folder: change(folder, id2label=["a"]), "are not numbered 0, 1, 2"),
        (
            lambda folder: (folder / "preprocessor_config.json").unlink(),
            r"it has no preprocessor_config\.json",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "it holds no weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"<html>"), "is a web page"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"version https://git-lfs"),
            "Git LFS pointer",
        ),
        (lambda folder: cut(folder / "model.safetensors"), "is not a whole .safetensors file"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "tf_model.h5"),
            "for TensorFlow or Flax",
        ),
    ],
)
def test_a_folder_that_is_no_classifier_is_refused_in_one_line(folder, change_it, said):
    change_it(folder)
    with pytest.raises(UserError, match=said) as error:
        open_model(folder)
    assert error.value.fix and "\n" not in error.value.message


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"hidden_size": 60_000}, "does not fit together: its config.json describes"),
        ({"num_hidden_layers": 10**7}, "does not fit together"),
        ({"num_attention_heads": 5}, "has another shape of vit.layers.0.attention"),
        ({"hidden_act": "no_such"}, "transformers cannot load"),
        (
            {"model_type": "no_such", "architectures": ["NoSuchForImageClassification"]},
            "transformers cannot load",
        ),
        ({"image_size": 64}, "has another shape of vit.embeddings.position_embeddings"),
    ],
)
def test_a_config_that_does_not_fit_its_weights_is_refused_before_it_fills_the_memory(folder, values, said):
    change(folder, **values)
    with pytest.raises(UserError, match=said):
        load_torch(open_model(folder))


def test_code_that_comes_with_a_model_is_not_run(folder):
    (folder / "code.py").write_text("raise SystemExit('it was run')")
    change(
        folder, model_type="own", architectures=["OwnForImageClassification"],
        auto_map={"AutoConfig": "code.Own", "AutoModelForImageClassification": "code.Own"},
    )  # fmt: skip
    with pytest.raises(UserError, match="transformers cannot load") as error:
        load_torch(open_model(folder))
    assert "code of their own are not run" in error.value.fix


@pytest.mark.parametrize("name", ["vit-b16", "embeded", ""])
def test_unknown_names_list_the_nearest(name):
    with pytest.raises(UserError, match=r"No ViT model .* \(nearest: ") as error:
        open_model(name)
    assert "Hugging Face id such as google/vit-base-patch16-224" in error.value.fix


def test_a_missing_folder_is_never_looked_for_on_the_hub(tmp_path):
    for name in (tmp_path / "none", "a/b/c", "models/cat.safetensors"):
        with pytest.raises(UserError, match="There is no model folder"):
            open_model(name)


def test_the_missing_embedded_model_names_the_command_that_trains_it(tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "EMBEDDED_FOLDER", tmp_path)
    with pytest.raises(UserError, match="The embedded ViT is not there") as error:
        open_model()
    assert "benchmarks.tiny_vit" in error.value.fix


# ---------------------------------------------------------------- the Hub


@pytest.fixture
def hub(made, tmp_path, monkeypatch):
    """Our model on a Hub of this machine, beside it the same pickled; nothing of the user's cache is seen."""
    from huggingface_hub import constants

    shutil.copytree(made, tmp_path / "hub" / "tiny")
    (tmp_path / "hub" / "tiny" / "pytorch_model.bin").write_bytes(b"not wanted")
    (tmp_path / "hub" / "tiny" / "tf_model.h5").write_bytes(b"not wanted")
    pickled(shutil.copytree(made, tmp_path / "hub" / "old"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    with served(tmp_path / "hub") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = (
            "/{repo_id}/resolve/{revision}/{filename}"  # made of the endpoint when the library is imported
        )
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template)
        yield hub


def test_of_a_hub_model_the_safetensors_alone_are_fetched_once_and_then_work_offline(hub, made, monkeypatch):
    from huggingface_hub import constants

    model = open_model("org/tiny")
    assert model.name == "org/tiny" and model.labels == CLASSES
    assert sorted(hub.fetched) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    torch.testing.assert_close(logits_of(model), logits_of(open_model(made)), atol=0, rtol=0)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert open_model("org/tiny") == model


def test_pickled_weights_of_the_hub_are_copied_and_the_hubs_cache_is_not_written_to(hub, made, tmp_path):
    model = open_model("org/old")
    assert model.path.is_relative_to(tmp_path / "cache")
    torch.testing.assert_close(logits_of(model), logits_of(open_model(made)), atol=0, rtol=0)
    names = {path.name for path in (tmp_path / "hub_cache").rglob("*") if path.is_symlink() or path.is_file()}
    assert not [name for name in names if name.endswith(".safetensors")]


def test_aliases_are_the_two_models_of_the_papers():
    assert model_files.ALIASES == {
        "vit-b16-224": "google/vit-base-patch16-224",
        "vit-l16-384": "google/vit-large-patch16-384",
    }


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((403, "GatedRepo"), "org/tiny is gated: its licence must be accepted first"),
        ((404, "RepoNotFound"), "has no public model org/tiny"),
        ((404, "RevisionNotFound"), "has no version 'v9'"),
        ((503, ""), "answered 503"),
    ],
)
def test_each_refusal_of_the_hub_is_one_line_without_the_token(hub, answer, said):
    hub.answer = answer
    with pytest.raises(UserError, match=said) as error:
        open_model("org/tiny", token=SECRET, revision="v9")
    assert SECRET not in str(error.value) and error.value.fix


def test_without_a_network_the_way_out_is_the_embedded_model(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        UserError, match="No connection to Hugging Face, and google/vit-base-patch16-224"
    ) as error:
        open_model("vit-b16-224")
    assert error.value.fix.endswith("embedded")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["model.safetensors"], r"not a transformers model: it has no config\.json"),
        (["config.json", "tf_model.h5"], "its weights are for TensorFlow or Flax only"),
        (
            ["config.json", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"],
            "in several files",
        ),
    ],
)
def test_repositories_without_a_model_for_us_are_refused_before_a_weight_is_fetched(files, said):
    with pytest.raises(UserError, match=said):
        model_files.wanted_files("a/b", files)


def test_shards_are_fetched_all_and_adapters_of_others_not():
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    files = ["config.json", "model.safetensors.index.json", *shards, "onnx/model.safetensors", "README.md"]
    assert model_files.wanted_files("a/b", files) == ["config.json", "model.safetensors.index.json", *shards]


# ---------------------------------------------------------------- memory


def test_the_estimate_of_memory_grows_with_weights_precision_and_batch(made, tmp_path):
    small, large = open_model(made), open_model(make_vit(tmp_path / "large", hidden=64, layers=4))
    assert memory_needed_mib(large, "fp32", 16) > memory_needed_mib(small, "fp32", 16)
    assert memory_needed_mib(small, "fp32", 64) > memory_needed_mib(small, "bf16", 64) > 0
    assert memory_needed_mib(small, "fp32", 64) > memory_needed_mib(small, "fp32", 1)


def test_a_batch_that_cannot_fit_is_refused_before_anything_is_loaded(made):
    with pytest.raises(UserError, match=r"needs about [\d,]+ MiB of memory; [\d,]+ are free") as error:
        refuse_without_memory(open_model(made), "fp32", 10**9)
    assert re.search("smaller batch", error.value.fix)
