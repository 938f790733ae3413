"""Pickled checkpoints as base models: real ones of the embedded model, and files that mean harm."""

from __future__ import annotations

import collections
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.pickle_header import MAX_PICKLE_BYTES, read_pickle_header
from fastsd_lib.formats import ckpt_file
from fastsd_lib.formats.ckpt_file import safetensors_copy
from fastsd_lib.formats.parts import load_parts
from fastsd_lib.formats.single_file import carries_configs, export_single_file, import_single_file
from fastsd_lib.models import registry
from fastsd_lib.models.identify import identify


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Copies go to a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fastsd" / "checkpoints"


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """The embedded model as a bare single file: weights only, as every other program would write it."""
    file = tmp_path_factory.mktemp("exported") / "model.safetensors"
    export_single_file(registry.base_model(), file, dtype=None)
    return file


@pytest.fixture(scope="module")
def weights(exported) -> dict[str, torch.Tensor]:
    return load_file(exported)


def saved(path: Path, value: object, **options: object) -> Path:
    torch.save(value, path, **options)
    return path


@pytest.mark.parametrize("form", ["state_dict", "bare", "old format", "lightning"])
def test_a_checkpoint_of_any_form_gives_the_very_weights(tmp_path, weights, exported, form):
    path = tmp_path / "phtmejhn.ckpt"
    match form:
        case "bare":
            saved(path, weights)
        case "old format":
            saved(path, {"state_dict": weights}, _use_new_zipfile_serialization=False)
        case "lightning":
            state = collections.OrderedDict(weights)
            state._metadata = {"": {"version": 1}}  # as Module.state_dict() gives it
            saved(path, {"epoch": 3, "global_step": 1500, "state_dict": state, "lr_schedulers": []})
        case _:
            saved(path, {"state_dict": weights})
    found = identify(path)
    assert (found.model_files, found.dtype, found.use) == (
        ModelFiles("sd1", "single_file", path), identify(exported).dtype, "text to image",
    )  # fmt: skip
    copy = load_file(safetensors_copy(path))
    assert copy.keys() == weights.keys()
    assert all(torch.equal(copy[name], weights[name]) for name in weights)
    assert not carries_configs(path)
    assert registry.configs_for(path) == registry.EMBEDDED_FOLDER


def test_it_is_imported_and_loaded_like_any_single_file(tmp_path, weights):
    path = saved(tmp_path / "cat.ckpt", {"state_dict": weights})
    folder = import_single_file(path, tmp_path / "folder", config_from=registry.configs_for(path))
    for part in ("unet", "vae", "text_encoder"):
        (ours,) = (folder.path / part).glob("*.safetensors")
        (theirs,) = (registry.EMBEDDED_FOLDER / part).glob("*.safetensors")
        mine, original = load_file(ours), load_file(theirs)
        assert all(torch.equal(mine[_like(name, mine)], original[name]) for name in original)
    parts = load_parts(
        identify(path).model_files, torch.device("cpu"), torch.float32, registry.EMBEDDED_FOLDER
    )
    base = load_parts(registry.base_model(), torch.device("cpu"), torch.float32)
    for ours, theirs in zip(parts.unet.parameters(), base.unet.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def _like(name: str, names) -> str:
    return name if name in names else f"text_model.{name}"


def test_the_copy_is_made_once_and_anew_when_the_file_changes(tmp_path, weights, cache, monkeypatch):
    path = saved(tmp_path / "cat.ckpt", weights)
    before = path.read_bytes()
    first = safetensors_copy(path)
    monkeypatch.setattr(
        ckpt_file, "write_tensor_file", lambda *_, **__: pytest.fail("it was read a second time")
    )
    assert safetensors_copy(path) == first
    monkeypatch.undo()
    assert path.read_bytes() == before
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1]))
    saved(path, {name: tensor + 1 for name, tensor in weights.items() if tensor.is_floating_point()})
    second = safetensors_copy(path)
    assert second != first and list(cache.iterdir()) == [second]  # the old copy took space for nothing


def test_weights_that_are_views_or_half_precision_arrive_as_they_read(tmp_path):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    value = {"t": base.t(), "part": base[1:3, ::2], "half": base.half(), "brain": base.bfloat16(),
             "number": torch.tensor(7), "none": torch.empty(0, 3), "yes": torch.tensor([True])}  # fmt: skip
    copy = load_file(safetensors_copy(saved(tmp_path / "a.ckpt", value)))
    assert all(torch.equal(copy[name], value[name]) for name in value)
    header = read_pickle_header(tmp_path / "a.ckpt").tensors
    assert {name: (one.dtype, one.shape) for name, one in header.items()} == {
        "t": ("F32", (6, 4)), "part": ("F32", (2, 3)), "half": ("F16", (4, 6)), "brain": ("BF16", (4, 6)),
        "number": ("I64", ()), "none": ("F32", (0, 3)), "yes": ("BOOL", (1,)),
    }  # fmt: skip


def test_configs_that_travel_beside_the_weights_are_kept(tmp_path, weights, exported):
    with safe_open(exported, framework="pt") as file:
        configs = file.metadata()["fastsd.configs"]
    path = saved(tmp_path / "own.ckpt", {"state_dict": weights, "fastsd.configs": configs})
    assert carries_configs(path)
    assert import_single_file(path, tmp_path / "folder").layout == "diffusers"


# ---------------------------------------------------------------------------------------------- harm


class Runs:
    """Pickles as a program that calls `os.system`."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self):
        return os.system, (f"touch {self.sign}",)


def hostile(path: Path, sign: Path, form: str) -> Path:
    value = {"state_dict": {"a": torch.zeros(2)}, "extra": Runs(sign)}
    match form:
        case "zip":
            return saved(path, value)
        case "old format":
            return saved(path, value, _use_new_zipfile_serialization=False)
        case "bare pickle":
            path.write_bytes(pickle.dumps(Runs(sign), protocol=2))
        case "protocol 4":
            path.write_bytes(pickle.dumps(Runs(sign), protocol=4))
        case "inside a weight":
            return saved(path, {"a": torch.zeros(2), "b": [Runs(sign)]})
        case "eval":
            program = (
                b"\x80\x02cbuiltins\neval\nX" + struct.pack("<I", 23) + b"__import__('os').abort()\x85R."
            )
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data.pkl", program)
                archive.writestr("archive/version", "3")
        case "allowed by torch":  # what a careless package has told PyTorch to trust is still nothing to us
            return saved(path, {"a": torch.zeros(2), "b": collections.Counter("x")})
    return path


FORMS = ("zip", "old format", "bare pickle", "protocol 4", "inside a weight", "eval", "allowed by torch")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("use", ["identify", "copy", "base model", "configs"])
def test_a_file_that_would_run_something_is_refused_and_nothing_runs(tmp_path, form, use, cache):
    sign = tmp_path / "it ran"
    path = hostile(tmp_path / "model.ckpt", sign, form)
    act = {"identify": identify, "copy": safetensors_copy, "base model": registry.base_model,
           "configs": carries_configs}[use]  # fmt: skip
    with pytest.raises(UserError, match=r"opening it would run|is no PyTorch|is not a whole") as error:
        act(path)
    assert not sign.exists() and not cache.exists()
    assert "\n" not in error.value.message and "weights_only" not in str(error.value)
    if form != "eval":
        assert "opening it would run" in error.value.message
    assert error.value.fix


def test_the_refusal_names_what_the_file_asks_for(tmp_path):
    path = hostile(tmp_path / "model.ckpt", tmp_path / "sign", "zip")
    with pytest.raises(UserError) as error:
        identify(path)
    name = "posix" if sys.platform != "win32" else "nt"
    assert error.value.message == (
        f"{path} is refused: opening it would run {name}.system; only plain weights are read."
    )
    assert "source that you trust" in error.value.fix


def test_no_unpickler_that_could_run_anything_is_ever_asked(tmp_path, weights, monkeypatch):
    path = saved(tmp_path / "a.ckpt", weights)
    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("a real unpickler was called"))
    assert safetensors_copy(path).is_file()


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a memo of 16 GB
        b"\x80\x02]" + b"(" * 1000 + b".",
        b"\x80\x02ctorch\nFloatStorage\n}X\x05\x00\x00\x00dtypeX\x03\x00\x00\x00BADsb.",  # changes a stand-in
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x02\x82\x01.",  # an extension code
        b"\x80\x02ccollections\nOrderedDict.__init__\n.",
        b"",
        b"\x80\x02N.",
        b"\x80\x02}.",
        b"\x80\x02(}).",
    ],
)
def test_a_twisted_pickle_costs_neither_memory_nor_a_traceback(tmp_path, program):
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    with pytest.raises(UserError):
        read_pickle_header(path)
    good = saved(tmp_path / "good.ckpt", {"a": torch.zeros(2)})
    assert read_pickle_header(good).tensors["a"].dtype == "F32"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("new_format", [True, False])
def test_a_file_that_was_cut_short_is_said_to_be(tmp_path, weights, share, new_format):
    path = saved(tmp_path / "a.ckpt", weights, _use_new_zipfile_serialization=new_format)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(
        UserError, match=r"is not a whole|is no PyTorch checkpoint: it is an empty file"
    ) as error:
        safetensors_copy(path)
    assert "again" in error.value.fix


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><title>Google Drive - Quota exceeded</title>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a text file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "it is a PNG"),
        (b"Rar!\x1a\x07\x00" + bytes(40), "it is a RAR archive"),
        (bytes(range(1, 200)), "it is a file of another kind"),
    ],
)
def test_another_kind_of_file_is_called_what_it_is(tmp_path, content, said):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=said):
        identify(tmp_path / "a.ckpt")


def test_zips_that_are_none_of_pytorchs_or_packed_anew_are_refused(tmp_path, weights):
    path = tmp_path / "photos.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.jpg", b"x")
    with pytest.raises(UserError, match="a zip, but not one of PyTorch's"):
        identify(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(MAX_PICKLE_BYTES + 1))
    with pytest.raises(UserError, match="claims"):
        identify(path)
    original = saved(tmp_path / "a.ckpt", weights)
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(UserError, match="packed anew by another program"):
        safetensors_copy(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_and_leave_no_copy(tmp_path, value, cache):
    path = saved(tmp_path / "a.ckpt", {"fine": torch.ones(3), "broken": torch.tensor([1.0, value])})
    with pytest.raises(UserError, match=r"no numbers \(in broken\)") as error:
        safetensors_copy(path)
    assert error.value.fix == "take an earlier checkpoint."
    assert list(cache.iterdir()) == []


def test_complex_and_sparse_weights_are_refused(tmp_path):
    for value in (torch.ones(2, dtype=torch.complex64), torch.eye(2).to_sparse()):
        with pytest.raises(UserError):
            safetensors_copy(saved(tmp_path / "a.ckpt", {"a": value}))


def test_a_full_disk_is_said_before_anything_is_read(tmp_path, weights, cache, monkeypatch):
    path = saved(tmp_path / "a.ckpt", weights)
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage(100, 100, 0))
    with pytest.raises(UserError, match="GB are free") as error:
        safetensors_copy(path)
    assert "XDG_CACHE_HOME" in error.value.fix
    assert list(cache.iterdir()) == []


def test_safetensors_under_a_checkpoints_name_are_read_as_what_they_are(tmp_path, exported):
    path = tmp_path / "model.ckpt"
    path.write_bytes(exported.read_bytes())
    assert identify(path).family == "sd1" and carries_configs(path)
