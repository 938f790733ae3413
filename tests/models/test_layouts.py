"""Every tensor of fifteen published models, as headers: what each is, in milliseconds, from both formats."""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from model_layouts import NAMES, read_layout, sparse_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.models.identify import describe, identify
from fastsd_lib.models.kinds import Kind


def whole(family: str, variant: str = "") -> Kind:
    return Kind("checkpoint", family, variant, "original", whole=True)


PUBLISHED = {
    "sd15": (whole("sd1"), "epsilon", 2.1),
    "sd15-inpainting": (whole("sd1", "inpainting"), "epsilon", 2.1),
    "instruct-pix2pix": (whole("sd1", "instruct-pix2pix"), "epsilon", 2.1),
    "sd2-base": (whole("sd2"), "", 2.6),
    "sd2-768-v": (whole("sd2"), "", 2.6),
    "sd2-inpainting": (whole("sd2", "inpainting"), "epsilon", 2.6),
    "sd2-depth": (whole("sd2", "depth to image"), "epsilon", 2.6),
    "sdxl-base": (whole("sdxl"), "epsilon", 6.9),
    "sdxl-inpainting": (whole("sdxl", "inpainting"), "epsilon", 6.9),
    "sdxl-refiner": (whole("sdxl_refiner"), "epsilon", 6.1),
    "sd3-medium-with-clips": (whole("sd3", "3 medium"), "flow", 6.0),
    "sd35-medium": (Kind("transformer", "sd3", "3.5 medium", "original", marks=("VAE inside",)), "flow", 5.1),
    "sd35-large": (Kind("transformer", "sd3", "3.5 large", "original", marks=("VAE inside",)), "flow", 16.5),
    "flux-dev": (Kind("transformer", "flux", "dev", "original"), "flow", 23.8),
    "flux-schnell": (Kind("transformer", "flux", "schnell", "original"), "flow", 23.8),
}
IDENTIFIED = {"inpainting": "inpainting", "instruct-pix2pix": "instruct-pix2pix"}


def test_there_is_an_answer_for_every_layout():
    assert sorted(PUBLISHED) == NAMES and len(NAMES) >= 12


@pytest.mark.parametrize("name", NAMES)
def test_a_published_model_is_told_by_all_of_its_tensors(tmp_path, name):
    kind, prediction, size_gb = PUBLISHED[name]
    path = sparse_file(tmp_path / "of-some-name.safetensors", read_layout(name))
    found = describe(path)
    assert (found.kind, found.prediction, round(found.size_bytes / 1e9, 1)) == (kind, prediction, size_gb)
    assert found.dtypes == {"F16": found.size_bytes - 8 - header_bytes(path)}
    assert ("prediction: not in the header" in " ".join(found.unknown)) == (prediction == "")
    assert (found.needs == "") == kind.whole
    if kind.variant == "depth to image":
        with pytest.raises(UserError, match="5 input channels"):  # no engine here draws with it
            identify(path)
    else:
        seen = identify(path)
        assert (seen.family, seen.use) == (
            kind.family.removesuffix("_refiner"), IDENTIFIED.get(kind.variant, "text to image"),
        )  # fmt: skip


def header_bytes(path) -> int:
    with path.open("rb") as file:
        return int.from_bytes(file.read(8), "little")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pickles in a row"])
def test_the_same_is_told_of_a_checkpoint_without_running_its_pickle(tmp_path, name, zipped):
    # One value stands for all of a tensor: shapes are true, and the file is small.
    one = torch.zeros(1, dtype=torch.float16)
    weights = {key: one.expand(shape) if shape else one[0] for key, shape in read_layout(name).items()}
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": weights, "global_step": 1}, path, _use_new_zipfile_serialization=zipped)
    found = describe(path)
    assert (found.kind, found.prediction) == PUBLISHED[name][:2]
    assert found.tensors == len(weights)


def test_seven_gigabytes_of_sdxl_are_told_in_milliseconds(tmp_path):
    path = sparse_file(tmp_path / "sdxl.safetensors", read_layout("sdxl-base"))
    assert path.stat().st_size > 6.9e9
    taken = []
    for _ in range(7):
        begun = time.process_time()
        describe(path)
        taken.append(time.process_time() - begun)
    print(
        f"\nSDXL, {path.stat().st_size / 1e9:.1f} GB, 2,514 tensors: {statistics.median(taken) * 1000:.1f} ms"
    )
    assert statistics.median(taken) < 0.05


def test_each_part_of_a_published_model_alone_is_told_too(tmp_path):
    layout = read_layout("sdxl-base")
    for prefix, kind in (
        ("model.diffusion_model.", Kind("unet", "sdxl", "", "original")),
        ("first_stage_model.", Kind("vae", "", "4 latent channels", "original")),
        ("conditioner.embedders.0.transformer.", Kind("text-encoder", "", "CLIP-L")),
        ("conditioner.embedders.1.model.", Kind("text-encoder", "", "OpenCLIP-bigG")),
    ):
        part = {name: shape for name, shape in layout.items() if name.startswith(prefix)}
        assert describe(sparse_file(tmp_path / "part.safetensors", part)).kind == kind
        bare = {name.removeprefix(prefix): shape for name, shape in part.items()}
        assert describe(sparse_file(tmp_path / "bare.safetensors", bare)).kind == kind


def test_averaged_weights_beside_the_others_are_seen(tmp_path):
    layout = read_layout("sd15")
    unet = "model.diffusion_model."
    averaged = {
        "model_ema.diffusion_model" + name.removeprefix(unet).replace(".", ""): shape
        for name, shape in layout.items() if name.startswith(unet)
    }  # fmt: skip
    found = describe(sparse_file(tmp_path / "ema.safetensors", layout | averaged | {"model_ema.decay": ()}))
    assert found.kind == Kind("checkpoint", "sd1", "", "original", ema=True, whole=True)
