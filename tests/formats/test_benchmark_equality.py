"""What `benchmark convert --equality` calls the same is the same to the last bit, and what differs is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from benchmarks._convert_equality import differences, folder_differences


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
