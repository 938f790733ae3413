"""PyTorch checkpoints (.ckpt, .pt): names and shapes of their tensors, read without running what is in them.

A pickle is a small program that may call anything. Here it is given inert stand-ins for the few names that plain
weights need, and nothing else: whatever it asks for beyond them is the reason to refuse the file.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NoReturn

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.file_kinds import UNKNOWN, kind_of_file, with_article
from fastsd_lib.core.tensor_file import Tensor
from fastsd_lib.core.text import escaped

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
MAX_PICKLE_BYTES = 8 << 20  # of names and shapes: a large model has one megabyte of them
OLD_FORMAT = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # PyTorch before 1.6 wrote pickles in a row
_NUMBERS_IN_A_ROW = 3  # magic number, protocol version, facts about the machine: what precedes the weights
DTYPES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "Float8_e4m3fnStorage": "F8_E4M3", "Float8_e5m2Storage": "F8_E5M2",
}  # fmt: skip


@dataclass(frozen=True)
class PickleHeader:
    """What a checkpoint says of itself. `start` and `end` of its tensors are 0: the bytes lie elsewhere."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]  # entries beside the weights that are text
    compressed: bool  # its zip was packed anew by another program


def is_pickled(path: Path) -> bool:
    """Whether `path` is to be read as a PyTorch checkpoint: by its name, unless it holds safetensors."""
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        return False
    with path.open("rb") as handle:
        return handle.read(9)[8:] != b"{"


def read_pickle_header(path: Path) -> PickleHeader:
    """Names, types and shapes of a checkpoint's tensors; no weight is read and nothing of it is executed.

    Understands `{"state_dict": {...}}` and a bare dict of tensors, in both of PyTorch's formats. UserError for a
    file that is missing, cut short, another kind of file, or asks for more than plain weights.
    """
    try:
        kind = kind_of_file(path)
        if kind == "zip archive":
            value, compressed = _from_zip(path)
        else:
            value, compressed = _from_pickles_in_a_row(path, kind), False
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.", fix="check the path.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a checkpoint.", fix="name the file itself.") from None
    if not isinstance(value, dict):
        raise _damaged(path, "holds no weights by name")
    inner = value.get("state_dict", value)
    weights = inner if isinstance(inner, dict) else {}
    tensors = {key: one for key, one in weights.items() if isinstance(key, str) and isinstance(one, Tensor)}
    if not tensors:
        raise _damaged(path, "holds no weights by name")
    texts = {key: one for key, one in value.items() if isinstance(key, str) and isinstance(one, str)}
    return PickleHeader(path, tensors, texts, compressed)


def _from_zip(path: Path) -> tuple[Any, bool]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            found = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            if len(found) != 1:
                raise _damaged(path, "is a zip, but not one of PyTorch's")
            if found[0].file_size > MAX_PICKLE_BYTES:
                raise _damaged(path, f"claims {found[0].file_size:,} bytes of names and shapes")
            program = archive.read(found[0])
            compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError):
        raise _damaged(path, "ends too early or is damaged") from None
    return _read(path, io.BytesIO(program)), compressed


def _from_pickles_in_a_row(path: Path, kind: str) -> Any:
    with path.open("rb") as handle:
        start = handle.read(len(OLD_FORMAT))
        if start != OLD_FORMAT:
            what = "a file of another kind" if kind == UNKNOWN else with_article(kind)
            if start[:1] == b"\x80":
                _read(path, io.BytesIO(start + handle.read(MAX_PICKLE_BYTES)))  # says what it would have run
                what = "a pickle, but not one of PyTorch's"
            fix = "download or copy it again; a web page is what a link gives that wants you to log in."
            raise UserError(f"{path} is no PyTorch checkpoint: it is {what}.", fix=fix)
        handle.seek(0)
        bounded = _Bounded(handle)
        for _ in range(_NUMBERS_IN_A_ROW):
            _read(path, bounded)
        return _read(path, bounded)


def _read(path: Path, program: Any) -> Any:
    try:
        return _Reader(program).load()
    except _Refused as refused:
        raise UserError(
            f"{path} is refused: opening it would run {escaped(str(refused))[:120]}; only plain weights are read.",
            fix="take the model's .safetensors file, from a source that you trust.",
        ) from None
    except UserError:
        raise
    except Exception:  # a hostile program can make the reader stumble in any way it likes
        raise _damaged(path, "ends too early or is damaged") from None


class _Refused(Exception):
    """The program asked for something that plain weights do not need."""


class _Bounded:
    """A file of which only the first `MAX_PICKLE_BYTES` are handed out."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle, self._left = handle, MAX_PICKLE_BYTES

    def read(self, count: int) -> bytes:
        return self._counted(self._handle.read(min(max(count, 0), self._left)))

    def readinto(self, buffer: bytearray) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readline(self) -> bytes:
        return self._counted(self._handle.readline(self._left))

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data


@dataclass(frozen=True)
class _StorageType:
    dtype: str


def _tensor(storage: Any, offset: Any, shape: Any, *rest: Any) -> Tensor:
    if not isinstance(storage, _StorageType):
        raise _Refused("a tensor without a storage")
    return Tensor(storage.dtype, tuple(int(length) for length in shape), 0, 0)


def _parameter(data: Any, *rest: Any) -> Any:
    return data


# What plain weights are made of; every other name is refused.
_STAND_INS: dict[tuple[str, str], Callable[..., Any] | _StorageType] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): tuple,
    **{("torch", name): _StorageType(dtype) for name, dtype in DTYPES.items()},
}


class _Reader(pickle._Unpickler):  # type: ignore[name-defined]
    """The reader written in Python: the one in C gives a hostile memo index all the memory it asks for."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise _Refused(f"{module}.{name}")
        return _STAND_INS[module, name]

    def persistent_load(self, pid: Any) -> Any:
        if not (isinstance(pid, tuple) and len(pid) >= 5 and isinstance(pid[1], _StorageType)):
            raise _Refused("a reference to something outside the file")
        return pid[1]

    def get_extension(self, code: int) -> NoReturn:
        raise _Refused(f"extension {code}")

    def load_build(self) -> None:
        """State for an object: state dicts carry version numbers so, which nobody needs here."""
        self.stack.pop()
        if not isinstance(self.stack[-1], OrderedDict):
            raise _Refused("a change to an object that is not its own")

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}  # type: ignore[attr-defined]


def _damaged(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} is not a whole PyTorch checkpoint: it {what}.", fix="download or copy it again."
    )
