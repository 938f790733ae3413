"""ControlNets by short names for a base model; the Hub is a real HTTP server on this machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from local_hub import served

from fastsd_lib.core.errors import UserError
from fastsd_lib.models.registry import EXTRAS_FOLDER
from fastsd_lib.workflows import control_choice

SHIPPED = next((EXTRAS_FOLDER / "ControlNet").rglob("*.safetensors"))


def names(text: str, family: str) -> list[str]:
    return [one.name for one in control_choice.chosen(text, family)]


def test_controlnets_are_chosen_by_short_names_for_the_base_model():
    assert control_choice.chosen("none") == control_choice.chosen(" ") == ()
    assert names("Canny, openpose", "sd1") == [
        "control_v11p_sd15_canny_fp16",
        "control_v11p_sd15_openpose_fp16",
    ]
    assert names("Canny, openpose", "sdxl") == ["xinsir-canny-sdxl", "xinsir-openpose-sdxl"]
    assert len(names("all", "sd1")) == 14 and len(names("all, t2i", "sd1")) == 22
    assert names("canny, canny", "sd1") == ["control_v11p_sd15_canny_fp16"]


def test_a_word_that_names_nothing_is_told_before_any_model_is_looked_at():
    with pytest.raises(UserError, match="no ControlNet 'cany'") as caught:
        control_choice.check("canny, cany")
    assert "canny" in caught.value.fix
    control_choice.check("none")
    control_choice.check("all, t2i, recolor, promax, union")


def test_controlnets_that_are_there_are_not_fetched_again_and_no_size_is_told(tmp_path):
    file = tmp_path / "control_v11p_sd15_canny_fp16.safetensors"
    file.write_bytes(b"there")
    told: list[str] = []
    assert control_choice.fetch("canny", tmp_path, say=told.append) == [file]
    assert told == []


def test_the_chosen_one_is_fetched_into_the_library_under_its_own_name_and_its_size_is_told_before(tmp_path):
    """In a process of its own: huggingface_hub reads where the Hub is when it is imported."""
    place = tmp_path / "hub" / "controlnet-canny-sdxl-1.0"
    place.mkdir(parents=True)
    (place / "diffusion_pytorch_model.safetensors").write_bytes(SHIPPED.read_bytes())
    code = (
        "import sys; from pathlib import Path; from fastsd_lib.workflows import control_choice\n"
        f"made = control_choice.fetch('canny', Path({str(tmp_path / 'library')!r}), 'sdxl', print)\n"
        "print(*[file.name for file in made])"
    )
    with served(tmp_path / "hub") as hub:
        where = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | where, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "ControlNets to download: 1 file, 2.5 GB (canny 2.5 GB)", "xinsir-canny-sdxl.safetensors",
    ]  # fmt: skip
    assert (tmp_path / "library" / "xinsir-canny-sdxl.safetensors").read_bytes() == SHIPPED.read_bytes()
