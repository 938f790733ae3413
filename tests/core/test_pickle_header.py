"""Where the weights of a pickled checkpoint lie, told without running it; PyTorch is the second witness."""

from __future__ import annotations

import collections
import io
import math
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.pickle_header import read_pickle_header
from fastsd_lib.core.tensor_file import BYTES_PER_VALUE

BASE = torch.arange(24, dtype=torch.float32).reshape(4, 6)
SHARED = torch.arange(10, dtype=torch.float16)
WEIGHTS = {
    "whole": BASE.clone(),
    "transposed": BASE.t(),
    "part": BASE[1:3],
    "strided": BASE[1:3, ::2],
    "expanded": torch.tensor([3.0, 4.0]).expand(5, 2),
    "one": SHARED,
    "same": SHARED,
    "tail": SHARED[7:],
    "number": torch.tensor(7),
    "none": torch.empty(0, 3),
    "ones around": torch.arange(6.0).reshape(1, 6, 1).transpose(0, 2),
    "brain": torch.arange(5).to(torch.bfloat16),
    "yes": torch.tensor([True, False]),
    "trained": torch.nn.Parameter(torch.arange(4.0)),
}
IN_A_ROW = set(WEIGHTS) - {"transposed", "strided", "expanded"}


def data_of(tensor: torch.Tensor) -> bytes:
    return (
        bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist()) if tensor.numel() else b""
    )


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pickles in a row"])
@pytest.mark.parametrize("form", ["state_dict", "bare", "protocol 4"])
def test_every_tensor_has_its_own_bytes_and_a_place_where_they_lie_in_a_row(tmp_path, zipped, form):
    path = tmp_path / "a.ckpt"
    value = WEIGHTS if form == "bare" else {"epoch": 3, "state_dict": WEIGHTS, "author": "me"}
    torch.save(
        value, path, _use_new_zipfile_serialization=zipped, pickle_protocol=4 if form == "protocol 4" else 2
    )
    header, whole = read_pickle_header(path), path.read_bytes()
    assert set(header.tensors) == set(WEIGHTS)
    assert header.metadata == ({} if form == "bare" else {"author": "me"})
    for name, tensor in WEIGHTS.items():
        found, stored = header.tensors[name], header.stored[name]
        assert found.shape == tuple(tensor.shape)
        assert b"".join(header.chunks(name)) == data_of(tensor), name
        assert stored.contiguous == tensor.is_contiguous() == (name in IN_A_ROW), name
        assert (stored.offset, stored.stride) == (tensor.storage_offset(), tensor.stride())
        if name in IN_A_ROW:
            assert found.size_bytes == math.prod(found.shape) * BYTES_PER_VALUE[found.dtype]
            assert whole[found.start : found.end] == data_of(tensor), name
        else:
            assert (found.start, found.end) == (0, 0)


def test_tensors_that_share_their_bytes_say_so(tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.ckpt")
    header = read_pickle_header(tmp_path / "a.ckpt")
    keys = {name: stored.storage for name, stored in header.stored.items()}
    assert (
        keys["one"] == keys["same"] == keys["tail"] and keys["transposed"] == keys["part"] == keys["strided"]
    )
    assert keys["whole"] not in (keys["one"], keys["part"])
    assert header.tensors["one"] == header.tensors["same"]
    assert header.tensors["tail"].start == header.tensors["one"].start + 7 * 2
    held = header.storages[keys["one"]]
    assert held.end - held.start == 20 and held.crc is not None


def test_types_without_a_storage_of_their_own_are_read(tmp_path):
    value = {"e4": torch.arange(4.0).to(torch.float8_e4m3fn), "e5": torch.arange(4.0).to(torch.float8_e5m2),
             "u16": torch.arange(4).to(torch.uint16)}  # fmt: skip
    torch.save(value, tmp_path / "a.pt")
    header = read_pickle_header(tmp_path / "a.pt")
    assert {name: one.dtype for name, one in header.tensors.items()} == {
        "e4": "F8_E4M3",
        "e5": "F8_E5M2",
        "u16": "U16",
    }
    assert all(b"".join(header.chunks(name)) == data_of(one) for name, one in value.items())


def test_learned_words_and_upscalers_keep_their_tensors_one_step_deeper(tmp_path):
    vector = torch.arange(4.0).reshape(1, 4)
    old_module = torch.nn.ParameterDict({"*": torch.nn.Parameter(vector)})
    for inner in ({"*": vector}, old_module):
        torch.save(
            {"string_to_token": {"*": 265}, "string_to_param": inner, "name": "cat"}, tmp_path / "cat.pt"
        )
        header = read_pickle_header(tmp_path / "cat.pt")
        assert list(header.tensors) == ["string_to_param.*"] and header.metadata == {"name": "cat"}
        assert b"".join(header.chunks("string_to_param.*")) == data_of(vector)
    torch.save({"params_ema": {"conv_first.weight": torch.zeros(2, 3)}}, tmp_path / "up.pth")
    assert read_pickle_header(tmp_path / "up.pth").tensors["params_ema.conv_first.weight"].shape == (2, 3)


class ModelCheckpoint:
    """Named as the class that the first published checkpoints carry as a key beside their weights."""


ModelCheckpoint.__module__ = "pytorch_lightning.callbacks.model_checkpoint"


def test_what_a_trainer_left_beside_the_weights_is_passed_over(tmp_path, monkeypatch):
    import sys
    import types

    module = types.ModuleType(ModelCheckpoint.__module__)
    module.ModelCheckpoint = ModelCheckpoint
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", ModelCheckpoint.__module__):
        monkeypatch.setitem(sys.modules, name, module)
    value = {"state_dict": {"a": torch.ones(2)}, "callbacks": {ModelCheckpoint: {"best": torch.tensor(0.5)}},
             "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}]}  # fmt: skip
    for zipped in (True, False):
        torch.save(value, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
        header = read_pickle_header(tmp_path / "a.ckpt")
        assert list(header.tensors) == ["a"] and b"".join(header.chunks("a")) == data_of(torch.ones(2))


def test_a_compressed_zip_tells_names_and_shapes_but_no_places(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "a.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "a.ckpt") as source,
        zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    header = read_pickle_header(tmp_path / "b.ckpt")
    assert header.compressed and header.tensors["a"].shape == (3,) and header.tensors["a"].end == 0
    with pytest.raises(UserError, match="packed anew by another program") as error:
        header.chunks("a")
    assert error.value.fix


def test_names_and_shapes_alone_are_read_from_the_list_of_entries(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "a.ckpt")
    header = read_pickle_header(tmp_path / "a.ckpt", places=False)
    assert header.tensors["a"].shape == (3,) and header.tensors["a"].end == 0 and not header.storages


def test_one_value_that_claims_to_be_many_is_never_written_out(tmp_path):
    torch.save({"a": torch.zeros(1, 1).expand(10**6, 10**6)}, tmp_path / "a.ckpt")
    header = read_pickle_header(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"spreads 'a' over \(1000000, 1000000\), which it does not hold"):
        header.chunks("a")


# ------------------------------------------------------------------ zips that are not what they say


def rebuilt(path: Path, change) -> Path:
    """A good checkpoint of two weights with its entries changed by `change(list of (name, bytes))`."""
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3), "b": torch.ones(5)}, buffer)
    with zipfile.ZipFile(buffer) as source:
        entries = change([(entry.filename, source.read(entry)) for entry in source.infolist()])
    with zipfile.ZipFile(path, "w") as target:
        for name, data in entries:
            target.writestr(name, data)
    return path


def patched(path: Path, change) -> Path:
    torch.save({"a": torch.ones(3), "b": torch.ones(5)}, path)
    path.write_bytes(change(path.read_bytes()))
    return path


def directory_entry(whole: bytes, name: bytes) -> int:
    """Where the entry `name` stands in the list at the end of a zip."""
    return whole.rindex(name) - 46


def set_field(whole: bytes, name: bytes, offset: int, layout: str, value: int) -> bytes:
    at = directory_entry(whole, name) + offset
    return whole[:at] + struct.pack(layout, value) + whole[at + struct.calcsize(layout) :]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda entries: [one for one in entries if not one[0].endswith("data/1")], "lacks the data of 'b'"),
        (lambda entries: [(name, data[:8] if name.endswith("data/1") else data) for name, data in entries],
         "lacks the data of 'b'"),
        (lambda entries: [(name, b"big" if name.endswith("byteorder") else data) for name, data in entries],
         "stores numbers the other way round"),
        (lambda entries: [("inner.pt", b"PK\3\4" + bytes(99))], "a zip, but not one of PyTorch's"),
        (lambda entries: [*entries, ("other/data.pkl", entries[0][1])], "a zip, but not one of PyTorch's"),
    ],
    ids=["an entry missing", "an entry short", "big-endian", "a zip in a zip", "two programs"],
)  # fmt: skip
def test_a_zip_without_what_its_pickle_needs_is_refused(tmp_path, change, said):
    with pytest.raises(UserError, match=said) as error:
        read_pickle_header(rebuilt(tmp_path / "a.ckpt", change))
    assert error.value.fix


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda whole: set_field(whole, b"a/data/1", 8, "<H", 1), "is locked with a password"),
        (lambda whole: set_field(whole, b"a/data/1", 42, "<I", 0), "where it does not lie"),
        (lambda whole: set_field(whole, b"a/data/0", 24, "<I", 2000), "a size that it has not"),
        (lambda whole: set_field(set_field(whole, b"a/data/0", 24, "<I", 64), b"a/data/0", 20, "<I", 64),
         "twice, or over other data|a size that it has not"),
        (lambda whole: set_field(whole, b"a/data.pkl", 16, "<I", 1), "is damaged"),
        (lambda whole: set_field(whole, b"a/data/1", 42, "<I", 2**31), "is damaged"),
        (lambda whole: whole[:-30], "is damaged"),
    ],
    ids=["locked", "another place", "another size", "over the next", "wrong checksum", "beyond the end", "cut short"],
)  # fmt: skip
def test_a_zip_whose_list_lies_is_refused(tmp_path, change, said):
    with pytest.raises(UserError, match=said) as error:
        read_pickle_header(patched(tmp_path / "a.ckpt", change))
    assert error.value.fix == "download or copy it again."


def test_a_list_of_entries_without_end_is_not_read_into_memory(tmp_path):
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"")
        for number in range(30_000):
            entry = zipfile.ZipInfo(f"a/data/{number:0100}")
            entry.header_offset = entry.CRC = 0
            archive.filelist.append(entry)
    with pytest.raises(UserError, match="is damaged"):
        read_pickle_header(path)


def test_old_files_whose_counts_disagree_are_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"a": torch.ones(3), "b": torch.ones(5)}, path, _use_new_zipfile_serialization=False)
    good = path.read_bytes()
    at = read_pickle_header(path).tensors["a"].start - 8
    assert good[at : at + 8] == struct.pack("<q", 3)
    path.write_bytes(good[:at] + struct.pack("<q", 2**40) + good[at + 8 :])
    with pytest.raises(UserError, match="ends too early or is damaged"):
        read_pickle_header(path)


# ------------------------------------------------------------------ programs made to cost time or memory


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


HASHED_FOR_EVER = b"\x80\x02)q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(60)) + b"0}h\x00Ns."
LONG_INT = b"\x8b" + struct.pack("<i", 1 << 20) + b"\x01" * (1 << 20)
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (HASHED_FOR_EVER, "an entry without a name"),
        (b"\x80\x02}" + LONG_INT + b"q\x00Ns" + b"h\x00Ns" * 1000 + b".", "an entry without a name"),
        (b"\x80\x02" + b"}" * (2 << 20) + b".", "a program of more than a million steps"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 36) + b".", "steps that weights do not need"),
        (b"\x80\x04\x8f.", "steps that weights do not need"),
        (b"\x80\x02ccollections\nOrderedDict\n]\x85R.", "an OrderedDict made of a list"),
        (b"\x80\x02ctorch\nSize\nX" + struct.pack("<I", 1000) + b"x" * 1000 + b"\x85R.", "a shape of an unknown kind"),
        (b"\x80\x02" + TENSOR + number(-1) + b"tQ" + number(0) + b"))tR.", "a shape that is no shape"),
        (b"\x80\x02" + TENSOR + number(4) + b"tQ" + number(0) + number(5) + b"\x85" + number(1) + b"\x85tR.",
         "a tensor larger than its storage"),
        (b"\x80\x02" + TENSOR + number(4) + b"tQ" + number(2) + number(3) + b"\x85" + number(1) + b"\x85tR.",
         "a tensor larger than its storage"),
        (b"\x80\x02]NNs.", "an entry of something that has none"),
    ],
    ids=["a key of itself", "huge keys", "steps", "a buffer", "sets", "an ordered list", "a text as a shape",
         "a negative storage", "beyond its storage", "offset beyond it", "a list's entry"],
)  # fmt: skip
def test_a_program_that_would_cost_time_or_memory_is_refused(tmp_path, program, said):
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    with pytest.raises(UserError, match=f"is refused: it holds {said}") as error:
        read_pickle_header(path)
    assert "from a source that you trust" in error.value.fix


def test_state_of_plain_dicts_with_order_is_kept_and_their_versions_are_not(tmp_path):
    state = collections.OrderedDict(a=torch.ones(2))
    state._metadata = {"": {"version": 1}}
    torch.save(state, tmp_path / "a.ckpt")
    assert list(read_pickle_header(tmp_path / "a.ckpt").tensors) == ["a"]
    assert pickle.dumps(state)  # an OrderedDict indeed, whose state the pickle carries
