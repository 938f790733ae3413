"""What `benchmark convert --equality` calls the same is the same to the last bit, and what differs is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks._convert_equality import all_explained, differences, folder_differences
from benchmarks.convert import bars, bars_exceeded


def saved(path: Path, **arrays: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, path)
    return path


def test_one_bit_a_shape_a_width_and_a_name_are_differences(tmp_path):
    numbers = np.arange(600_000, dtype="<f4")
    bit = numbers.copy()
    bit.view("<u4")[-1] ^= 1
    ours = saved(tmp_path / "a", same=numbers, bit=numbers, shape=numbers, width=numbers, mine=numbers)
    theirs = saved(
        tmp_path / "b", same=numbers, bit=bit, shape=numbers[None], width=numbers.view("<i4"), yours=numbers
    )
    same, lines = differences(ours, theirs)
    assert same == 1
    assert sorted(lines) == [
        "bit: other bits",
        "only ours: mine",
        "only theirs: yours",
        "shape: F32 [600000], theirs F32 [1, 600000]",
        "width: F32 [600000], theirs I32 [600000]",
    ]


def test_of_folders_the_configs_count_as_values(tmp_path):
    for name, config in (("a", {"x": 1, "y": 2}), ("b", {"y": 3, "x": 1})):
        saved(tmp_path / name / "unet" / "m.safetensors", w=np.zeros(3, "<f2"))
        (tmp_path / name / "unet" / "config.json").write_text(json.dumps(config, indent=len(name)))
        (tmp_path / name / "merges.txt").write_text(name)
    (tmp_path / "a" / "more.json").write_text("{}")
    same, lines = folder_differences(tmp_path / "a", tmp_path / "b")
    assert same == 1
    assert lines == ["only ours: more.json", "merges.txt: other bytes", "unet/config.json: y: 2, theirs 3"]


@pytest.mark.parametrize(
    "line",
    [
        "only ours: w",
        "only theirs: w",
        "unet: only ours: w",
        "unet: only theirs: conv_in.weight",
        "w: F16 [3], theirs F32 [3]",
        "unet: w: F16 [3], theirs F16 [1, 3]",
        "vae: w: other bits",
        "only ours: more.json",
        "only theirs: unet/diffusion_pytorch_model.safetensors",
        "only theirs: scheduler/scheduler_config.json",
        "tokenizer/merges.txt: other bytes",
        "unet/config.json: cross_attention_dim: 768, theirs 2048",
        "unet/config.json: upcast_attention: None, theirs True",
        "vae/config.json: scaling_factor: None, theirs 0.13025",
        "scheduler/scheduler_config.json: prediction_type: 'epsilon', theirs 'v_prediction'",
        "model_index.json: other values",
    ],
)
def test_equality_fails_for_every_kind_of_difference_that_is_not_explained(line):
    for model in ("sd15", "sdxl"):
        assert not all_explained(model, [], [line]), model
        assert not all_explained(model, [line], [])


@pytest.mark.parametrize(
    "line",
    [
        "only theirs: tokenizer_2/vocab.json",
        "unet/config.json: _diffusers_version: None, theirs '0.42.1'",
        "model_index.json: scheduler: ['diffusers', 'EulerDiscreteScheduler'], theirs ['diffusers', 'DDIMScheduler']",
        "model_index.json: image_encoder: None, theirs [None, None]",
        "scheduler/scheduler_config.json: clip_sample: None, theirs False",
        "text_encoder_2/config.json: pad_token_id: 0, theirs 672",
        "unet/config.json: upcast_attention: None, theirs False",
    ],
)
def test_equality_lets_the_published_configs_of_sdxl_pass_and_of_nothing_else(line):
    assert all_explained("sdxl", [], [line]) and all_explained("sd15", [], [])
    assert not all_explained("sd15", [], [line])
    assert not all_explained("sdxl", [line], [])  # of two single files nothing is explained


@pytest.mark.parametrize(
    ("name", "ratio_bar", "peak_bar"),
    [
        ("cp -r", 0, 0),
        (".safetensors", 1.1, 64),
        (".safetensors, sha256", 0, 64),
        (".ckpt", 2.0, 64),
        ("fp32 -> bf16 .safetensors", 1.3, 64),
        ("file -> folder", 0, 64),
        ("diffusers .ckpt", 0, 0),
    ],
)
def test_a_row_of_the_table_has_the_bars_of_its_name(name, ratio_bar, peak_bar):
    assert bars(name, timed=True) == (ratio_bar, peak_bar)
    assert bars(name, timed=False) == (0, peak_bar)


def test_a_bar_that_is_exceeded_is_told_and_one_that_is_reached_is_not():
    assert bars_exceeded(".ckpt", 2.0, 64.0, 2.0, 64) == bars_exceeded("cp -r", 9.0, 900.0, 0, 0) == []
    assert bars_exceeded(".ckpt", 2.01, 65.0, 2.0, 64) == [
        ".ckpt takes 2.01 x cp, bar 2.00",
        ".ckpt holds 65 MB, bar 64",
    ]
