"""Core ML's programs computed by numpy: the second witness for packages that only a Mac can run.

Only the operations that ViTs are made of; the formulas are those of coremltools' operator reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import erf


def probabilities(program: Any, image: np.ndarray) -> np.ndarray:
    """What `classify` (or the only output) is given for `image`, (1, 3, H, W) with values 0 to 255."""
    main = program.functions["main"]
    known: dict[str, np.ndarray] = {next(iter(main.inputs)): image.astype(np.float64)}
    for operation in main.operations:
        if operation.op_type == "classify":
            return known[operation.probabilities.name]
        if operation.op_type == "const":
            continue
        given = {name: _values(known, value) for name, value in operation.inputs.items()}
        known[operation.outputs[0].name] = _COMPUTED[operation.op_type](operation, given)
    return known[main.outputs[0].name]


def _values(known: dict[str, np.ndarray], value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_values(known, one) for one in value]
    if value.name in known:
        return known[value.name]
    held = value.val
    return np.asarray(held, np.float64) if np.asarray(held).dtype.kind == "f" else held


def _layer_norm(operation: Any, given: dict) -> np.ndarray:
    axes = tuple(int(axis) for axis in given["axes"])
    centred = given["x"] - given["x"].mean(axes, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(axes, keepdims=True) + given["epsilon"]) * given["gamma"]
        + given["beta"]
    )


def _conv(operation: Any, given: dict) -> np.ndarray:
    """Patches only: the stride is the kernel, nothing is padded."""
    weight, (rows, columns) = given["weight"], given["weight"].shape[2:]
    assert tuple(given["strides"]) == (rows, columns)
    batch, channels, height, width = given["x"].shape
    cut = given["x"].reshape(batch, channels, height // rows, rows, width // columns, columns)
    return np.einsum("bcyixj,ocij->boyx", cut, weight) + given["bias"].reshape(1, -1, 1, 1)


def _slice(operation: Any, given: dict) -> np.ndarray:
    x, squeezed = given["x"], given.get("squeeze_mask")
    index: list[Any] = []
    for axis in range(x.ndim):
        if squeezed is not None and squeezed[axis]:
            index.append(int(given["begin"][axis]))
            continue
        whole = given.get("end_mask") is not None and given["end_mask"][axis]
        index.append(slice(int(given["begin"][axis]), None if whole else int(given["end"][axis])))
    return x[tuple(index)]


def _softmax(operation: Any, given: dict) -> np.ndarray:
    powers = np.exp(given["x"] - given["x"].max(int(given["axis"]), keepdims=True))
    return powers / powers.sum(int(given["axis"]), keepdims=True)


def _matmul(operation: Any, given: dict) -> np.ndarray:
    x = np.swapaxes(given["x"], -1, -2) if given.get("transpose_x") else given["x"]
    y = np.swapaxes(given["y"], -1, -2) if given.get("transpose_y") else given["y"]
    return x @ y


def _gelu(operation: Any, given: dict) -> np.ndarray:
    assert given["mode"] == "EXACT"
    return 0.5 * given["x"] * (1 + erf(given["x"] / np.sqrt(2)))


_COMPUTED = {
    "add": lambda operation, given: given["x"] + given["y"],
    "sub": lambda operation, given: given["x"] - given["y"],
    "mul": lambda operation, given: given["x"] * given["y"],
    "real_div": lambda operation, given: given["x"] / given["y"],
    "sigmoid": lambda operation, given: 1 / (1 + np.exp(-given["x"])),
    "cast": lambda operation, given: given["x"],
    "linear": lambda operation, given: given["x"] @ given["weight"].T + given["bias"],
    "reshape": lambda operation, given: given["x"].reshape([int(one) for one in given["shape"]]),
    "transpose": lambda operation, given: given["x"].transpose([int(one) for one in given["perm"]]),
    "concat": lambda operation, given: np.concatenate(given["values"], int(given["axis"])),
    "constexpr_affine_dequantize": lambda operation, given: operation.materialized_val_inference().astype(np.float64),
    "layer_norm": _layer_norm,
    "conv": _conv,
    "slice_by_index": _slice,
    "softmax": _softmax,
    "matmul": _matmul,
    "gelu": _gelu,
}  # fmt: skip
