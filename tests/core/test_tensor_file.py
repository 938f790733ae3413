"""Safetensors headers read and files written without the library; the library is the second witness."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import NewTensor, read_tensor_file, write_tensor_file


def safetensors(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(start: int, end: int, shape: list[int], dtype: str = "U8") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_what_we_write_the_reference_library_reads_and_the_other_way_round(tmp_path):
    import numpy as np
    from safetensors.numpy import load_file, save_file

    arrays = {"b": np.arange(6, dtype=np.float16).reshape(2, 3), "a": np.array(7, dtype=np.int64)}
    tensors = [
        NewTensor("b", "F16", (2, 3), lambda: [arrays["b"].tobytes()]),
        NewTensor("a", "I64", (), lambda: [arrays["a"].tobytes()]),
    ]
    write_tensor_file(tmp_path / "ours.safetensors", tensors, {"title": "Ünïcode"})
    theirs = load_file(tmp_path / "ours.safetensors")
    assert {name: (array.dtype, array.tolist()) for name, array in theirs.items()} == {
        name: (array.dtype, array.tolist()) for name, array in arrays.items()
    }
    save_file(arrays, tmp_path / "theirs.safetensors", metadata={"title": "x"})
    file = read_tensor_file(tmp_path / "theirs.safetensors")
    assert file.metadata == {"title": "x"}
    assert {name: b"".join(file.chunks(name)) for name in file.tensors} == {
        name: array.tobytes() for name, array in arrays.items()
    }


def test_the_hash_of_all_tensor_data_stands_in_the_header(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = [NewTensor("a", "U8", (2,), lambda: [b"hi"]), NewTensor("b", "U8", (1,), lambda: [b"!"])]
    write_tensor_file(path, tensors, {}, hash_key="hash")
    assert read_tensor_file(path).tensors["a"].start % 64 == 0  # where mapped weights can be computed with
    assert read_tensor_file(path).metadata["hash"] == "0x" + hashlib.sha256(b"hi!").hexdigest()


def test_a_tensor_that_brings_too_few_bytes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="1 bytes given, 2 expected"):
        write_tensor_file(tmp_path / "x", [NewTensor("a", "U8", (2,), lambda: [b"h"])], {})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html><title>Sign in</title>", "is a web page, not a model"),
        (b"PK\x03\x04" + b"x" * 40, "is a pickled PyTorch file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
        (b"abc", "it has only 3 bytes"),
        (struct.pack("<Q", 2**40) + b"{}", "claims a header of 1,099,511,627,776 bytes"),
        (struct.pack("<Q", 500) + b"{}", "its header alone needs 508"),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path, content, said):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        read_tensor_file(path)
    assert error.value.fix


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480])
def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path, length):
    text = json.dumps({"a": entry(0, 4, [4])}).encode().ljust(length)
    assert list(read_tensor_file(safetensors(tmp_path / "x.safetensors", text, b"1234")).tensors) == ["a"]


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        (b"{not json", b"", "has a header that is not JSON"),
        ([], b"", "lists no tensors"),
        ({"a": {"dtype": "F16"}}, b"", "has no proper entry for 'a'"),
        ({"a": entry(0, 4, [3])}, b"1234", "a size that does not fit its shape"),
        ({"a": entry(0, 4, [4]), "b": entry(2, 6, [4])}, b"123456", "a gap or an overlap before 'b'"),
        ({"a": entry(2, 6, [4])}, b"123456", "a gap or an overlap before 'a'"),
        ({"a": entry(0, 4, [4])}, b"12", "of the .* bytes that its header promises"),
    ],
)
def test_damage_is_found_without_reading_a_weight(tmp_path, header, data, said):
    with pytest.raises(UserError, match=said) as error:
        read_tensor_file(safetensors(tmp_path / "x.safetensors", header, data))
    assert "download or copy it again" in error.value.fix
