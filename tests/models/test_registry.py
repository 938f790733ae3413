"""Base models by name; the Hub is a real HTTP server on this machine that speaks its API."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import safetensors.numpy
from local_hub import SECRET, Hub, served

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import sha256_file
from fastsd_lib.core.progress import ProgressEvent
from fastsd_lib.core.stopping import TrainingStopped
from fastsd_lib.models import hub_progress, registry
from fastsd_lib.models.download_part import OwnDisk
from fastsd_lib.models.hub_repository import DiskFullError, wanted_files
from fastsd_lib.models.known_models import KnownModel
from fastsd_lib.models.registry import base_model, download, fetch_known


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


# ------------------------------------------------------------------ known models and their sources


@pytest.fixture
def single(hub, tiny_pipeline, tmp_path) -> Path:
    """org/single on the Hub: the tiny model in one file."""
    from fastsd_lib.formats.single_file import export_single_file

    file = tmp_path / "hub" / "single" / "in" / "tiny.safetensors"
    file.parent.mkdir(parents=True)
    export_single_file(tiny_pipeline, file, dtype=None)
    return file


def known(*mirrors: str, **more) -> KnownModel:
    return KnownModel("tiny", more.pop("family", "sd1"), mirrors=mirrors, **more)


def fetched(model: KnownModel, hub: Hub, tmp_path: Path) -> Path:
    return fetch_known(model, endpoint=hub.url, cache_dir=tmp_path / "cache")


def test_a_source_that_is_gone_is_passed_over_for_the_next(hub, tmp_path):
    folder = fetched(known("hf:org/gone", "hf:org/tiny"), hub, tmp_path)
    assert (folder / "model_index.json").is_file()


def test_when_no_source_gives_the_model_the_reasons_stand_in_one_message(hub, tmp_path):
    with pytest.raises(UserError, match="None of the 2 sources gave tiny:") as error:
        fetched(known("hf:org/gone", "hf:org/lost@fp16"), hub, tmp_path)
    assert " 1. org/gone: Hugging Face has no public model org/gone." in error.value.message
    assert " 2. org/lost: Hugging Face has no public model org/lost." in error.value.message
    assert "\n" not in error.value.message  # the command line promises two lines, the way out included
    with pytest.raises(UserError, match=r"^Hugging Face has no public model org/gone\."):
        fetched(known("hf:org/gone"), hub, tmp_path)


def test_a_cached_later_source_does_without_a_network(hub, tmp_path):
    folder = fetched(known("hf:org/tiny"), hub, tmp_path)
    offline = Hub(tmp_path, url="http://127.0.0.1:9")
    assert fetched(known("hf:org/gone", "hf:org/tiny"), offline, tmp_path) == folder


def test_a_single_file_is_fetched_alone_and_its_published_hash_is_kept(hub, single, tmp_path):
    good = sha256_file(single)
    model = known("hf:org/single/in/tiny.safetensors", sha256=good)
    file = fetched(model, hub, tmp_path)
    assert file.read_bytes() == single.read_bytes() and hub.fetched == ["in/tiny.safetensors"]
    assert fetched(model, hub, tmp_path) == file


def test_a_file_that_is_not_the_published_one_is_thrown_away_and_the_next_source_asked(hub, single, tmp_path):
    wrong = known("hf:org/single/in/tiny.safetensors", sha256="0" * 64)
    with pytest.raises(UserError, match="is not the published file: its sha256 begins"):
        fetched(wrong, hub, tmp_path)
    assert not [
        path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size > 1000
    ]
    both = known("hf:org/single/in/tiny.safetensors", "hf:org/tiny", sha256="0" * 64)
    assert (fetched(both, hub, tmp_path) / "model_index.json").is_file()


def test_a_source_without_the_file_or_with_another_family_says_so(hub, single, tmp_path):
    with pytest.raises(UserError, match=r"org/single on Hugging Face has no file none.safetensors"):
        fetched(known("hf:org/single/none.safetensors"), hub, tmp_path)
    with pytest.raises(UserError, match=r"It holds SD 1.x, not SDXL"):
        fetched(known("hf:org/tiny", family="sdxl"), hub, tmp_path)


def test_a_plain_address_is_fetched_where_the_hub_has_nothing(hub, single, tmp_path):
    from fastsd_lib.models.downloading import DownloadRules

    address = f"{hub.url}/org/single/resolve/main/in/tiny.safetensors"
    model = known("hf:org/gone", address, sha256=sha256_file(single))
    here = DownloadRules(http_allowed=True, private_allowed=True)
    file = fetch_known(model, endpoint=hub.url, cache_dir=tmp_path / "cache", rules=here)
    assert file.read_bytes() == single.read_bytes() and file.name == "tiny.safetensors"
    heard = list(hub.fetched)
    again = fetch_known(model, endpoint="http://127.0.0.1:9", cache_dir=tmp_path / "cache", rules=here)
    assert again == file and hub.fetched == heard  # once
    with pytest.raises(UserError, match="None of the 2 sources gave tiny"):
        fetched(known("hf:org/gone", "https://127.0.0.1:9/a.safetensors"), hub, tmp_path)


def test_a_file_that_was_never_compared_with_its_hash_is_so_by_the_next_call(hub, single, tmp_path):
    """As after a kill between the download and its end."""
    place = "hf:org/single/in/tiny.safetensors"
    file = fetched(known(place), hub, tmp_path)  # in the cache, and not compared
    with pytest.raises(UserError, match="is not the published file"):
        fetched(known(place, sha256="0" * 64), hub, tmp_path)
    assert not file.exists()
    good = known(place, sha256=sha256_file(single))
    file = fetched(good, hub, tmp_path)
    before = file.stat()
    with file.open("r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        handle.write(b"\x55")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fetched(good, hub, tmp_path) == file  # once is enough: gigabytes are not read again
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000_000))
    with pytest.raises(UserError, match="is not the published file"):
        fetched(good, hub, tmp_path)


# ------------------------------------------------------------------ space, progress, stop


def free_bytes(monkeypatch, free: int) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=free))


def test_a_repository_that_does_not_fit_is_refused_before_the_first_byte(hub, tmp_path, monkeypatch):
    free_bytes(monkeypatch, 70 << 20)
    with pytest.raises(DiskFullError, match=r"has 0.1 GB free, and 0.1 GB are needed for org/tiny") as error:
        download("org/tiny", endpoint=hub.url, cache_dir=tmp_path / "cache")
    assert "HF_HOME" in error.value.fix and hub.fetched == []
    with pytest.raises(DiskFullError):
        fetched(known("hf:org/tiny", "hf:org/single/in/tiny.safetensors"), hub, tmp_path)
    free_bytes(monkeypatch, 10 << 30)
    model = download("org/tiny", endpoint=hub.url, cache_dir=tmp_path / "cache")
    free_bytes(monkeypatch, 0)  # what is there needs none, with a network or without
    for url in (hub.url, "http://127.0.0.1:9"):
        assert download("org/tiny", endpoint=url, cache_dir=tmp_path / "cache") == model


def test_a_full_disk_ends_the_search_at_a_plain_address_too(hub, single, tmp_path, monkeypatch):
    from fastsd_lib.models.downloading import DownloadRules

    free_bytes(monkeypatch, 0)
    address = f"{hub.url}/org/single/resolve/main/in/tiny.safetensors"
    rules = DownloadRules(http_allowed=True, private_allowed=True)
    with pytest.raises(OwnDisk, match=r"GB free, and .* GB are needed"):
        fetch_known(known(address, "hf:org/gone"), None, hub.url, tmp_path / "cache", rules=rules)


def test_bytes_are_reported_from_none_to_all(hub, tmp_path):
    events: list[ProgressEvent] = []
    model = download("org/tiny", endpoint=hub.url, cache_dir=tmp_path / "cache", report=events.append)
    size = sum(path.stat().st_size for path in model.path.rglob("*") if path.is_file())
    assert {event.task for event in events} == {"download org/tiny"}
    assert (events[0].done, events[-1].done) == (0, size) and {event.total for event in events} == {size}
    assert [event.done for event in events] == sorted(event.done for event in events)
    events.clear()
    download("org/tiny", endpoint=hub.url, cache_dir=tmp_path / "cache", report=events.append)
    assert events == []  # nothing was to come


@pytest.mark.parametrize("at", [0, 1])
def test_a_stop_is_heard_before_and_amid_the_bytes_and_no_other_source_is_asked(
    hub, tmp_path, monkeypatch, at
):
    monkeypatch.setattr(hub_progress, "EVERY_S", 0.0)

    def report(event: ProgressEvent) -> None:
        if event.done >= at:
            raise TrainingStopped("stopped")

    with pytest.raises(TrainingStopped):
        fetch_known(known("hf:org/tiny", "hf:org/tiny"), None, hub.url, tmp_path / "cache", report)
    assert (hub.fetched == []) == (at == 0)


# ------------------------------------------------------------------ for other programs


def test_what_is_not_opened_here_is_fetched_for_other_programs(hub, single, tmp_path):
    """A U-Net that is shown the depth, and a file; in a process of its own, as above."""
    weights = tmp_path / "hub" / "tiny" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.numpy.load_file(weights)
    tensors["conv_in.weight"] = numpy.zeros((32, 5, 3, 3), "float32")
    safetensors.numpy.save_file(tensors, weights)
    config = tmp_path / "config" / "fastsd" / "models.yaml"
    config.parent.mkdir(parents=True)
    about = "family: sd1\n  uses: []\n  mirrors"
    config.write_text(
        f"deep:\n  {about}: [hf:org/tiny]\none:\n  {about}: [hf:org/single/in/tiny.safetensors]\n"
    )
    where = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    command = [sys.executable, "-m", "fastsd_lib", "models", "download", "deep", "one", "--json", "--root"]
    done = subprocess.run(
        [*command, str(tmp_path / "root")], env=os.environ | where, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    deep, one = json.loads(done.stdout)
    assert (Path(deep["path"]) / "model_index.json").is_file() and deep["kind"] == "checkpoint"
    assert one["path"] == str(tmp_path / "root/models/Stable-diffusion/tiny.safetensors")


def test_a_source_that_holds_no_whole_model_is_passed_over(hub, tmp_path):
    night = registry.EXTRAS_FOLDER / "Lora" / "tiny_night.safetensors"
    (tmp_path / "hub" / "other").mkdir()
    shutil.copy(night, tmp_path / "hub" / "other")
    for uses, said in (((), "It holds a LoRA, not a whole"), (("generate",), "is a LoRA, not a whole model")):
        with pytest.raises(UserError, match=said):
            fetched(known(f"hf:org/other/{night.name}", uses=uses), hub, tmp_path)
    assert fetched(known(f"hf:org/other/{night.name}", "hf:org/tiny"), hub, tmp_path).is_dir()


def test_a_full_disk_ends_the_search_because_no_other_source_would_help():
    from fastsd_lib.models.hub_repository import DiskFullError, _download_error

    error = _download_error("org/tiny", OSError(28, "No space left on device"), None, None)
    assert isinstance(error, DiskFullError) and "free space" in error.fix


def test_half_precision_is_taken_where_it_is_asked_for_and_there(hub):
    files = ["model_index.json"]
    files += [f"unet/diffusion_pytorch_model{ending}.safetensors" for ending in ("", ".fp16")]
    files += ["vae/diffusion_pytorch_model.safetensors"]
    files += [f"text_encoder/model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    files += ["text_encoder/model.safetensors.index.fp16.json", "text_encoder/model.safetensors.index.json"]
    taken = wanted_files("a/b", files, half=True)
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in taken
    assert "unet/diffusion_pytorch_model.safetensors" not in taken
    assert "vae/diffusion_pytorch_model.safetensors" in taken
    assert "text_encoder/model.safetensors.index.fp16.json" in taken
    assert "text_encoder/model.safetensors.index.json" not in taken
    assert "unet/diffusion_pytorch_model.safetensors" in wanted_files("a/b", files)


def test_a_withdrawn_address_tells_what_is_taken_in_its_place(hub, tmp_path):
    """In a process of its own: huggingface_hub reads where the Hub is when it is imported."""
    config = tmp_path / "config" / "fastsd" / "models.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("mine:\n  family: sd1\n  mirrors: [hf:org/tiny]\n  withdrawn: [old/tiny]\n")
    code = (
        "from fastsd_lib.models.registry import base_model\n"
        "told = lambda event: event.task == 'model' and print(event.facts[''])\n"
        "made = base_model('old/tiny', report=told)\n"
        "print(made.family)"
    )
    where = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | where, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["old/tiny was withdrawn; taken from org/tiny instead", "sd1"]


def test_a_vae_is_no_base_model():
    with pytest.raises(UserError, match="sd-vae-ft-mse is a VAE, not a whole model"):
        base_model("sd-vae-ft-mse")


def test_what_is_known_but_not_opened_here_is_refused_before_its_download():
    with pytest.raises(UserError, match="flux1-dev-fp8 is not opened here") as error:
        base_model("flux-dev-fp8")
    assert (
        error.value.fix == "take flux; `fastsd models download flux1-dev-fp8` fetches it for other programs."
    )
    with pytest.raises(UserError, match="instruct-pix2pix is not opened here") as error:
        base_model("ip2p")
    assert error.value.fix.startswith("take 1.5; ")


def test_a_name_longer_than_any_file_is_unknown_and_no_crash():
    with pytest.raises(UserError, match="No model"):
        base_model("x" * 5000)
