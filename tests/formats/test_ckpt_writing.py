"""Checkpoints written without PyTorch: PyTorch, zip tools and the rules of the strictest safe loader are the judges."""

from __future__ import annotations

import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from tiny_transformers import save_sd3

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.pickle_header import read_pickle_header
from fastsd_lib.core.tensor_file import ByteRange, NewTensor, read_tensor_file
from fastsd_lib.formats import ckpt_writing
from fastsd_lib.formats.ckpt_writing import write_ckpt
from fastsd_lib.formats.conversion import ConversionChoices, convert_model
from fastsd_lib.formats.modelspec import HASH_KEY
from fastsd_lib.models import registry
from tests.ckpt_rules import rule_is_kept, strictly_built

NUMBERS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "U8": "u1"}


def arrays() -> dict[str, np.ndarray]:
    """One tensor of every width, a number of its own, one of no values, one with a strange name."""
    rng = np.random.default_rng(4)
    found = {kind: rng.integers(0, 100, (3, 5, 7)).astype(number) for kind, number in NUMBERS.items()}
    return {
        **{f"a.{kind}.weight": array for kind, array in found.items()},
        "number": np.array(7, "<i8"),
        "nothing": np.zeros((0, 4), "<f4"),
        "größe 'x'": np.arange(70_000, dtype="<f4").reshape(70, 1000),
    }


def planned(given: dict[str, np.ndarray], source: Path | None = None) -> list[NewTensor]:
    """As bytes, or as ranges of a file that holds them one after another."""
    kinds = {np.dtype(number): kind for kind, number in NUMBERS.items()}
    tensors, at = [], 11
    if source:
        source.write_bytes(b"some header" + b"".join(array.tobytes() for array in given.values()))
    for name, array in given.items():
        dtype = kinds[array.dtype]
        if source:
            lies = ByteRange(source, at, at + array.nbytes)
            tensors.append(NewTensor.copied(name, dtype, array.shape, [lies]))
        else:
            tensors.append(NewTensor(name, dtype, array.shape, lambda array=array: [array.tobytes()]))
        at += array.nbytes
    return tensors


def assert_torch_reads(path: Path, given: dict[str, np.ndarray]) -> dict:
    """With `weights_only`, read and mapped; returns the whole dict."""
    import torch

    for mapped in (False, True):
        whole = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        assert list(whole["state_dict"]) == list(given)
        for name, tensor in whole["state_dict"].items():
            assert tuple(tensor.shape) == given[name].shape
            assert tensor.is_contiguous()
            bits = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else np.zeros(0)
            assert bits.tobytes() == given[name].tobytes()
    return whole


@pytest.mark.parametrize("lie_in_a_file", [True, False])
def test_torch_reads_every_bit_back_mapped_too(tmp_path, lie_in_a_file):
    import torch

    given, path = arrays(), tmp_path / "m.ckpt"
    sums = write_ckpt(path, planned(given, tmp_path / "source" if lie_in_a_file else None))
    whole = assert_torch_reads(path, given)
    assert {name: tensor.dtype for name, tensor in whole["state_dict"].items()}[
        "a.BF16.weight"
    ] == torch.bfloat16
    assert (whole["epoch"], whole["global_step"]) == (0, 0)
    assert sums == {name: f"{zlib.crc32(array.tobytes()):08x}" for name, array in given.items()}


def test_the_strict_rule_of_old_safe_loaders_lets_it_pass_and_not_what_this_torch_saves(tmp_path):
    import torch

    ours, theirs = tmp_path / "ours.ckpt", tmp_path / "theirs.ckpt"
    write_ckpt(ours, planned(arrays()), {"epoch": 1, "recipe": "{}"})
    assert rule_is_kept(ours)
    torch.save({"state_dict": {"a": torch.zeros(3)}}, theirs)
    assert not rule_is_kept(theirs)  # byteorder, .format_version and so on: the reason for all of this


def test_a_restricted_unpickler_builds_the_tensors_as_safe_loaders_do(tmp_path):
    write_ckpt(tmp_path / "m.ckpt", planned(arrays()))
    built = strictly_built(tmp_path / "m.ckpt")
    assert {name: tuple(one.shape) for name, one in built["state_dict"].items()} == {
        name: array.shape for name, array in arrays().items()
    }


@pytest.mark.parametrize("model", ["embedded", "embedded, with its hash", "sd3"])
def test_safe_loaders_take_what_conversion_makes_of_real_models(tmp_path, model):
    source = save_sd3(tmp_path / "sd3").path if model == "sd3" else registry.EMBEDDED_FOLDER
    choices = ConversionChoices("fp16", sha256="hash" in model, metadata={"recipe": "größe 'x'"})
    ckpt = convert_model(source, tmp_path / "m.ckpt", choices).path
    file = convert_model(source, tmp_path / "m.safetensors", choices).path
    assert rule_is_kept(ckpt)
    built = strictly_built(ckpt)
    assert {name: tuple(one.shape) for name, one in built["state_dict"].items()} == {
        name: one.shape for name, one in read_tensor_file(file).tensors.items()
    }
    assert (HASH_KEY in built) == ("hash" in model) and built["recipe"] == "größe 'x'"


def test_the_zip_is_sound_aligned_stored_and_the_same_every_time(tmp_path):
    for name in ("one.ckpt", "two.ckpt"):
        write_ckpt(tmp_path / name, planned(arrays()))
    content = (tmp_path / "one.ckpt").read_bytes()
    assert content == (tmp_path / "two.ckpt").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.ckpt") as archive:
        assert archive.testzip() is None
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            at = entry.header_offset
            lengths = content[at + 26 : at + 30]
            data_at = at + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            assert data_at % 64 == 0
            assert content[data_at : data_at + entry.file_size] == archive.read(entry)


def test_our_own_reader_finds_the_weights_the_texts_and_where_they_lie(tmp_path):
    given, path = arrays(), tmp_path / "m.ckpt"
    write_ckpt(path, planned(given), {"global_step": 5_000_000_000, "recipe": "Ünïcode"})
    header = read_pickle_header(path)
    assert header.metadata == {"recipe": "Ünïcode"}
    assert {name: one.shape for name, one in header.tensors.items()} == {
        name: array.shape for name, array in given.items()
    }
    assert {name: b"".join(header.chunks(name)) for name in given} == {
        name: array.tobytes() for name, array in given.items()
    }


def test_numbers_of_every_length_and_the_hash_stand_beside_the_weights(tmp_path):
    import hashlib

    import torch

    given, path = arrays(), tmp_path / "m.ckpt"
    numbers = {"none": 0, "below": -1, "byte": 255, "large": 2**31 - 1, "larger": 2**31, "huge": -(2**70)}
    write_ckpt(path, planned(given), numbers, hash_key="hash")
    whole = torch.load(path, weights_only=True)
    assert {name: whole[name] for name in numbers} == numbers
    digest = hashlib.sha256(b"".join(array.tobytes() for array in given.values()))
    assert whole["hash"] == "0x" + digest.hexdigest()
    assert zipfile.ZipFile(path).testzip() is None


def test_beyond_four_gigabytes_the_wide_fields_are_right(tmp_path, monkeypatch):
    """The same with a limit that a small file passes: sizes, places and the number of entries all go wide."""
    monkeypatch.setattr(ckpt_writing, "ZIP64_FROM", 1000)
    monkeypatch.setattr(ckpt_writing, "ZIP64_ENTRIES", 4)
    given, path = arrays(), tmp_path / "m.ckpt"
    write_ckpt(path, planned(given))
    content = path.read_bytes()
    assert content.count(b"PK\x06\x06") == content.count(b"PK\x06\x07") == 1
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.start_dir == content.index(b"PK\x01\x02")
    assert_torch_reads(path, given)
    assert len(read_pickle_header(path).tensors) == len(given)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I16", "BOOL"])
def test_widths_that_old_loaders_refuse_are_refused_here_with_what_to_take(tmp_path, dtype):
    size = {"I16": 2}.get(dtype, 1)
    tensor = NewTensor("w", dtype, (4,), lambda: [bytes(4 * size)])
    with pytest.raises(UserError, match=rf"m\.ckpt cannot hold w as {dtype}") as error:
        write_ckpt(tmp_path / "m.ckpt", [tensor])
    assert error.value.fix == "choose fp16, or write to m.safetensors."
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more", [{"extra": {"state_dict": "x"}}, {"hash_key": "state_dict"}])
def test_an_entry_that_would_replace_the_weights_is_never_written(tmp_path, more):
    with pytest.raises(ValueError, match=r"m\.ckpt: an entry named 'state_dict' would replace the weights"):
        write_ckpt(tmp_path / "m.ckpt", planned(arrays()), **more)
    assert list(tmp_path.iterdir()) == []


MEMORY = """
import resource, sys
from pathlib import Path
from fastsd_lib.core.files import atomic_path
from fastsd_lib.core.progress import silent
from fastsd_lib.core.tensor_file import ByteRange, NewTensor
from fastsd_lib.formats.writing import write_and_verify
folder, final = Path(sys.argv[1]), Path(sys.argv[2])
side = 1 << 21
tensors = [
    NewTensor.copied(str(n), "F16", (side // 2,), [ByteRange(folder / "source", n * side, (n + 1) * side)])
    for n in range(96)
]
with atomic_path(final) as scratch:
    write_and_verify(scratch, final, tensors, {}, silent, hash_key="hash")
assert not {"torch", "numpy"} & set(sys.modules)
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""
CAST = """
import sys
from pathlib import Path
from fastsd_lib.core.files import atomic_path
from fastsd_lib.core.progress import silent
from fastsd_lib.core.tensor_file import ByteRange, NewTensor
from fastsd_lib.formats.casting import cast_pieces
from fastsd_lib.formats.writing import write_and_verify
folder, final = Path(sys.argv[1]), Path(sys.argv[2])
size = 96 << 21
pieces = cast_pieces(ByteRange(folder / "source", 0, size), "w", "F32", "F16")
tensors = [NewTensor.copied("w", "F16", (size // 4,), pieces)]
with atomic_path(final) as scratch:
    write_and_verify(scratch, final, tensors, {}, silent, hash_key="hash")
assert "torch" not in sys.modules
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["m.safetensors", "m.ckpt"])
@pytest.mark.parametrize(
    ("program", "written", "most_mib"),
    [(MEMORY, 96 << 21, 40), (CAST, 96 << 20, 64)],
    ids=["copied without torch or numpy", "cast"],
)
def test_two_hundred_megabytes_pass_through_forty_and_cast_through_sixty_four(
    tmp_path, name, program, written, most_mib
):
    with (tmp_path / "source").open("wb") as source:
        source.truncate(96 << 21)  # a hole: nothing is on the disk
    command = [sys.executable, "-c", program, str(tmp_path), str(tmp_path / name)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert (tmp_path / name).stat().st_size > written
    assert int(told.stdout) < most_mib * 1024  # KiB
