"""timm's ViT in transformers' layout: the witness is a forward pass written after timm's names, not after ours."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.model import load_torch, open_model
from fastsd_lib.vit.transform import Transform

WIDTH, HEADS, DEPTH, PATCH, SIDE, CLASSES = 192, 3, 2, 16, 64, 5


def timm_state():
    """Random weights with the names and shapes of timm's VisionTransformer (vit_tiny_patch16, 64 px)."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape):
        return 0.1 * torch.randn(*shape, generator=generator)

    state = {
        "cls_token": random(1, 1, WIDTH), "pos_embed": random(1, 1 + (SIDE // PATCH) ** 2, WIDTH),
        "patch_embed.proj.weight": random(WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": random(WIDTH),
        "norm.weight": 1 + random(WIDTH), "norm.bias": random(WIDTH),
        "head.weight": random(CLASSES, WIDTH), "head.bias": random(CLASSES),
    }  # fmt: skip
    for block in range(DEPTH):
        for name, shape in {
            "norm1": (WIDTH,), "norm2": (WIDTH,), "attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH),
            "mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH),
        }.items():  # fmt: skip
            state[f"blocks.{block}.{name}.weight"] = random(*shape) + (len(shape) == 1)
            state[f"blocks.{block}.{name}.bias"] = random(shape[0])
    return state


def timm_logits(state, pixels):
    """VisionTransformer.forward of timm, in plain functions."""

    def linear(x, name):
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name):
        return functional.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    x = functional.conv2d(
        pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH
    )
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1) + state["pos_embed"]
    for block in (f"blocks.{number}" for number in range(DEPTH)):
        batch, tokens, _ = x.shape
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = qkv.reshape(batch, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(WIDTH // HEADS)).softmax(dim=-1)
        x = x + linear((weights @ v).transpose(1, 2).reshape(batch, tokens, WIDTH), f"{block}.attn.proj")
        x = x + linear(
            functional.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2"
        )
    return linear(norm(x, "norm")[:, 0], "head")


def timm_folder(folder, state, **config):
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    told = {
        "architecture": "vit_tiny_patch16_64", "num_classes": CLASSES, "label_names": list("abcde"),
        "pretrained_cfg": {"input_size": [3, SIDE, SIDE], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9,
                           "interpolation": "bicubic"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**told, **config}))
    return folder


@pytest.fixture(autouse=True)
def our_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_logits_are_those_of_timms_own_forward_pass(tmp_path):
    state = timm_state()
    model = open_model(timm_folder(tmp_path / "timm", state))
    assert (model.architecture, model.labels) == ("ViTForImageClassification", tuple("abcde"))
    pixels = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours, expected = load_torch(model)(pixels).logits, timm_logits(state, pixels)
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_a_swap_of_query_and_key_would_be_seen(tmp_path):
    state = timm_state()
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    expected = timm_logits(state, pixels)
    q, k, v = state["blocks.0.attn.qkv.weight"].chunk(3)
    state["blocks.0.attn.qkv.weight"] = torch.cat([q, v, k]).contiguous()
    with torch.inference_mode():
        ours = load_torch(open_model(timm_folder(tmp_path / "timm", state)))(pixels).logits
    assert (ours - expected).abs().max() > 1e-3


def test_pictures_are_prepared_as_timm_evaluates(tmp_path):
    """Short side to floor(64 / 0.9) = 71, bicubic, then the middle."""
    geometry = Transform.of(open_model(timm_folder(tmp_path / "timm", timm_state()))).geometry
    assert (geometry.size, geometry.resize, geometry.resample) == ((SIDE, SIDE), 71, 3)


def test_classes_without_names_stay_numbers(tmp_path):
    model = open_model(timm_folder(tmp_path / "timm", timm_state(), label_names=None))
    assert model.generic_labels and model.labels[-1] == "LABEL_4"


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("fc_norm.weight", (WIDTH,)),
        ("blocks.0.ls1.gamma", (WIDTH,)),
        ("reg_token", (1, 4, WIDTH)),
        ("head_dist.bias", (5,)),
    ],
)
def test_designs_that_a_plain_vit_does_not_have_are_refused_by_name(tmp_path, name, shape):
    folder = timm_folder(tmp_path / "timm", {**timm_state(), name: torch.zeros(shape)})
    with pytest.raises(UserError, match=f"is not a plain ViT: it has {name}") as error:
        open_model(folder)
    assert "augreg" in error.value.fix


def test_a_timm_model_without_a_head_is_refused_by_name(tmp_path):
    state = {name: one for name, one in timm_state().items() if not name.startswith("head")}
    with pytest.raises(UserError, match=r"it lacks head\.weight"):
        open_model(timm_folder(tmp_path / "timm", state))
