"""The program that a PyTorch pickle is, run with nothing in reach: inert stand-ins for what plain weights need.

A pickle may call anything. Here every name that it asks for beyond a short list is the reason to refuse the file, and
what it may do with the list is bounded: in bytes, in steps, in what can be a key, in what can be allocated at once.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO, ClassVar, NoReturn

from fastsd_lib.core.tensor_file import BYTES_PER_VALUE

MAX_PICKLE_BYTES = 8 << 20  # of names and shapes: a large model has one megabyte of them
MAX_READS = 1_000_000  # a checkpoint of 2,500 tensors takes 130,000; each can cost 80 bytes and a microsecond
MAX_COPIED = (
    100_000  # entries of ParameterDicts: an old embedding has one, and one state can be given to many
)
DTYPES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "Float8_e4m3fnStorage": "F8_E4M3", "Float8_e5m2Storage": "F8_E5M2",
}  # fmt: skip
# Types that PyTorch names one by one, beside a storage of bare bytes.
NAMED_DTYPES = {
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "uint16": "U16", "uint32": "U32", "uint64": "U64",
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


class Refused(Exception):
    """The program does something that plain weights do not need."""


class Foreign(Refused):
    """It asks for a function or a class by name; whoever opens it as pickles are opened would run that."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a pickle describes it: a view of a storage, whose bytes lie elsewhere in the file."""

    dtype: str
    shape: tuple[int, ...]
    storage: str  # its key; tensors with one key share their bytes
    storage_bytes: int
    offset: int  # of the first value in the storage, in values
    stride: tuple[int, ...]  # in values

    @property
    def contiguous(self) -> bool:
        """Whether its values lie in a row, in the order of its axes (PyTorch's own rule)."""
        expected = 1
        for length, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if length == 0:
                return True
            if length != 1 and step != expected:
                return False
            expected *= length
        return True

    @property
    def values(self) -> int:
        """How many values of the storage lie between its first and its last, both counted."""
        if not prod(self.shape):
            return 0
        return 1 + sum((length - 1) * step for length, step in zip(self.shape, self.stride, strict=True))


def run_pickle(program: BinaryIO | Bounded) -> tuple[Any, dict[str, tuple[int, int]]]:
    """What the pickle at the position of `program` makes, tensors as `StoredTensor`; and the storages that it names.

    The latter: key -> (bytes of it, bytes of one of its values). Refused for anything beyond plain weights; any other
    exception for a program that stumbles. Nothing is executed.
    """
    reader = _Reader(program if isinstance(program, Bounded) else Bounded(program))
    return reader.load(), reader.storages


class Bounded:
    """A file of which only so many bytes are handed out, in so many reads."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle, self._left, self._reads = handle, MAX_PICKLE_BYTES, MAX_READS

    def read(self, count: int) -> bytes:
        self._reads -= 1
        if self._reads < 0:
            raise Refused("a program of more than a million steps")
        data = self._handle.read(count if 0 <= count <= self._left else self._left)
        self._left -= len(data)
        return data

    def readinto(self, buffer: bytearray) -> int:
        raise Refused("a buffer outside the file")

    def readline(self) -> bytes:
        self._reads -= 1
        data = self._handle.readline(self._left)
        self._left -= len(data)
        return data


# ------------------------------------------------------------------ the stand-ins


@dataclass(frozen=True)
class _StorageType:
    dtype: str


@dataclass(frozen=True)
class _Dtype:
    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str
    size_bytes: int
    view: int = 0  # where it begins in the storage `key`, in values: very old files nest them


class _Entries(OrderedDict[Any, Any]):
    """A dict with order; state dicts bring version numbers as their state, which nobody needs here."""

    def __init__(self, *given: Any) -> None:
        if given:  # copying what is given can be asked for again and again
            raise Refused("an OrderedDict made of a list")
        super().__init__()


class _Parameters(dict[Any, Any]):
    """torch.nn.ParameterDict: old embeddings keep their vectors in one."""

    def __init__(self) -> None:
        super().__init__()


class Inert:
    """What trainers leave beside the weights: it can be made and kept, and does nothing."""

    def __init__(self, *given: Any) -> None:
        pass


def _size(values: Any = ()) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or len(values) > 64:
        raise Refused("a shape of an unknown kind")
    return tuple(_whole(one) for one in values)


def _whole(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 2**63:
        raise Refused("a shape that is no shape")
    return number


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any = (), *rest: Any) -> StoredTensor:
    if not isinstance(storage, _Storage):
        raise Refused("a tensor without a storage")
    return _view(storage, storage.dtype, offset, shape, stride)


def _tensor_of_type(
    storage: Any, offset: Any, shape: Any, stride: Any, needs: Any, hooks: Any, dtype: Any, *rest: Any
) -> StoredTensor:
    if not isinstance(storage, _Storage) or not isinstance(dtype, _Dtype):
        raise Refused("a tensor without a storage")
    return _view(storage, dtype.name, offset, shape, stride)


def _view(storage: _Storage, dtype: str, offset: Any, shape: Any, stride: Any) -> StoredTensor:
    shape, stride, offset = _size(shape), _size(stride), _whole(offset) + storage.view
    if len(shape) != len(stride):
        raise Refused("a shape that is no shape")
    one = StoredTensor(dtype, shape, storage.key, storage.size_bytes, offset, stride)
    if (offset + one.values) * BYTES_PER_VALUE[dtype] > storage.size_bytes and one.values:
        raise Refused("a tensor larger than its storage")
    return one


def _parameter(data: Any, *rest: Any) -> Any:
    return data


# What plain weights are made of, and what trainers leave beside them; every other name is refused.
_STAND_INS: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Entries,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_type,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): _size,
    ("torch.storage", "UntypedStorage"): _StorageType("U8"),
    ("torch.nn.modules.container", "ParameterDict"): _Parameters,
    **{("torch", name): _StorageType(dtype) for name, dtype in DTYPES.items()},
    **{("torch", name): _Dtype(dtype) for name, dtype in NAMED_DTYPES.items()},
    **dict.fromkeys(
        (
            ("__builtin__", "set"), ("builtins", "set"), ("_codecs", "encode"), ("numpy", "dtype"),
            ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"),
            ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
        ),
        Inert,
    ),
}  # fmt: skip


class _Reader(pickle._Unpickler):  # type: ignore[name-defined]
    """The reader written in Python: the one in C gives a hostile memo index all the memory it asks for."""

    def __init__(self, program: Bounded) -> None:
        super().__init__(program)  # type: ignore[arg-type]
        self.storages: dict[str, tuple[int, int]] = {}
        self._copied = 0

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise Foreign(f"{module}.{name}")
        return _STAND_INS[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and isinstance(pid[1], _StorageType)):
            raise Refused("a reference to something outside the file")
        dtype, key, view = pid[1].dtype, pid[2], pid[5] if len(pid) == 6 else None
        if type(key) not in (str, int):
            raise Refused("a storage without a name")
        size = _whole(pid[4]) * BYTES_PER_VALUE[dtype]
        if self.storages.setdefault(str(key), (size, BYTES_PER_VALUE[dtype])) != (
            size,
            BYTES_PER_VALUE[dtype],
        ):
            raise Refused("one storage under two sizes")
        within = _whole(view[1]) if isinstance(view, tuple) and len(view) == 3 else 0
        return _Storage(dtype, str(key), size, within)

    def get_extension(self, code: int) -> NoReturn:
        raise Foreign(f"extension {code}")

    def load_build(self) -> None:
        """State for an object: only a ParameterDict has one that matters."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Parameters):
            inner = state.get("_parameters", {}) if isinstance(state, dict) else {}
            if isinstance(inner, dict) and not target:
                self._copied += len(inner)
                if self._copied > MAX_COPIED:
                    raise Refused("one list of parameters again and again")
                target.update(inner)
        elif not isinstance(target, _Entries | Inert):
            raise Refused("a change to an object that is not its own")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], (key, value))

    def load_setitems(self) -> None:
        pairs = self.pop_mark()
        self._set(self.stack[-1], pairs)

    def load_dict(self) -> None:
        pairs: list[Any] = self.pop_mark()
        made: dict[Any, Any] = {}
        self._set(made, pairs)
        self.append(made)

    def _set(self, target: Any, pairs: Any) -> None:
        if not isinstance(target, dict) or len(pairs) % 2:
            raise Refused("an entry of something that has none")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # Nothing whose hash runs through what it holds: a tuple of tuples of itself would take for ever.
            plain = type(key) in (str, float, bool, type(None)) or key is Inert
            if not plain and (type(key) is not int or key.bit_length() > 64):
                raise Refused("an entry without a name")
            target[key] = value

    def load_frame(self) -> None:
        self.read(8)  # its content follows like any other, and so is counted

    def load_refused(self) -> None:
        raise Refused("steps that weights do not need")

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,  # type: ignore[attr-defined]
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.FRAME[0]: load_frame,
        **dict.fromkeys(
            (one[0] for one in (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.FROZENSET,
                                pickle.EMPTY_SET, pickle.ADDITEMS, pickle.DUP)),
            load_refused,
        ),
    }  # fmt: skip
