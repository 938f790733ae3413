"""Learned words from files of every usual kind, in a prompt, in the record, and those that are refused."""

from __future__ import annotations

import copy
import hashlib
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_families import save_sdxl

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.parts import load_parts
from fastsd_lib.generation.embeddings import read_embedding
from fastsd_lib.generation.engine import Engine, load_engine
from fastsd_lib.generation.judge import finds, load_judge
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.request import GenerationRequest, Hires
from fastsd_lib.generation.resources import Library
from fastsd_lib.models.registry import EMBEDDED_FOLDER, EXTRAS_FOLDER, base_model

ORDER = GenerationRequest("a zorp", inference_steps=2, seed=3)
VECTORS = torch.randn(3, 128, generator=torch.Generator().manual_seed(0)) * 0.3


@pytest.fixture(scope="module")
def pristine(tiny_pipeline):
    torch.set_num_threads(1)
    return load_parts(tiny_pipeline, torch.device("cpu"), torch.float32)


@pytest.fixture
def engine(pristine, tiny_pipeline, tmp_path):
    (tmp_path / "embeddings").mkdir()
    library = Library.of(LibraryFolders(embeddings=(tmp_path / "embeddings",)))
    return Engine(copy.copy(pristine), tiny_pipeline, library=library)


def a1111(vectors):
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": vectors},
        "name": "another",
        "step": 500,
        "sd_checkpoint": "e1441589",
        "sd_checkpoint_name": "v1-5",
    }


FORMATS = {
    "emb_params": lambda path, v: save_file(
        {"emb_params": v}, path.with_suffix(".safetensors"), {"step": "500"}
    ),
    "diffusers": lambda path, v: save_file({"<zorp>": v}, path.with_suffix(".safetensors")),
    "a1111 pt": lambda path, v: torch.save(a1111(v), path.with_suffix(".pt")),
    "a1111 bin": lambda path, v: torch.save(a1111(torch.nn.Parameter(v)), path.with_suffix(".bin")),
    "old pt": lambda path, v: torch.save(
        a1111(v), path.with_suffix(".pt"), _use_new_zipfile_serialization=False
    ),
    "diffusers bin": lambda path, v: torch.save({"<zorp>": v}, path.with_suffix(".bin")),
}


def pixels(engine, **changes):
    return np.asarray(engine.generate(replace(ORDER, **changes))[0].image)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_kind_of_file_draws_the_same_picture_as_diffusers(engine, kind, tiny_pipeline, tmp_path):
    FORMATS[kind](tmp_path / "embeddings" / "zorp", VECTORS)
    without = np.asarray(Engine(engine.parts, tiny_pipeline).generate(ORDER)[0].image)
    ours = pixels(engine)
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline.path)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_textual_inversion({"<zorp>": VECTORS}, token="<zorp>")
    noise = torch.Generator().manual_seed(3)
    theirs = pipeline("a <zorp>", num_inference_steps=2, guidance_scale=7.5, generator=noise).images[0]
    assert np.abs(ours.astype(int) - np.asarray(theirs)).max() <= 1
    assert np.abs(ours.astype(int) - without).max() > 3


def test_what_the_library_says_of_its_words(engine, tmp_path):
    folder = tmp_path / "embeddings"
    FORMATS["a1111 pt"](folder / "one", torch.zeros(2, 768))
    FORMATS["diffusers"](folder / "two", torch.zeros(1024))
    save_file({"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(2, 1280)}, folder / "XL.safetensors")
    (folder / "broken.pt").write_bytes(b"no")
    one, two, xl = engine.library.networks.embeddings()
    assert (one.name, one.count, one.widths, one.family, one.step) == ("one", 2, (768,), "sd1", 500)
    assert (one.sd_checkpoint, one.sd_checkpoint_name) == ("e1441589", "v1-5")
    assert (two.count, two.widths, two.family, two.step) == (1, (1024,), "sd2", None)
    assert (xl.name, xl.count, xl.widths, xl.family) == ("XL", 2, (768, 1280), "sdxl")
    assert list(engine.library.networks.skipped()) == ["broken"]


def test_a_word_for_another_model_is_left_out_with_a_warning_that_says_its_size(engine, tmp_path):
    save_file({"emb_params": torch.zeros(2, 768)}, tmp_path / "embeddings" / "zorp.safetensors")
    record = engine.generate(ORDER)[0].record
    assert record["warnings"] == [
        "the embedding 'zorp' is made for another model: (2, 768), not (count, 128)"
    ]
    assert "TI hashes" not in record["extra_parameters"]


def test_a_word_for_sdxl_has_a_part_for_each_text_encoder(tmp_path):
    engine = load_engine(save_sdxl(tmp_path / "sdxl"), device="cpu", dtype="fp32")
    (tmp_path / "embeddings").mkdir()
    engine.library = Library.of(LibraryFolders(embeddings=(tmp_path / "embeddings",)))
    path = tmp_path / "embeddings" / "zorp.safetensors"
    before = pixels(engine)
    drawn = []
    for left, right in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        save_file({"clip_l": VECTORS[:, :64] * left, "clip_g": VECTORS * right}, path)
        drawn.append(pixels(engine).tobytes())
    assert len({before.tobytes(), *drawn}) == 4


def test_the_picture_says_which_words_it_used_and_their_hashes(engine, tmp_path):
    folder = tmp_path / "embeddings"
    for name in ("zorp", "bad hands", "zor", "unused"):
        save_file({"emb_params": VECTORS[:1]}, folder / f"{name}.safetensors")
    sha = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in folder.iterdir()}
    request = replace(ORDER, negative_prompt="(bad  hands:1.2)", hires=Hires(prompt="a zor", scale=1))
    record = engine.generate(request)[0].record
    said = f"zorp: {sha['zorp']}, bad hands: {sha['bad hands']}, zor: {sha['zor']}"
    assert record["extra_parameters"]["TI hashes"] == said


def test_a_new_file_is_seen_at_once_and_a_changed_one_is_read_anew(engine, tmp_path):
    path = tmp_path / "embeddings" / "zorp.safetensors"
    pictures = [pixels(engine)]
    save_file({"emb_params": VECTORS}, path)
    pictures.append(pixels(engine))
    save_file({"emb_params": -VECTORS[:2]}, path)
    pictures.append(pixels(engine))
    path.unlink()
    pictures.append(pixels(engine))
    assert np.array_equal(pictures[0], pictures[3])
    assert len({one.tobytes() for one in pictures}) == 3


class Bomb:
    def __reduce__(self):
        import os

        return os.system, ("touch it-ran",)


def hostile(kind, folder):
    path = folder / "zorp.pt"
    if kind == "code":
        torch.save({"string_to_param": {"*": Bomb()}}, path)
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif kind == "an object":
        torch.save({"string_to_param": torch.nn.Linear(2, 2)}, path)
    elif kind == "cut short":
        torch.save(a1111(VECTORS), path)
        path.write_bytes(path.read_bytes()[:400])
    elif kind == "repacked":
        torch.save(a1111(VECTORS), path)
        with zipfile.ZipFile(path) as archive:
            entries = {one.filename: archive.read(one) for one in archive.infolist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in entries.items():
                archive.writestr(name, data)
    elif kind == "blown up":
        torch.save({"zorp": torch.zeros(1, 1).expand(10**6, 10**6)}, path)
    elif kind == "no numbers":
        torch.save({"zorp": VECTORS * torch.nan}, path)
    elif kind == "three dimensions":
        torch.save({"zorp": VECTORS[None]}, path)
    elif kind == "a list":
        torch.save([VECTORS], path)
    elif kind == "many tensors":
        torch.save(OrderedDict(a=VECTORS, b=VECTORS), path)
    elif kind == "unequal":
        path = folder / "zorp.safetensors"
        save_file({"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(3, 1280)}, path)
    elif kind == "web page":
        path = folder / "zorp.safetensors"
        path.write_bytes(b"<!DOCTYPE html><html>")
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("code", "refused: opening it would run"),
        ("plain pickle", "refused: opening it would run"),
        ("an object", "refused: opening it would run"),
        ("cut short", "zorp.pt"),
        ("repacked", "packed by another program"),
        ("blown up", "its tensor is (1000000, 1000000)"),
        ("no numbers", "no numbers (NaN)"),
        ("three dimensions", "its tensor is (1, 3, 128)"),
        ("a list", "no tensors by name"),
        ("many tensors", "it holds 2 tensors"),
        ("unequal", "different counts"),
        ("web page", "is a web page"),
    ],
)
def test_hostile_files_run_nothing_and_are_listed_with_their_reason(
    engine, tmp_path, monkeypatch, kind, message
):
    monkeypatch.chdir(tmp_path)
    path = hostile(kind, tmp_path / "embeddings")
    with pytest.raises(UserError) as refused:
        read_embedding(path)
    assert message in refused.value.message
    assert refused.value.fix
    assert message in engine.library.networks.skipped()["zorp"]
    assert engine.library.networks.embeddings() == []
    assert engine.generate(ORDER)[0].record["warnings"] == [], (
        "a prompt that says its name is drawn without it"
    )
    assert not (tmp_path / "it-ran").exists()


def test_the_word_that_comes_along_draws_the_character():
    engine = load_engine(base_model("embedded"), device="cpu", dtype="fp32")
    engine.library = Library.of(LibraryFolders(embeddings=(EXTRAS_FOLDER / "embeddings",)))
    judge, shares = load_judge(EMBEDDED_FOLDER), []
    for noun in ("monster", "tiny_zorp"):
        request = GenerationRequest(f"a photo of a {noun} on a green background", count=8, inference_steps=10)
        pictures = [one.image for one in engine.generate(request)]
        shares.append(finds(judge, pictures, {"colour": "purple", "eyes": "1"}).float().mean().item())
    assert shares[0] < 0.3
    assert shares[1] > 0.6
