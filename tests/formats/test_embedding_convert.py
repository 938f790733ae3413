"""Embeddings as .safetensors. Witnesses: diffusers' loader of textual inversions, safetensors, torch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.formats.embedding_convert import convert_embedding

VECTORS = torch.randn(3, 768)


def a1111(path: Path, vectors: torch.Tensor = VECTORS) -> Path:
    """As A1111 writes it: the vectors beside the words they replace, its step and its base."""
    held = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.nn.Parameter(vectors, requires_grad=False)},
        "name": "zwx",
        "step": 500,
        "sd_checkpoint": "abcd1234",
        "sd_checkpoint_name": "base",
    }
    torch.save(held, path)
    return path


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a1111s_pickle_becomes_its_safetensors_bit_by_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    vectors = VECTORS.to(dtype)
    made = convert_embedding(a1111(tmp_path / "zwx.pt", vectors), tmp_path / "zwx.safetensors")
    found = load_file(made)
    assert list(found) == ["emb_params"]
    assert found["emb_params"].dtype == dtype and torch.equal(found["emb_params"], vectors)
    said = metadata(made)
    assert (said["name"], said["sd_checkpoint"]) == ("zwx", "abcd1234")
    assert said["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"


def test_hashes_of_the_old_file_are_not_carried_over(tmp_path: Path) -> None:
    said = {"sshs_model_hash": "of the old file", "sshs_legacy_hash": "old too", "author": "Ann"}
    save_file({"<zwx>": VECTORS}, tmp_path / "theirs.safetensors", said)
    kept = metadata(convert_embedding(tmp_path / "theirs.safetensors", tmp_path / "zwx.safetensors"))
    assert kept["author"] == "Ann" and not {"sshs_model_hash", "sshs_legacy_hash"} & kept.keys()


def test_diffusers_loads_the_word_of_every_form(tmp_path: Path, tiny_pipeline: ModelFiles) -> None:
    from diffusers.loaders.textual_inversion import (
        TextualInversionLoaderMixin,
        load_textual_inversion_state_dicts,
    )
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tiny_pipeline.path / "tokenizer")
    torch.save({"<zwx>": VECTORS[0]}, tmp_path / "learned_embeds.bin")
    save_file({"emb_params": VECTORS}, tmp_path / "plain.safetensors")
    for source, word, wanted in (
        ("learned_embeds.bin", "<zwx>", VECTORS[:1]),
        ("plain.safetensors", "plain", VECTORS),
        (a1111(tmp_path / "other.pt").name, "zwx", VECTORS),
    ):
        made = convert_embedding(tmp_path / source, tmp_path / f"{source}.safetensors", "diffusers")
        held = load_textual_inversion_state_dicts([str(made)])
        (token,), (vectors,) = TextualInversionLoaderMixin._retrieve_tokens_and_embeddings(
            [None], held, tokenizer
        )
        assert token == word
        assert torch.equal(vectors, wanted)
        # And back under A1111's name.
        back = load_file(convert_embedding(made, tmp_path / f"back-{source}.safetensors"))
        assert torch.equal(back["emb_params"], wanted)


def test_both_encoders_of_sdxl_keep_their_widths(tmp_path: Path) -> None:
    both = {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280)}
    torch.save(both, tmp_path / "xl.pt")
    made = convert_embedding(tmp_path / "xl.pt", tmp_path / "xl.safetensors")
    assert {name: one.shape for name, one in load_file(made).items()} == {
        "clip_l": (2, 768),
        "clip_g": (2, 1280),
    }
    assert all(torch.equal(one, both[name]) for name, one in load_file(made).items())
    assert metadata(made)["modelspec.architecture"].startswith("stable-diffusion-xl")


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_a_hostile_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    torch.save({"string_to_param": {"*": VECTORS}, "more": Bomb(mark)}, tmp_path / "bomb.pt")
    with pytest.raises(UserError, match=r"would run .*system"):
        convert_embedding(tmp_path / "bomb.pt", tmp_path / "out.safetensors")
    assert not mark.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bomb.pt"]


BAD = {
    "two words": ({"a": VECTORS, "b": VECTORS.clone()}, "holds a among 2 tensors"),
    "a model": (
        {"emb_params": VECTORS, "unet.conv_in.weight": VECTORS.clone()},
        r"holds unet\.conv_in\.weight",
    ),
    "deep": ({"emb_params": torch.zeros(1, 2, 3)}, r"emb_params is F32 \[1, 2, 3\]"),
    "whole numbers": ({"emb_params": torch.zeros(2, 3, dtype=torch.int64)}, "emb_params is I64"),
    "too many": ({"emb_params": torch.zeros(5000, 4)}, r"\[5000, 4\]"),
    "NaN": ({"emb_params": torch.tensor([[1.0, float("nan")]])}, r"no numbers \(in emb_params\)"),
    "uneven": ({"clip_l": torch.zeros(1, 768), "clip_g": torch.zeros(2, 1280)}, "different counts"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_embedding_is_refused(tmp_path: Path, case: str) -> None:
    tensors, line = BAD[case]
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=line) as refused:
        convert_embedding(tmp_path / "bad.safetensors", tmp_path / "out.safetensors")
    assert refused.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]


def test_only_safetensors_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not end in \.safetensors"):
        convert_embedding(a1111(tmp_path / "zwx.pt"), tmp_path / "out.pt")
