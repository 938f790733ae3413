"""SD3 and Flux at their full size, without weights: names, shapes, memory, time."""

from __future__ import annotations

import json
import struct
import subprocess
import sys

import pytest
import torch
from transformer_folders import whole

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import NewTensor, header_bytes, read_tensor_file
from fastsd_lib.formats.configs import METADATA_KEY
from fastsd_lib.formats.flux_maps import flux_table
from fastsd_lib.formats.transformer_configs import bundled_configs, carried_configs, folder_configs
from fastsd_lib.formats.transformer_files import plan_import
from fastsd_lib.formats.transformer_parts import TIED, own_name, part_table

BUNDLED = ("flux-dev", "flux-schnell", "sd3-medium", "sd35-medium", "sd35-large")


@pytest.mark.parametrize("model", BUNDLED)
def test_the_tables_hold_every_tensor_of_the_published_models(model):
    family = model.partition("-")[0].removesuffix("5")
    stock = bundled_configs(model)
    with torch.device("meta"):
        parts = {
            name.partition("/")[0]: whole_part(family, name.partition("/")[0], json.loads(text))
            for name, text in stock.items()
            if name.endswith("/config.json")
        }
    assert len(parts) == (5 if family == "sd3" else 4)
    for part, module in parts.items():
        wanted = {own_name(family, part, name) for name in module.state_dict()} - {TIED}
        table = part_table(family, part, stock)
        assert {one for row in table.rows.values() for one in row} == wanted, part
        assert set(table.swapped) <= set(table.rows)


def whole_part(family: str, part: str, config: dict):
    import transformers
    from diffusers import AutoencoderKL

    if part == "transformer":
        return whole(family, config)
    if part == "vae":
        return AutoencoderKL.from_config(config)
    kind = getattr(transformers, config["architectures"][0])
    return kind(kind.config_class(**config))


@pytest.mark.parametrize("model", BUNDLED)
def test_a_published_model_saved_anew_carries_no_configs(tmp_path, model):
    """What today's diffusers writes beside the published weights means what is bundled."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
    from transformers import CLIPTextConfig, T5Config

    stock = bundled_configs(model)
    parsed = {name: json.loads(text) for name, text in stock.items()}
    family = model.partition("-")[0].removesuffix("5")
    with torch.device("meta"):
        whole(family, parsed["transformer/config.json"]).save_config(tmp_path / "transformer")
        AutoencoderKL.from_config(parsed["vae/config.json"]).save_config(tmp_path / "vae")
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(parsed["scheduler/scheduler_config.json"])
    scheduler.save_config(tmp_path / "scheduler")
    parts = ["transformer", "vae"]
    for name, config in parsed.items():
        if name.startswith("text_encoder"):
            kind = T5Config if config["model_type"] == "t5" else CLIPTextConfig
            kind(**config).save_pretrained(tmp_path / name.partition("/")[0])
            parts.append(name.partition("/")[0])
    assert carried_configs(folder_configs(tmp_path), parts) == {}
    (tmp_path / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler.config | {"shift": 5.0}))
    carried = json.loads(carried_configs(folder_configs(tmp_path), parts)[METADATA_KEY])
    assert carried["scheduler/scheduler_config.json"]["shift"] == 5.0
    assert not any(name.startswith("tokenizer") for name in carried)


PLANNING = """
import sys
from pathlib import Path
from fastsd_lib.core.tensor_file import read_tensor_file
from fastsd_lib.formats.transformer_files import plan_import
configs, parts = plan_import(read_tensor_file(Path(sys.argv[1])))
heavy = [name for name in ("torch", "diffusers", "numpy", "safetensors") if name in sys.modules]
peak = next(line.split()[1] for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))
print(len(parts["transformer"]), sum(one.size_bytes for one in parts["transformer"]), peak, *heavy)
for one in parts["transformer"]:
    print(one.name, *one.shape)
"""


def test_planning_24_gigabytes_takes_64_megabytes_and_no_torch(tmp_path):
    """A file of full-size Flux dev that is all hole: its header alone is there."""
    config = json.loads(bundled_configs("flux-dev")["transformer/config.json"])
    with torch.device("meta"):
        shapes = {name: tuple(one.shape) for name, one in whole("flux", config).state_dict().items()}
    rows = flux_table(config).rows
    tensors = [
        NewTensor(theirs, "BF16", (sum(shapes[one][0] for one in ours), *shapes[ours[0]][1:]), lambda: ())
        for theirs, ours in rows.items()
    ]
    header = header_bytes(tensors, {})
    path = tmp_path / "flux1-dev.safetensors"
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(one.size_bytes for one in tensors))
    assert path.stat().st_size > 23.8e9
    try:
        told = subprocess.run(
            [sys.executable, "-c", PLANNING, str(path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout.splitlines()
    finally:
        path.unlink()
    count, size, peak_kib, *heavy = told[0].split()
    assert heavy == []
    assert int(peak_kib) < 64 * 1000
    assert int(count) == len(shapes) and int(size) == 23_802_816_640  # as the published folder counts
    assert {line.split()[0]: tuple(map(int, line.split()[1:])) for line in told[1:]} == shapes


CONVERTING = """
import sys
from pathlib import Path
from fastsd_lib.workflows.converting import convert
source, target = map(Path, sys.argv[1:])
convert(source, target / "model.safetensors")
convert(target / "model.safetensors", target / "model")
heavy = [name for name in ("torch", "diffusers", "numpy", "safetensors") if name in sys.modules]
peak = next(line.split()[1] for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))
print(peak, *heavy)
"""


def test_converting_there_and_back_loads_nothing_heavy(folders, tmp_path):
    command = [sys.executable, "-c", CONVERTING, str(folders("3.5 medium")), str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    assert int(told[0]) < 64 * 1000 and told[1:] == []


def test_a_header_of_many_tensors_is_answered_soon(tmp_path):
    names = [f"double_blocks.0.img_attn.x{n}" for n in range(30_000)]
    header = {name: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for name in names}
    text = json.dumps(header).encode()
    path = tmp_path / "many.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(UserError, match=r"holds no img_in\.weight"):
        plan_import(read_tensor_file(path))
