"""Widths without torch, bit for bit as torch does them."""

from __future__ import annotations

import numpy as np
import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.casting import cast_chunks, target_dtype


def test_every_half_and_a_million_floats_round_as_in_torch():
    import torch

    rng = np.random.default_rng(1)
    floats = np.concatenate(
        [
            rng.standard_normal(1_000_000).astype("<f4") * 100,
            np.array([0.0, -0.0, np.inf, -np.inf, 1e-8], "<f4"),
        ]
    )
    tensor = torch.from_numpy(floats)
    for target, width in (("F16", torch.float16), ("BF16", torch.bfloat16)):
        ours = b"".join(cast_chunks([floats.tobytes()], "w", "F32", target))
        assert ours == tensor.to(width).view(torch.int16).numpy().tobytes()
    halves = np.arange(65536, dtype="<u2")
    ours = np.frombuffer(b"".join(cast_chunks([halves.tobytes()], "w", "BF16", "F32")), "<f4")
    theirs = torch.from_numpy(halves.view("<i2").copy()).view(torch.bfloat16).float().numpy()
    assert np.array_equal(ours, theirs, equal_nan=True)


def test_a_nan_stays_one_in_bf16():
    ours = np.frombuffer(
        b"".join(cast_chunks([np.array([np.nan], "<f4").tobytes()], "w", "F32", "BF16")), "<u2"
    )
    assert ours[0] & 0x7F80 == 0x7F80 and ours[0] & 0x007F


def test_whole_numbers_keep_their_dtype_and_unknown_widths_are_named():
    assert target_dtype("I64", "fp16") == "I64"
    assert target_dtype("F32", None) == "F32"
    with pytest.raises(UserError, match=r"No dtype 'int8' \(there: fp16, bf16, fp32\)"):
        target_dtype("F32", "int8")
