"""Base models by name; the Hub is a real HTTP server on this machine that speaks its API."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from local_hub import SECRET, Hub, served

from fastsd_lib.core.errors import UserError
from fastsd_lib.models import registry
from fastsd_lib.models.registry import base_model, download, wanted_files


@pytest.fixture
def hub(tiny_pipeline, tmp_path) -> Iterator[Hub]:
    shutil.copytree(tiny_pipeline.path, tmp_path / "hub" / "tiny")
    (tmp_path / "hub" / "tiny" / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (tmp_path / "hub" / "tiny" / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"half")
    with served(tmp_path / "hub") as hub:
        yield hub


def test_a_hub_model_is_fetched_once_in_safetensors_and_then_works_offline(hub, tiny_pipeline, tmp_path):
    model = download("org/tiny", endpoint=hub.url, cache_dir=tmp_path / "cache")
    assert (model.family, model.layout) == ("sd1", "diffusers")
    ours = (model.path / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert ours == (tiny_pipeline.path / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert not [name for name in hub.fetched if name.endswith((".bin", ".fp16.safetensors"))]
    again = download("org/tiny", endpoint="http://127.0.0.1:9", cache_dir=tmp_path / "cache")
    assert again == model
    (model.path / "vae" / "diffusion_pytorch_model.safetensors").unlink()  # a download that was cut short
    with pytest.raises(UserError, match="No connection to Hugging Face"):
        download("org/tiny", endpoint="http://127.0.0.1:9", cache_dir=tmp_path / "cache")


def test_configs_for_bare_files_are_fetched_without_their_weights_and_then_work_offline(
    hub, tmp_path, monkeypatch
):
    monkeypatch.setattr(registry, "STOCK_SD1", "org/tiny")
    folder = registry.stock_configs(endpoint=hub.url, cache_dir=tmp_path / "cache")
    assert (folder / "tokenizer" / "merges.txt").is_file() and (folder / "unet" / "config.json").is_file()
    assert not [name for name in hub.fetched if name.endswith("tensors")]
    assert registry.stock_configs(endpoint="http://127.0.0.1:9", cache_dir=tmp_path / "cache") == folder


@pytest.mark.parametrize(
    ("answer", "said", "way_out"),
    [
        ((403, "GatedRepo"), "is gated: its licence must be accepted", "accept, then give a token"),
        ((401, ""), "refused the token", "huggingface.co/settings/tokens"),
        ((404, "RepoNotFound"), "has no public model org/tiny", "check the spelling"),
        ((503, ""), "answered 503", "try again"),
    ],
)
def test_each_refusal_is_one_clear_line_and_never_shows_the_token(hub, tmp_path, answer, said, way_out):
    hub.answer = answer
    with pytest.raises(UserError, match=said) as error:
        download("org/tiny", token=SECRET, endpoint=hub.url, cache_dir=tmp_path / "cache")
    assert way_out in error.value.fix
    assert SECRET not in str(error.value)


def test_without_a_network_the_way_out_is_the_embedded_model(tmp_path):
    with pytest.raises(UserError, match="No connection to Hugging Face") as error:
        download("org/tiny", endpoint="http://127.0.0.1:9", cache_dir=tmp_path)
    assert error.value.fix.endswith("embedded")


def test_of_a_repository_only_one_set_of_safetensors_is_taken():
    parts = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")
    files = [part + ending for part in parts for ending in (".safetensors", ".fp16.safetensors", ".bin")]
    files += ["model_index.json", "unet/config.json", "tokenizer/merges.txt", "README.md", "v1-5.ckpt"]
    files += ["safety_checker/model.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors"]
    taken = [part + ".safetensors" for part in parts]
    assert sorted(wanted_files("a/b", files)) == sorted(
        ["model_index.json", "unet/config.json", "tokenizer/merges.txt", *taken]
    )
    halves = [name for name in files if name not in taken]
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in wanted_files("a/b", halves)


def test_the_parts_that_other_families_have_besides_or_instead_are_taken():
    files = [
        "model_index.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder_2/model.safetensors",
    ]
    refiner = [*files, "unet/diffusion_pytorch_model.safetensors", "tokenizer_2/vocab.json"]
    assert sorted(wanted_files("a/b", [*refiner, "vae_1_0/config.json"])) == sorted(refiner)
    shards = [f"text_encoder_3/model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    sd3 = [
        *files, *shards, "text_encoder_3/model.safetensors.index.json", "text_encoder/model.safetensors",
        "transformer/diffusion_pytorch_model.safetensors", "tokenizer_3/tokenizer.json",
    ]  # fmt: skip
    assert sorted(wanted_files("a/b", [*sd3, "sd3.safetensors"])) == sorted(sd3)
    with pytest.raises(UserError, match=r"no .safetensors weights in text_encoder_2/"):
        wanted_files("a/b", [*refiner[:2], *refiner[3:], "text_encoder_2/model.bin"])


def test_repositories_without_a_pipeline_or_with_pickles_only_are_refused():
    with pytest.raises(UserError, match="not a Diffusers pipeline"):
        wanted_files("a/b", ["model.safetensors"])
    with pytest.raises(UserError, match=r"no .safetensors weights in unet/"):
        wanted_files("a/b", ["model_index.json", "unet/diffusion_pytorch_model.bin"])


def test_paths_are_taken_as_they_are(tiny_pipeline):
    assert base_model(tiny_pipeline.path) == tiny_pipeline
    assert base_model(str(tiny_pipeline.path)) == tiny_pipeline


@pytest.mark.parametrize("name", ["embeded", "sd1.55", ""])
def test_unknown_names_list_the_nearest(name):
    with pytest.raises(UserError, match=r"No model .* \(nearest: ") as error:
        base_model(name)
    assert "Hugging Face id" in error.value.fix


def test_a_missing_file_is_never_looked_for_on_the_hub(tmp_path):
    for name in ("models/cat.safetensors", str(tmp_path / "none"), "a/b/c"):
        with pytest.raises(UserError, match="There is no file or folder"):
            base_model(name)


def test_a_missing_embedded_model_names_the_command_that_trains_it(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "EMBEDDED_FOLDER", tmp_path)
    with pytest.raises(UserError, match="The embedded model is not there") as error:
        base_model()
    assert "python3 -m benchmarks.tiny_model.train" in error.value.fix


def test_every_known_model_is_found_by_its_aliases_and_no_alias_twice():
    aliases = [alias for model in registry.KNOWN_MODELS for alias in model.aliases]
    assert len(aliases) == len(set(aliases))
    assert all(registry.HUB_ID.fullmatch(model.name) for model in registry.KNOWN_MODELS[1:])
