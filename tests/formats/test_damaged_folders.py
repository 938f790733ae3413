"""Diffusers folders with damaged tensors, and what folders hold that nothing made of them has a place for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import save_sd2, save_single_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.formats.conversion import ConversionChoices, convert_model

Tensors = dict[str, torch.Tensor]
ATTENTION = "encoder.layers.1.self_attn.k_proj"
JOINED = "cond_stage_model.model.transformer.resblocks.1.attn.in_proj"
HALF = ConversionChoices("fp16")


@pytest.fixture(scope="module")
def sd2(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return save_sd2(tmp_path_factory.mktemp("damaged") / "sd2")


@pytest.fixture
def folder(tiny_pipeline: ModelFiles, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline.path, tmp_path / "folder"))


def changed(file: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(file)
    key = next(key for key in tensors if key.removeprefix("text_model.") == name)
    tensors[key] = change(tensors[key]).clone()
    file.unlink()  # it may be mapped
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        (f"{JOINED}_weight", lambda one: one.sum(), r"in_proj_weight as \[\]: 0 rows are not q, k and v"),
        (f"{JOINED}_weight", lambda one: one[:-1], r"in_proj_weight as \[191, 64\]: 191 rows are not"),
        (f"{JOINED}_bias", lambda one: one[:0], r"in_proj_bias as \[0\]: 0 rows are not"),
    ],
)
def test_a_joined_tensor_that_is_not_q_k_and_v_is_named(
    sd2: ModelFiles, tmp_path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor], line: str
) -> None:
    file = save_single_file(sd2, tmp_path / "m.safetensors")
    changed(file, name, change)
    with pytest.raises(UserError, match=rf"m\.safetensors holds .*{line}") as refused:
        convert_model(file, tmp_path / "out", ConversionChoices(config_from=sd2.path))
    assert refused.value.fix == "download or copy the model again."
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        (
            f"{ATTENTION}.weight",
            lambda one: one[:, :-8],
            r"q, k and v stand in one tensor, and q is \[64, 64\]",
        ),
        (f"{ATTENTION}.weight", lambda one: one[:-8], r"as \[56, 64\]: q, k and v stand in one tensor"),
        (f"{ATTENTION}.bias", lambda one: one.sum(), r"as \[\]: q, k and v stand in one tensor"),
    ],
)
def test_q_k_and_v_of_different_shapes_are_named_before_anything_is_written(
    sd2: ModelFiles, tmp_path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor], line: str
) -> None:
    folder = Path(shutil.copytree(sd2.path, tmp_path / "folder"))
    changed(folder / "text_encoder" / "model.safetensors", name, change)
    with pytest.raises(UserError, match=line) as refused:
        convert_model(folder, tmp_path / "m.safetensors")
    assert "text_encoder" in str(refused.value) and ATTENTION in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_text_encoder_deeper_than_its_config_says_is_named(sd2: ModelFiles, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sd2.path, tmp_path / "folder"))
    config = folder / "text_encoder" / "config.json"
    said = json.loads(config.read_text())
    config.write_text(json.dumps(said | {"num_hidden_layers": said["num_hidden_layers"] - 1}))
    with pytest.raises(UserError, match="no text encoder as deep as its config says has that"):
        convert_model(folder, tmp_path / "m.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_small_files_that_are_no_text_are_named(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer/merges.txt", "vae/config.json"):
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(b"\xff\xfe\x00")
        with pytest.raises(UserError, match=rf"{name} is not a text file"):
            convert_model(folder, tmp_path / "out", HALF)
        (folder / name).write_bytes(good)
    # A mark of UTF-8 at the beginning, as Windows writes it, harms nothing.
    config = folder / "unet" / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert convert_model(folder, tmp_path / "out", HALF).family == "sd1"


@pytest.mark.parametrize(
    ("name", "content"),
    [("vocab.json", b"[1]"), ("special_tokens_map.json", b"[]"), ("merges.txt", b"\xff\xfe\x00")],
)
def test_a_damaged_tokenizer_lends_nothing_and_is_named(
    sd2: ModelFiles, tmp_path: Path, name: str, content: bytes
) -> None:
    file = save_single_file(sd2, tmp_path / "m.safetensors")
    words = Path(shutil.copytree(sd2.path / "tokenizer", tmp_path / "words"))
    (words / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as refused:
        convert_model(file, tmp_path / "out", ConversionChoices(config_from=words))
    assert refused.value.fix and not (tmp_path / "out").exists()


# ------------------------------------------------------------------ what stays, and what is left out


def test_trained_words_beside_the_vocabulary_come_along(folder: Path, tmp_path: Path) -> None:
    added = {"<sks>": 900}
    (folder / "tokenizer" / "added_tokens.json").write_text(json.dumps(added))
    whole = {"version": "1.0", "added_tokens": [{"id": 900, "content": "<sks>"}], "model": {"type": "BPE"}}
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps(whole))
    made = convert_model(folder, tmp_path / "half", HALF)
    file = convert_model(folder, tmp_path / "m.safetensors", HALF)
    for path in (made.path, convert_model(file.path, tmp_path / "back").path):
        assert json.loads((path / "tokenizer" / "added_tokens.json").read_text()) == added
        assert json.loads((path / "tokenizer" / "tokenizer.json").read_text()) == whole


def test_the_same_vocabulary_is_not_carried_twice(folder: Path, tmp_path: Path) -> None:
    end = {"id": 899, "content": "<|endoftext|>"}  # a mark that the vocabulary has
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps({"added_tokens": [end]}))
    made = convert_model(folder, tmp_path / "half", HALF)
    assert not (made.path / "tokenizer" / "tokenizer.json").exists()
    assert (made.path / "tokenizer" / "vocab.json").is_file() and made.notes == ()


def test_a_tokenizer_in_one_file_is_no_missing_one(folder: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).unlink()
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE"}}))
    made = convert_model(folder, tmp_path / "half", HALF)
    assert (made.path / "tokenizer" / "tokenizer.json").is_file() and made.notes == ()


def test_optional_parts_that_are_left_out_are_told(folder: Path, tmp_path: Path) -> None:
    (folder / "safety_checker").mkdir()
    made = convert_model(folder, tmp_path / "one", HALF)
    assert len(made.notes) == 1 and made.notes[0].startswith("safety_checker/ is left out")
    (folder / "feature_extractor").mkdir()
    index = folder / "model_index.json"
    named = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    index.write_text(json.dumps(json.loads(index.read_text()) | named))
    made = convert_model(folder, tmp_path / "two", HALF)
    assert made.notes[0].startswith("safety_checker/ and feature_extractor/ are left out")
    assert json.loads((made.path / "model_index.json").read_text())["safety_checker"] == [None, None]
