"""Files that mean harm, or have come to it: each is made in a folder, with what must be said of it.

`sign`: the file that appears if anything in one of them is ever run.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the first of PyTorch's old pickles in a row


@dataclass(frozen=True)
class Case:
    """`make(folder, sign)` gives the path; `said` must be part of the message."""

    make: Callable[[Path, Path], Path]
    said: str
    late: bool = False  # names and shapes are good: only who goes to the data finds it


# ------------------------------------------------------------------ safetensors


def tensors(header: object, data: bytes = b"", claimed: int | None = None, name: str = "model.safetensors"):
    """A maker of a file with this header (bytes as they are, anything else as JSON) and these data."""

    def make(folder: Path, sign: Path) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        (folder / name).write_bytes(
            struct.pack("<Q", len(text) if claimed is None else claimed) + text + data
        )
        return folder / name

    return make


def content(data: bytes, name: str = "model.safetensors"):
    def make(folder: Path, sign: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def entry(
    start: object = 0, end: object = 4, shape: object = (4,), dtype: object = "U8"
) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _real_header_of_99_mb(folder: Path, sign: Path) -> Path:
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 99_000_000) + b"{")
        file.truncate(8 + 99_000_000)
    return path


TWINS = b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
TWO_SHAPES = b'{"a":{"dtype":"U8","shape":[4],"shape":[2],"data_offsets":[0,4]}}'

SAFETENSORS = {
    "an empty file": Case(content(b""), "has only 0 bytes"),
    "a text": Case(content(b"hello, this is my model\n" * 9), "claims a header of"),
    "a web page": Case(content(b"\n <!DOCTYPE html><title>Sign in</title>"), "is a web page, not a model"),
    "an LFS pointer": Case(content(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"), "is a Git LFS pointer"),
    "a GGUF file": Case(content(b"GGUF" + struct.pack("<IQQQ", 3, 780, 20, 20) + b"general.architecture"
                                + struct.pack("<IQ", 8, 4) + b"flux"), "GGUF file (version 3, 780 tensors of flux)"),
    "a header of 2^62": Case(content(struct.pack("<Q", 1 << 62) + b"{}"), "claims a header of 4,611,686,018,427,387,904"),
    "a header of 99 MB that is not there": Case(
        content(struct.pack("<Q", 99_000_000) + b"{}"), "claims a header of 99,000,000 b"),
    "a header of 99 MB": Case(_real_header_of_99_mb, "claims a header of 99,000,000"),
    "a header longer than the file": Case(tensors(b"{}", claimed=500), "its header alone needs 508"),
    "ten million brackets": Case(tensors(b"[" * 10_000_000), "lists more than a million things"),
    "brackets in brackets": Case(tensors(b'{"a":' + b"[" * 900_000 + b"]" * 900_000 + b"}"), "a header that is not JSON"),
    "ten million commas": Case(tensors(b'{"a":[' + b"1," * 10_000_000 + b"1]}"), "lists more than a million things"),
    "a number of 5,000 digits": Case(tensors(b'{"a":' + b"9" * 5000 + b"}"), "a header that is not JSON"),
    "a header that is no text": Case(tensors(b'{"\xff\xfe":1}'), "a header that is not JSON"),
    "a list": Case(tensors([1, 2]), "a header that lists no tensors"),
    "a name that stands twice": Case(tensors(TWINS, b"1234"), "names 'a' twice in its header"),
    "an entry with two shapes": Case(tensors(TWO_SHAPES, b"1234"), "names 'shape' twice in its header"),
    "an entry that is a number": Case(tensors({"a": 7}), "has no proper entry for 'a'"),
    "a shape beyond all numbers": Case(tensors({"a": entry(0, 4, [1 << 62, 1 << 62])}, b"1234"), "a size that does not fit"),
    "a shape of 10^19": Case(tensors({"a": entry(0, 4, [10**19])}, b"1234"), "has no proper entry"),
    "a negative shape": Case(tensors({"a": entry(0, 4, [-2, -2])}, b"1234"), "has no proper entry"),
    "a shape of truths": Case(tensors({"a": entry(0, 1, [True])}, b"1"), "has no proper entry"),
    "a shape of 100,000 sides": Case(tensors({"a": entry(0, 4, [10**9] * 100_000)}, b"1234"), "has no proper entry"),
    "offsets that are fractions": Case(tensors({"a": entry(0.0, 4.5)}, b"12345"), "has no proper entry"),
    "offsets that are no numbers": Case(tensors(b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[NaN,4]}}', b"1234"),
                                        "has no proper entry"),
    "negative offsets": Case(tensors({"a": entry(-8, -4)}, b"1234"), "has no proper entry"),
    "offsets of 2^70": Case(tensors({"a": entry(1 << 70, (1 << 70) + 4)}, b"1234"), "has no proper entry"),
    "offsets the wrong way round": Case(tensors({"a": entry(4, 0)}, b"1234"), "a size that does not fit"),
    "three offsets": Case(tensors({"a": entry(0, 4) | {"data_offsets": [0, 2, 4]}}, b"1234"), "has no proper entry"),
    "overlapping tensors": Case(tensors({"a": entry(), "b": entry(2, 6)}, b"123456"), "a gap or an overlap before 'b'"),
    "a hole": Case(tensors({"a": entry(), "b": entry(6, 10)}, b"1234567890"), "a gap or an overlap before 'b'"),
    "data cut short": Case(tensors({"a": entry()}, b"12"), "bytes that its header promises"),
    "a type of its own": Case(
        tensors({"a": entry(dtype="F4096")}, b"1234"), "holds 'a' as 'F4096', a type that is not known"),
    "a type that is a list": Case(tensors({"a": entry(dtype=["F16"])}, b"1234"), "has no proper entry"),
    "metadata of numbers": Case(tensors({"__metadata__": {"a": 1}, "b": entry()}, b"1234"), "metadata that is not text"),
    "metadata that is a list": Case(tensors({"__metadata__": ["a"], "b": entry()}, b"1234"), "metadata that is not text"),
    "a name of 20 MB": Case(tensors({"x" * 20_000_000: entry()}, b"1234"), "names a tensor in 20,000,000 letters"),
    "a name that steers the terminal": Case(
        tensors({"a\x1b[2J\x07\u202e": entry()}, b"1234"), "such as a\\x1b[2J\\x07\\u202e"),
    "metadata with half a character": Case(
        tensors({"__metadata__": {"author": "\ud800"}, "a": entry()}, b"1234"), "with half a character"),
    "metadata named by half a character": Case(
        tensors({"__metadata__": {"\udfff": "me"}, "a": entry()}, b"1234"), "with half a character"),
    "a name with half a character": Case(tensors({"a\udc80": entry()}, b"1234"), "with half a character"),
    "no tensors": Case(tensors({}), "holds no tensors at all"),
    "only metadata": Case(tensors({"__metadata__": {"modelspec.title": "SDXL"}}), "holds no tensors at all"),
    "a pickle under another name": Case(content(pickle.dumps({}, 2) + bytes(600)), "is a pickled PyTorch file"),
    "a zip under another name": Case(content(b"PK\3\4" + bytes(600)), "is a pickled PyTorch file"),
}  # fmt: skip


# ------------------------------------------------------------------ pickles


def text(word: str) -> bytes:
    data = word.encode(errors="surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def command(sign: Path) -> bytes:
    return text(f"touch {sign}")


def zipped(program: Callable[[Path], bytes], compression: int = zipfile.ZIP_STORED):
    """A checkpoint of today with this program in it."""

    def make(folder: Path, sign: Path) -> Path:
        with zipfile.ZipFile(folder / "model.ckpt", "w", compression) as archive:
            archive.writestr("archive/data.pkl", program(sign))
            archive.writestr("archive/data/0", bytes(4))
            archive.writestr("archive/version", "3\n")
        return folder / "model.ckpt"

    return make


def in_a_row(program: Callable[[Path], bytes]):
    """A checkpoint of old: three harmless pickles, then this program."""

    def make(folder: Path, sign: Path) -> Path:
        start = MAGIC + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
        (folder / "model.ckpt").write_bytes(start + program(sign))
        return folder / "model.ckpt"

    return make


RUNS = {
    "GLOBAL and REDUCE": lambda sign: b"\x80\x02cposix\nsystem\n" + command(sign) + b"\x85R.",
    "STACK_GLOBAL": lambda sign: (
        b"\x80\x04" + text("posix") + text("system") + b"\x93" + command(sign) + b"\x85R."
    ),
    "INST": lambda sign: b"\x80\x02(" + command(sign) + b"iposix\nsystem\n.",
    "OBJ": lambda sign: b"\x80\x02(cposix\nsystem\n" + command(sign) + b"o.",
    "NEWOBJ": lambda sign: b"\x80\x02csubprocess\nPopen\n" + command(sign) + b"\x85\x81.",
    "NEWOBJ_EX": lambda sign: b"\x80\x04csubprocess\nPopen\n" + command(sign) + b"\x85}\x92.",
    "eval": lambda sign: b"\x80\x02cbuiltins\neval\n" + text(f"open({str(sign)!r}, 'w')") + b"\x85R.",
    "a name with dots": lambda sign: (
        b"\x80\x04" + text("torch") + text("os.system") + b"\x93" + command(sign) + b"\x85R."
    ),
    "getattr": lambda sign: b"\x80\x02cbuiltins\ngetattr\n(cbuiltins\n__import__\n" + text("x") + b"tR.",
    "torch.load": lambda sign: b"\x80\x02ctorch\nload\n" + text(str(sign)) + b"\x85R.",
    "numpy's own loader": lambda sign: b"\x80\x02cnumpy\nload\n" + text(str(sign)) + b"\x85R.",
    "an extension code": lambda sign: b"\x80\x02\x82\x01.",
    "a large extension code": lambda sign: b"\x80\x02\x84\xff\xff\xff\x7f.",
}
WEIGHT = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + b"ctorch\nFloatStorage\n"
    + text("0") + text("cpu") + b"K\x01tQK\x00K\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
)  # fmt: skip


def _multiplied(outer: list[str], inner: list[str], value: bytes = WEIGHT) -> bytes:
    """One dict of `inner` names for one value, under each name of `outer`."""
    held = value + b"q\x010}(" + b"".join(text(name) + b"h\x01" for name in inner) + b"uq\x020"
    return b"\x80\x02" + held + b"}(" + b"".join(text(name) + b"h\x02" for name in outer) + b"u."


HOLDS = {
    "BUILD on a foreign object": (lambda sign: b"\x80\x02ctorch\nFloatStorage\n}" + text("dtype") + text("x") + b"sb.",
                                  "it holds a change to an object"),
    "a reference outside (PERSID)": (lambda sign: b"\x80\x02Pfile:///etc/passwd\n.", "it holds a reference to something"),
    "a reference outside (BINPERSID)": (lambda sign: b"\x80\x02" + text("/etc/passwd") + b"Q.", "it holds a reference to"),
    "a memo of 16 GB": (lambda sign: b"\x80\x02}r\xff\xff\xff\x7f.", "holds no weights by name"),
    "a buffer of 64 GB": (lambda sign: b"\x80\x05\x96" + struct.pack("<Q", 1 << 36) + b".", "it holds steps that weights"),
    "a text of 2^60": (lambda sign: b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.", "ends too early or is damaged"),
    "a frame of 2^62": (lambda sign: b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b".", "ends too early or is damaged"),
    "seven million dicts": (lambda sign: b"\x80\x02" + b"}" * 7_000_000 + b".", "it holds a program of more than a million"),
    "seven million marks": (lambda sign: b"\x80\x02" + b"(" * 7_000_000 + b".", "it holds a program of more than a million"),
    "a key that is hashed for ever": (
        lambda sign: b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"0}h\x00Ns.", "it holds an entry without a name"),
    "lists in lists": (lambda sign: b"\x80\x02" + b"]" * 400_000 + b"a" * 399_999 + b".", "holds no weights by name"),
    "a tensor of nothing": (
        lambda sign: b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.", "it holds a tensor without"),
    "360,000 weights of 600 names": (lambda sign: _multiplied([f"{n}" for n in range(600)], [f"{n}" for n in range(600)]),
                              "lists more than 100,000 tensors"),
    "a name of 1 MB before 10,000": (lambda sign: _multiplied(["x" * 1_000_000], [f"{n}" for n in range(10_000)]),
                                     "names its tensors in 1,000,002 letters"),
    "long names again and again": (lambda sign: _multiplied(["x" * 450 + f"{n}" for n in range(300)],
                                   ["\U0001f600" * 450 + f"{n}" for n in range(300)]), "names its tensors in 8,3"),
    "nothing a million times": (lambda sign: _multiplied([f"{n}" for n in range(5000)], [f"{n}" for n in range(5000)], b"N"),
                                "lists more than a million things"),
    "a text of 1 MB a thousand times": (
        lambda sign: b"\x80\x02}" + text("a") + WEIGHT + b"s" + text("n") + text("x" * 1_000_000) + b"q\x05s("
        + b"".join(text(f"{n}") + b"h\x05" for n in range(1000)) + b"u.", "holds one text again and again"),
    "parameters given to thousands": (
        lambda sign: b"\x80\x02}q\x01" + text("_parameters") + b"}(" + b"".join(
            text(f"{n}") + b"N" for n in range(5000)) + b"us0" + (
            b"ctorch.nn.modules.container\nParameterDict\n)Rh\x01b0" * 5000) + b"}.",
        "it holds one list of parameters again and again"),
    "a name with half a character, pickled": (
        lambda sign: b"\x80\x02}" + text("a\ud800") + WEIGHT + b"s.", "with half a character"),
    "a text with half a character, pickled": (
        lambda sign: b"\x80\x02}" + text("a") + WEIGHT + b"s" + text("author") + text("\udfff") + b"s.",
        "with half a character"),
    "opcodes that are none": (lambda sign: b"\x80\x02\xfe\xfe\xfe.", "ends too early or is damaged"),
}  # fmt: skip


def _good(folder: Path) -> bytes:
    """A checkpoint of one weight in four bytes, as PyTorch writes it."""
    program = b"\x80\x02}" + text("a") + WEIGHT + b"s."
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", struct.pack("<f", 1.5))
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def changed(change: Callable[[bytes], bytes]):
    def make(folder: Path, sign: Path) -> Path:
        (folder / "model.ckpt").write_bytes(change(_good(folder)))
        return folder / "model.ckpt"

    return make


def _field(whole: bytes, name: bytes, offset: int, layout: str, value: int) -> bytes:
    """One number of an entry in the list at the end of a zip, changed."""
    at = whole.rindex(name) - 46 + offset
    return whole[:at] + struct.pack(layout, value) + whole[at + struct.calcsize(layout) :]


def _bomb(folder: Path, sign: Path) -> Path:
    with zipfile.ZipFile(folder / "model.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + bytes(300_000_000))
    return folder / "model.ckpt"


def _lying_bomb(folder: Path, sign: Path) -> Path:
    path = _bomb(folder, sign)
    path.write_bytes(_field(path.read_bytes(), b"archive/data.pkl", 24, "<I", 1000))
    return path


def _odd_bomb(compression: int):
    def make(folder: Path, sign: Path) -> Path:
        path = folder / "model.ckpt"
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02" + bytes(30_000_000))
        path.write_bytes(_field(path.read_bytes(), b"archive/data.pkl", 24, "<I", 100))
        return path

    return make


def _broken_lzma(folder: Path, sign: Path) -> Path:
    path = folder / "model.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    whole = path.read_bytes()
    at = whole.index(b"archive/data.pkl") + len(b"archive/data.pkl")
    path.write_bytes(whole[: at + 4] + b"\xff" * 5 + whole[at + 9 :])  # LZMA's own properties
    return path


def _bomb_beside(folder: Path, sign: Path) -> Path:
    """In the entry that tells the order of bytes, and is read whole."""
    path = folder / "model.ckpt"
    path.write_bytes(_good(folder))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/byteorder", b"little" + bytes(300_000_000))
    path.write_bytes(_field(path.read_bytes(), b"archive/byteorder", 24, "<I", 6))
    return path


def _nested(folder: Path, sign: Path) -> Path:
    with zipfile.ZipFile(folder / "model.ckpt", "w") as archive:
        archive.writestr("archive/inner.ckpt", _good(folder))
    return folder / "model.ckpt"


def _many_entries(folder: Path, sign: Path) -> Path:
    with zipfile.ZipFile(folder / "model.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
        for number in range(30_000):
            twin = zipfile.ZipInfo(f"archive/data/{number:0100}")
            twin.header_offset = twin.CRC = 0
            archive.filelist.append(twin)
    return folder / "model.ckpt"


def _tar(folder: Path, sign: Path) -> Path:
    """What PyTorch wrote before 0.1.10: pickles in a tar."""
    with tarfile.open(folder / "model.ckpt", "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            data = RUNS["GLOBAL and REDUCE"](sign)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return folder / "model.ckpt"


PICKLES = {
    **{f"{name}, zip": Case(zipped(program), "opening it would run") for name, program in RUNS.items()},
    **{f"{name}, in a row": Case(in_a_row(program), "opening it would run") for name, program in RUNS.items()},
    **{name: Case(zipped(program), said) for name, (program, said) in HOLDS.items()},
    "a bare pickle": Case(
        lambda folder, sign: content(RUNS["GLOBAL and REDUCE"](sign), "model.bin")(folder, sign), "opening it would run"),
    "the oldest format": Case(_tar, "it is a tar archive"),
    "a compressed bomb": Case(_bomb, "claims 300,000,002 bytes of names and shapes"),
    "a bomb that hides its size": Case(_lying_bomb, "is damaged"),
    "a bzip2 bomb that hides its size": Case(_odd_bomb(zipfile.ZIP_BZIP2), "packed in a way that PyTorch cannot read"),
    "an LZMA bomb that hides its size": Case(_odd_bomb(zipfile.ZIP_LZMA), "packed in a way that PyTorch cannot read"),
    "LZMA that is none": Case(_broken_lzma, "packed in a way that PyTorch cannot read"),
    "a bomb beside the program": Case(_bomb_beside, "is damaged"),
    "a zip in a zip": Case(_nested, "a zip, but not one of PyTorch's"),
    "a list of 30,000 entries": Case(_many_entries, "is damaged"),
    "a locked zip": Case(changed(lambda whole: _field(whole, b"archive/data/0", 8, "<H", 1)), "is locked with a password"),
    "a zip cut short": Case(changed(lambda whole: whole[:-40]), "is damaged"),
    "only half of a zip": Case(changed(lambda whole: whole[: len(whole) // 2]), "is damaged"),
    "a wrong checksum": Case(changed(lambda whole: _field(whole, b"archive/data.pkl", 16, "<I", 7)), "is damaged"),
    "an entry that is not there": Case(changed(lambda whole: whole.replace(b"archive/data/0", b"archive/data/9")),
                                       "lacks the data of 'a'"),
    "an entry that is too long": Case(changed(lambda whole: _field(whole, b"archive/data/0", 24, "<I", 4096)),
                                      "a size that it has not"),
    "an entry that is elsewhere": Case(changed(lambda whole: _field(whole, b"archive/data/0", 42, "<I", 0)),
                                       "where it does not lie", late=True),
    "a zip of photos": Case(lambda folder, sign: _photos(folder), "a zip, but not one of PyTorch's"),
    "a web page as .ckpt": Case(content(b"<!DOCTYPE html><title>Quota exceeded</title>", "model.ckpt"), "it is a web page"),
    "an empty .ckpt": Case(content(b"", "model.ckpt"), "it is an empty file"),
    "a program": Case(content(b"\x7fELF" + bytes(600), "model.pt"), "it is a program"),
}  # fmt: skip


def _photos(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "model.ckpt", "w") as archive:
        archive.writestr("photo.jpg", b"\xff\xd8\xff")
    return folder / "model.ckpt"


# ------------------------------------------------------------------ what is no file, and folders


def _loop(folder: Path, sign: Path) -> Path:
    (folder / "a.safetensors").symlink_to(folder / "b.safetensors")
    (folder / "b.safetensors").symlink_to(folder / "a.safetensors")
    return folder / "a.safetensors"


def _pipe(name: str):
    def make(folder: Path, sign: Path) -> Path:
        os.mkfifo(folder / name)
        return folder / name

    return make


def _link_to(place: str, name: str):
    def make(folder: Path, sign: Path) -> Path:
        (folder / name).symlink_to(place)
        return folder / name

    return make


def folder_with(files: dict[str, object]):
    """A Diffusers folder of these files: bytes as they are, anything else as JSON."""

    def make(folder: Path, sign: Path) -> Path:
        for name, value in files.items():
            path = folder / "model" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
        return folder / "model"

    return make


INDEX = {"_class_name": "StableDiffusionPipeline"}
SHARD = struct.pack("<Q", 2) + b"{}"
UNET = "unet/diffusion_pytorch_model"

PLACES = {
    "a loop of links": Case(_loop, "cannot be read: Too many levels of symbolic links"),
    "a pipe": Case(_pipe("model.safetensors"), "is a pipe or a device"),
    "a pipe as .ckpt": Case(_pipe("model.ckpt"), "is a pipe or a device"),
    "a device": Case(_link_to("/dev/zero", "model.safetensors"), "is a pipe or a device"),
    "a link to nothing": Case(_link_to("/nowhere/at/all", "model.safetensors"), "There is no file"),
    "an empty folder": Case(folder_with({"x/y": b""}), "is not a Diffusers folder"),
    "an index of brackets": Case(folder_with({"model_index.json": b"[" * 100_000}), "is not JSON"),
    "an index that is a list": Case(folder_with({"model_index.json": [1]}), "holds no .safetensors weights in unet/"),
    "pickled weights alone": Case(
        folder_with({"config.json": {}, "pytorch_model.bin": b"\x80\x02"}), "as pytorch_model.bin only"),
    "a missing shard": Case(folder_with({"model_index.json": INDEX, f"{UNET}-00001-of-00002.safetensors": SHARD,
        f"{UNET}.safetensors.index.json": {"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors",
        "b": "diffusion_pytorch_model-00002-of-00002.safetensors"}}}),
        "lacks diffusion_pytorch_model-00002-of-00002.safetensors (1 of 2 files are there)"),
    "a shard of another case": Case(folder_with({"model_index.json": INDEX, f"{UNET}-00001-of-00001.SafeTensors": SHARD,
        f"{UNET}-x.safetensors": SHARD,
        f"{UNET}.safetensors.index.json": {"weight_map": {"a": "diffusion_pytorch_model-00001-of-00001.safetensors"}}}),
        "lacks diffusion_pytorch_model-00001-of-00001.safetensors"),
    "an index that leads outside": Case(folder_with({"model_index.json": INDEX, f"{UNET}-1.safetensors": SHARD,
        f"{UNET}.safetensors.index.json": {"weight_map": {"a": "../../../../etc/passwd"}}}),
        "names a file outside its folder"),
    "an index of numbers": Case(folder_with({"model_index.json": INDEX, f"{UNET}-1.safetensors": SHARD,
        f"{UNET}.safetensors.index.json": {"weight_map": [1, 2]}}), "lacks every file of its index"),
}  # fmt: skip

CASES = {**SAFETENSORS, **PICKLES, **PLACES}
