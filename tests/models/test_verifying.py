"""Whether files are whole: damage of every kind is found and named, in memory that does not grow with the file."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from model_layouts import sparse_file
from safetensors.torch import save_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.pickle_header import read_pickle_header
from fastsd_lib.formats.single_file import export_single_file
from fastsd_lib.models.verifying import verify_file

LORA = {
    "lora_unet_x_attn2_to_k.lora_down.weight": torch.ones(4, 768),
    "lora_unet_x_attn2_to_k.lora_up.weight": torch.ones(320, 4),
}
DOWN = "lora_unet_x_attn2_to_k.lora_down.weight"


def saved(path: Path, weights: dict[str, torch.Tensor], **options: object) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: one.contiguous() for name, one in weights.items()}, path)
    else:
        torch.save(weights, path, **options)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_good_file_has_no_problems_and_its_hash_is_that_of_its_bytes(tmp_path, suffix):
    path = saved(tmp_path / f"a{suffix}", LORA)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    found = verify_file(path, digest.upper())
    assert found.ok and found.sha256 == digest and found.description.kind.kind == "lora"
    assert verify_file(path).sha256 == ""  # nobody asked
    other = verify_file(path, "0" * 64)
    assert other.problems == (
        f"has sha256 {digest}, not {'0' * 64}: it is another file, or was damaged on the way",
    )


NOT_FINITE = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn,
}  # fmt: skip


@pytest.mark.parametrize("dtype", NOT_FINITE)
@pytest.mark.parametrize("form", [".safetensors", ".ckpt", "old .ckpt"])
def test_one_number_that_is_none_is_found_in_every_type_and_named(tmp_path, dtype, form):
    bad = torch.ones(300, 768)
    bad[299, 767] = torch.nan
    weights = LORA | {"fine": torch.ones(3), DOWN: bad.to(NOT_FINITE[dtype])}
    options = {} if form == ".safetensors" else {"_use_new_zipfile_serialization": form == ".ckpt"}
    path = saved(tmp_path / f"a{form.removeprefix('old ')}", weights, **options)
    assert verify_file(path).problems == (f"holds values that are no numbers (NaN or infinity), in {DOWN}",)
    largest = torch.tensor([torch.finfo(NOT_FINITE[dtype]).max] * 3, dtype=torch.float64).to(
        NOT_FINITE[dtype]
    )
    assert verify_file(saved(path, LORA | {DOWN: largest.reshape(1, 3)}, **options)).ok


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_infinity_is_no_number_either_and_whole_numbers_always_are(tmp_path, value):
    weights = LORA | {"a": torch.tensor([value]), "b": torch.tensor([value]), "c": torch.tensor([-1])}
    problems = verify_file(saved(tmp_path / "a.safetensors", weights)).problems
    assert problems == ("holds values that are no numbers (NaN or infinity), in a and 1 more",)


def test_views_of_a_checkpoint_are_looked_at_as_what_they_show(tmp_path):
    base = torch.ones(768, 8)
    base[:, 7] = torch.nan
    good = LORA | {DOWN: base[:, :4].t()}
    assert verify_file(saved(tmp_path / "a.ckpt", good)).ok  # the broken column belongs to nobody
    bad = LORA | {DOWN: base.t()}
    assert "no numbers" in verify_file(saved(tmp_path / "a.ckpt", bad)).problems[0]


def test_data_that_does_not_fit_its_checksum_is_found(tmp_path):
    path = saved(tmp_path / "a.ckpt", LORA)
    place = read_pickle_header(path).tensors[DOWN]
    data = bytearray(path.read_bytes())
    data[place.start + 2] ^= 1  # 1.0078125 instead of 1.0: a number like any other
    path.write_bytes(data)
    assert verify_file(path).problems == ("holds data (0) that does not fit its checksum: it was damaged",)


def test_a_checkpoint_that_was_compressed_afterwards_is_a_problem(tmp_path):
    with (
        zipfile.ZipFile(saved(tmp_path / "a.ckpt", LORA)) as source,
        zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    found = verify_file(tmp_path / "b.ckpt")
    assert found.problems == ("was packed anew by another program than PyTorch",) and found.description


def test_weights_that_are_not_those_of_their_own_hash_are_found(tmp_path, tiny_pipeline):
    file = export_single_file(tiny_pipeline, tmp_path / "my-cat.safetensors", dtype=None).path
    assert verify_file(file).ok
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    (problem,) = verify_file(file).problems
    assert problem == "holds other weights than those that its own modelspec.hash_sha256 was taken of"


def test_what_lies_behind_the_tensors_is_told_and_counted_in_the_hash(tmp_path):
    path = saved(tmp_path / "a.safetensors", LORA)
    path.write_bytes(path.read_bytes() + b"behind")
    found = verify_file(path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert found.problems == ("holds 6 bytes behind its tensors that belong to none of them",)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_file_that_was_cut_short_is_a_problem_and_no_exception(tmp_path, suffix):
    path = saved(tmp_path / f"a{suffix}", LORA)
    path.write_bytes(path.read_bytes()[:-9000])
    found = verify_file(path, "a" * 64)
    assert not found.ok and found.description is None and "it" in found.problems[0]
    assert len([one for one in found.problems if "not a whole" in one or "has sha256" in one]) == len(
        found.problems
    )
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_of_no_known_kind_is_still_read_to_its_end(tmp_path):
    path = saved(tmp_path / "a.safetensors", {"layers.0.q": torch.tensor([torch.nan])})
    first, second = verify_file(path).problems
    assert first.startswith("is no model known here: 1 tensors") and second.endswith("in layers.0.q")


def test_all_parts_of_a_folder_are_read(tiny_pipeline, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_pipeline.path, folder)
    assert verify_file(folder).ok
    part = folder / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(part.read_bytes())
    data[-4:] = struct.pack("<f", float("nan"))
    part.write_bytes(data)
    (problem,) = verify_file(folder).problems
    assert problem.startswith("vae/diffusion_pytorch_model.safetensors: holds values that are no numbers")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    part.rename(part.with_name("model-00001-of-00002.safetensors"))
    (folder / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert any(
        "lacks model-00002-of-00002.safetensors (1 of 2 files are there)" in one
        for one in verify_file(folder).problems
    )


def test_hashes_that_are_none_are_refused_before_anything_is_read(tmp_path):
    path = saved(tmp_path / "a.safetensors", LORA)
    for wrong in ("abc", "g" * 64):
        with pytest.raises(UserError, match="is no sha256") as error:
            verify_file(path, wrong)
        assert "64 hexadecimal digits" in error.value.fix
    with pytest.raises(UserError, match="a folder, which has no sha256"):
        verify_file(tmp_path, "a" * 64)


MEASURE = """
import resource, sys
from pathlib import Path
import numpy
from fastsd_lib.models.verifying import verify_file
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert verify_file(Path(sys.argv[1]), sys.argv[2]).problems
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_stays_small_whatever_the_size(tmp_path):
    path = sparse_file(tmp_path / "a.safetensors", {DOWN: (300_000, 768), "x.lora_up.weight": (4, 4)})
    assert path.stat().st_size > 450e6
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, path, "0" * 64], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 20  # MiB
