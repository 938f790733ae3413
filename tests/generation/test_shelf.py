"""Models on the shelf: by what names they are found, and which of them are in memory."""

from __future__ import annotations

import hashlib
import json
import threading

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.single_file import export_single_file
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.request import GenerationRequest

ORDER = GenerationRequest("a photo of a red star", inference_steps=2, width_px=32, height_px=32)


@pytest.fixture(scope="module")
def folder(tiny_pipeline, narrow_sd15, tmp_path_factory):
    """An A1111 folder with two checkpoints of different weights, and a file that is none."""
    from fastsd_lib.generation.shelf import Shelf  # torch loads here, once

    assert Shelf
    root = tmp_path_factory.mktemp("library")
    checkpoints = root / "models" / "Stable-diffusion"
    (checkpoints / "sub").mkdir(parents=True)
    export_single_file(tiny_pipeline, checkpoints / "first.safetensors", dtype=None)
    export_single_file(narrow_sd15, checkpoints / "sub" / "second.safetensors", dtype=None)
    (checkpoints / "broken.safetensors").write_bytes(b"no model")
    return root


@pytest.fixture()
def shelf(folder, tmp_path):
    from fastsd_lib.generation.shelf import Shelf

    return Shelf(LibraryFolders.under(folder), "first", "cpu", hashes=tmp_path / "hashes.json")


def test_a_model_is_found_by_every_name_that_programs_use(shelf, folder):
    path = folder / "models" / "Stable-diffusion" / "sub" / "second.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    info = shelf.find("second")
    assert info.sha256 == digest and info.title == f"second.safetensors [{digest[:10]}]"
    names = (
        "second.safetensors",
        info.title,
        "second [0123456789]",
        digest,
        digest[:10],
        digest[:10].upper(),
    )
    for name in (*names, str(path)):
        assert shelf.find(name) == info, name
    assert {model.name for model in shelf.models()} == {"embedded", "first", "second", "broken"}
    assert shelf.find().name == "first" and info.family == "sd1"


def test_a_model_from_elsewhere_is_added_and_one_of_the_same_name_gets_a_number(shelf, folder, tmp_path):
    from fastsd_lib.models import registry

    first = folder / "models" / "Stable-diffusion" / "first.safetensors"
    (tmp_path / "cat.safetensors").write_bytes(first.read_bytes())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cat.safetensors").write_bytes(first.read_bytes())
    cat, other = (registry.base_model(tmp_path / place / "cat.safetensors") for place in ("", "other"))
    assert [shelf.add_model(one) for one in (cat, other, cat, other)] == ["cat", "cat (2)", "cat", "cat (2)"]
    assert shelf.find("cat (2)").path == other.path and shelf.find("cat").path == cat.path
    assert {"cat", "cat (2)"} <= {model.name for model in shelf.models()}
    assert shelf.add_model(registry.base_model()) == "embedded"


def test_an_unknown_name_and_a_file_that_is_no_model_are_said(shelf):
    with pytest.raises(UserError, match=r"No model 'Secnd' here \(nearest: second") as error:
        shelf.find("Secnd")
    assert "folder of checkpoints" in error.value.fix
    with pytest.raises(UserError, match=r"broken\.safetensors"):
        shelf.engine("broken")
    assert not shelf.loading and shelf.loaded() == []
    with pytest.raises(UserError, match="No model 'nothing'"):
        shelf.use("nothing")
    assert shelf.current == "first"


def test_hashes_are_computed_once_and_remembered_until_the_file_changes(tmp_path):
    from fastsd_lib.generation.shelf_files import FileHashes

    file, memory = tmp_path / "a.bin", tmp_path / "hashes.json"
    file.write_bytes(b"one")
    assert FileHashes(memory).of(file) == hashlib.sha256(b"one").hexdigest()
    entry = json.loads(memory.read_text())[str(file)]
    memory.write_text(json.dumps({str(file): [*entry[:2], "from the file"]}))
    again = FileHashes(memory)
    assert again.known(file) == again.of(file) == "from the file"
    file.write_bytes(b"other")
    assert again.known(file) is None and again.of(file) == hashlib.sha256(b"other").hexdigest()
    memory.write_text("{torn")
    assert FileHashes(memory).known(file) is None
    with pytest.raises(FileNotFoundError):
        again.of(tmp_path / "nothing")


def test_two_who_ask_at_once_wait_for_one_hash(tmp_path):
    from fastsd_lib.generation.shelf_files import FileHashes

    file, hashes, found = tmp_path / "a.bin", FileHashes(), []
    file.write_bytes(b"x" * 3_000_000)
    threads = [threading.Thread(target=lambda: found.append(hashes.of(file))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [hashlib.sha256(b"x" * 3_000_000).hexdigest()] * 4


def test_the_longest_unused_goes_when_the_budget_is_spent(shelf):
    first = shelf.engine("first")
    assert shelf.engine("first") is first
    own = shelf.memory()["models"]["first on cpu #0"]
    shelf.budget_mib = int(own) + 1  # room for one
    shelf.engine("second")
    assert shelf.loaded() == ["second"]
    shelf.budget_mib = 10_000
    assert shelf.engine("first") is not first
    assert shelf.loaded() == ["second", "first"]
    shelf.engine("second")  # used again: now "first" is the longest unused
    shelf.most_models = 2
    shelf.engine("embedded")
    assert shelf.loaded() == ["second", "embedded"]
    shelf.unload("second")
    assert shelf.loaded() == ["embedded"]
    shelf.unload()
    assert shelf.loaded() == [] and shelf.memory()["models"] == {}
    shelf.budget_mib = 1  # what is needed is loaded all the same
    assert shelf.engine("first").generate(ORDER)


def test_reload_reads_the_current_model_from_the_disk(shelf):
    engine = shelf.engine()
    shelf.reload()
    again = shelf.engine()
    assert again is not engine
    assert again.generate(ORDER)[0].image.tobytes() == engine.generate(ORDER)[0].image.tobytes()


def test_another_vae_shares_everything_but_the_decoder(folder, tiny_pipeline, tmp_path):
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from safetensors.torch import save_file

    from fastsd_lib.generation.shelf import Shelf

    vae = AutoencoderKL.from_pretrained(tiny_pipeline.path / "vae")
    weights = {name: weight.clone() for name, weight in vae.state_dict().items()}
    weights["decoder.conv_out.bias"] += torch.tensor([0.5, 0.0, -0.5])
    (tmp_path / "models" / "VAE").mkdir(parents=True)
    save_file(weights, tmp_path / "models" / "VAE" / "warm.safetensors")
    both = LibraryFolders.under(folder).and_then(LibraryFolders.under(tmp_path))
    shelf = Shelf(both, "first", "cpu")
    plain, warm = shelf.engine(), shelf.engine("first", "warm.safetensors")
    assert warm.parts.unet is plain.parts.unet and warm.parts.vae is not plain.parts.vae
    assert shelf.engine("", "Automatic") is plain and [one.name for one in shelf.vaes()] == ["warm"]
    red, usual = (engine.generate(ORDER)[0].image.getpixel((16, 16)) for engine in (warm, plain))
    assert red[0] > usual[0] and red[2] < usual[2]
    with pytest.raises(UserError, match=r"No VAE 'cold' here \(there: warm\)") as error:
        shelf.find_vae("cold")
    assert '"Automatic"' in error.value.fix


def test_a_rough_picture_looks_like_what_the_decoder_makes(shelf):
    import numpy as np
    import torch

    from fastsd_lib.generation.preview import rough_picture
    from fastsd_lib.generation.vae import decode

    engine = shelf.engine("embedded")
    with torch.inference_mode():
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1)) * 0.3
        latents = torch.nn.functional.avg_pool2d(latents, 5, 1, 2)
        whole = decode(engine.parts, latents, print)[0]
    rough = rough_picture(engine.parts, latents)
    assert rough.size == whole.size == (64, 64)
    small = [np.asarray(one.resize((8, 8)), dtype=float) for one in (rough, whole)]
    assert np.abs(small[0] - small[1]).mean() < 16
