"""One door for every conversion: what is done with which file, and what is refused with what to type instead."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.conversion import ConversionChoices
from fastsd_lib.models import registry
from fastsd_lib.workflows import dreambooth
from fastsd_lib.workflows.converting import convert


@pytest.fixture(scope="module")
def here(tmp_path_factory, tiny_pipeline) -> Path:
    """A folder with a model in both layouts and a LoRA; tests write elsewhere."""
    place = tmp_path_factory.mktemp("converting")
    (place / "folder").symlink_to(tiny_pipeline.path)
    convert(tiny_pipeline.path, place / "m.safetensors")
    lora = {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": torch.ones(
            2, 768
        ),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": torch.ones(
            1280, 2
        ),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.alpha": torch.tensor(2.0),
    }
    save_file(lora, place / "lora.safetensors")
    save_file({"some.thing": torch.ones(3)}, place / "strange.safetensors")
    return place


def test_the_kind_of_a_file_says_what_becomes_of_it(here, tmp_path):
    file = convert(here / "folder", tmp_path / "sub" / "m.ckpt", ConversionChoices("fp16"))
    assert (file.kind, file.family, file.layout, file.path) == (
        "checkpoint", "sd1", "single_file", tmp_path / "sub" / "m.ckpt",
    )  # fmt: skip
    folder = convert(file.path, tmp_path / "v1.5")  # a dot makes no file of it
    assert (folder.layout, folder.path.is_dir()) == ("diffusers", True)
    lora = convert(here / "lora.safetensors", tmp_path / "lora.safetensors")
    assert (lora.kind, lora.layout) == ("lora", "single_file")
    assert any(name.endswith("lora_A.weight") for name in load_file(lora.path))


def test_a_bare_file_of_the_embedded_models_shape_takes_its_configs_from_there(tmp_path):
    convert(registry.EMBEDDED_FOLDER, tmp_path / "m.safetensors")
    save_file(load_file(tmp_path / "m.safetensors"), tmp_path / "bare.safetensors")
    made = convert(tmp_path / "bare.safetensors", tmp_path / "folder")
    assert made.notes == () and (made.path / "tokenizer" / "vocab.json").is_file()
    again = dreambooth.convert(
        made.path, tmp_path / "again.safetensors", "fp16"
    )  # the older name of the same door
    assert (again.family, again.layout) == ("sd1", "single_file")


@pytest.mark.parametrize(
    ("source", "target", "choices", "message", "fix"),
    [
        ("m.safetensors", "{here}/m.safetensors", {}, "is the source itself", "name another"),
        (
            "folder",
            "{here}/folder/m.safetensors",
            {},
            "lies inside the folder that is converted",
            "beside it",
        ),
        ("folder", "{here}/m.safetensors", {}, "is there already", "name another"),
        ("m.safetensors", "{here}", {}, "is there already", "name another"),
        (
            "m.safetensors",
            "{here}/m.safetensors/sub",
            {},
            "m.safetensors is a file, not a folder",
            "another folder",
        ),
        ("folder", "m.bin", {}, "not written as .bin files", "name m.safetensors, m.ckpt, or a folder"),
        ("folder", "m.SafeTensors", {}, "not written as .SafeTensors files", "name m.safetensors"),
        ("folder", "m.gguf", {}, "not written as .gguf files", "m.safetensors"),
        ("folder", "other", {}, "is a Diffusers folder already", "write to other.safetensors"),
        ("folder", "m.ckpt", {"naming": "kohya"}, "one file has no kohya names", "leave --naming out"),
        ("folder", "m.ckpt", {"naming": "diffusers"}, "one file has no diffusers names", "name a folder"),
        ("lora.safetensors", "out", {}, "is a LoRA: it becomes a .safetensors file", "name out.safetensors"),
        ("lora.safetensors", "l.safetensors", {"naming": "original"}, "no original names", "take kohya"),
        (
            "lora.safetensors",
            "l.safetensors",
            {"vae": "m.safetensors"},
            "--vae is for whole models",
            "leave --vae out",
        ),
        ("lora.safetensors", "l.safetensors", {"ema": "use"}, "--ema is for whole models", "leave --ema out"),
        ("strange.safetensors", "m.safetensors", {}, "strange.safetensors", ""),
        ("none.safetensors", "m.safetensors", {}, "There is no file", "check the path"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_to_type(
    here, tmp_path, source, target, choices, message, fix
):
    given = dict(choices)
    if "vae" in given:
        given["vae"] = here / given["vae"]
    place = Path(target.format(here=here)) if "{here}" in target else tmp_path / target
    before = sorted(path.name for path in here.iterdir())
    with pytest.raises(UserError) as error:
        convert(here / source, place, ConversionChoices(**given))
    assert message in error.value.message and fix in error.value.fix
    assert "\n" not in error.value.message
    assert not list(tmp_path.iterdir()) and sorted(path.name for path in here.iterdir()) == before


@pytest.mark.parametrize("target", ["m.safetensors", "m.ckpt", "folder"])
def test_a_kill_at_any_moment_leaves_nothing_under_the_final_name(here, tmp_path, target):
    """The child stops itself in the middle, at one event after another; nothing is cleaned up by it."""
    program = (
        "import os, signal, sys; from pathlib import Path; from fastsd_lib.workflows.converting import convert\n"
        "left = [int(sys.argv[3])]\n"
        "def report(event):\n"
        "    left[0] -= 1\n"
        "    if not left[0]: os.kill(os.getpid(), signal.SIGKILL)\n"
        "convert(Path(sys.argv[1]), Path(sys.argv[2]), report=report)\n"
    )
    source = here / ("m.safetensors" if target == "folder" else "folder")
    for moment in (1, 200):
        run = subprocess.run(
            [sys.executable, "-c", program, str(source), str(tmp_path / target), str(moment)],
            capture_output=True,
        )
        assert run.returncode == -signal.SIGKILL, run.stderr
        assert not (tmp_path / target).exists()
    made = convert(source, tmp_path / target)
    assert made.path.exists()
    assert [path.name for path in tmp_path.iterdir()] == [target]  # what the dead have left is gone as well
