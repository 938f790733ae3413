"""One door for every conversion: what is done with which file, and what is refused with what to type instead."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import save_sd2

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.conversion import ConversionChoices
from fastsd_lib.models import registry
from fastsd_lib.workflows import dreambooth
from fastsd_lib.workflows.converting import convert

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def here(tmp_path_factory, tiny_pipeline) -> Path:
    """A folder with a model in both layouts, one that predicts velocity, and a LoRA; tests write elsewhere."""
    place = tmp_path_factory.mktemp("converting")
    (place / "folder").symlink_to(tiny_pipeline.path)
    save_sd2(place / "velocity", "v_prediction")
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


# A process that converts and kills itself: at a moment of its report, or after a file or folder took its final name.
DIES = """
import os, signal, sys
from pathlib import Path
from fastsd_lib.workflows.converting import convert
def dies_at(count):
    left = [int(count)]
    def step(*given):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
    return step
event, named, replace = dies_at(sys.argv[3]), dies_at(sys.argv[4]), os.replace
def replace_and_die(*given):
    replace(*given)
    named()
os.replace = replace_and_die
convert(Path(sys.argv[1]), Path(sys.argv[2]), report=event)
"""
NEVER = 0


def dying(source: Path, target: Path, event: int = NEVER, named: int = NEVER) -> int:
    """Convert in a process of its own that dies at that event, or name; its exit status."""
    command = [sys.executable, "-c", DIES, str(source), str(target), str(event), str(named)]
    run = subprocess.run(command, capture_output=True, cwd=REPOSITORY)
    assert run.returncode in (0, -signal.SIGKILL), run.stderr
    return run.returncode


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("folder", "m.safetensors"),
        ("folder", "m.ckpt"),
        ("m.safetensors", "folder"),
        ("lora.safetensors", "peft.safetensors"),
        ("velocity", "m.safetensors"),
    ],
)
def test_a_kill_at_any_moment_leaves_nothing_under_the_final_name(here, tmp_path, source, target):
    """At the first event, in the middle, and at the last one, when all is written and read back."""
    events = []
    convert(here / source, tmp_path / "counted" / target, report=events.append)
    whole = lying(tmp_path / "counted")
    place = tmp_path / "killed"
    for moment in sorted({1, max(1, len(events) // 2), len(events)}):
        assert dying(here / source, place / target, event=moment) == -signal.SIGKILL
        assert not (place / target).exists()
    assert convert(here / source, place / target).path.exists()
    assert lying(place) == whole  # what the dead have left is gone as well


def test_a_model_that_predicts_velocity_never_stands_without_its_yaml(here, tmp_path):
    """Killed after every name that is given: of the two files the model comes last."""
    target, status = tmp_path / "m.safetensors", -signal.SIGKILL
    for number in range(1, 10):
        status = dying(here / "velocity", target, named=number)
        assert target.with_suffix(".yaml").is_file() or not target.exists()
        if status == 0:
            break
        target.unlink(missing_ok=True)
        target.with_suffix(".yaml").unlink(missing_ok=True)
    assert status == 0 and number > 2 and target.is_file()


def lying(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
