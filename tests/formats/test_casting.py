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


def through(chunk: bytes, source: str, target: str) -> bytes:
    return b"".join(cast_chunks([chunk], "w", source, target))


def ties_and_edges() -> np.ndarray:
    """Every fp16 and bf16 number, the middle between each and the next, and the float32 on either side of it."""
    halves = np.arange(65536, dtype="<u2").view("<f2").astype("<f4")
    brains = (np.arange(65536, dtype="<u4") << 16).view("<f4")
    found = []
    for grid in (halves[np.isfinite(halves)], brains[np.isfinite(brains)]):
        between = grid.view("<u4") + (0x1000 if grid.size < 65000 else 0x8000)
        between = between.astype("<u4").view("<f4")
        with np.errstate(invalid="ignore"):
            found += [
                grid,
                between,
                np.nextafter(between, np.float32(0)),
                np.nextafter(between, np.float32(9)),
            ]
    small = (np.arange(1 << 18, dtype="<u4") * 3697).view("<f4")  # subnormal in fp16, to the last bit
    return np.concatenate([*found, small])


@pytest.mark.parametrize(("target", "largest"), [("F16", 65519.0), ("BF16", 3.38e38)])
def test_ties_subnormals_and_edges_round_as_in_torch(target, largest):
    import torch

    values = ties_and_edges()
    values = values[np.isfinite(values) & (np.abs(values) <= largest)]
    width = {"F16": torch.float16, "BF16": torch.bfloat16}[target]
    theirs = torch.from_numpy(values).to(width).view(torch.int16).numpy()
    assert values.size > 500_000
    assert through(values.tobytes(), "F32", target) == theirs.tobytes()


def test_every_half_widens_as_in_torch_infinities_too():
    import torch

    halves = np.arange(65536, dtype="<u2")
    ours = np.frombuffer(through(halves.tobytes(), "F16", "F32"), "<u4")
    theirs = torch.from_numpy(halves.view("<i2").copy()).view(torch.float16).float().numpy().view("<u4")
    number = ~np.isnan(theirs.view("<f4"))
    assert np.array_equal(ours[number], theirs[number])
    assert np.isnan(ours.view("<f4")[~number]).all()


@pytest.mark.parametrize("source", ["F8_E4M3", "F8_E5M2"])
@pytest.mark.parametrize("target", ["F16", "BF16", "F32"])
def test_every_code_of_fp8_is_read_as_torch_reads_it(source, target):
    import torch

    widths = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
    eights = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
    codes = np.arange(256, dtype=np.uint8)
    theirs = torch.from_numpy(codes.copy()).view(eights[source]).to(widths[target])
    raw = torch.frombuffer(bytearray(through(codes.tobytes(), source, target)), dtype=widths[target])
    assert torch.equal(raw.float().nan_to_num(nan=7777), theirs.float().nan_to_num(nan=7777))


def test_float64_goes_through_float32_as_in_torch():
    import torch

    values = np.concatenate([np.random.default_rng(2).standard_normal(100_000), [1 + 2**-11 + 2**-30, 0.1]])
    for target, width in (("F16", torch.float16), ("BF16", torch.bfloat16), ("F32", torch.float32)):
        theirs = torch.from_numpy(values).to(width)
        assert through(values.tobytes(), "F64", target) == bytes(theirs.view(torch.uint8).numpy())
    with pytest.raises(UserError, match=r"The weight w holds values beyond 3\.4e38"):
        through(np.array([1e39]).tobytes(), "F64", "BF16")


def test_a_stream_keeps_its_order_in_two_threads():
    rows = np.random.default_rng(3).standard_normal((9, 1 << 18)).astype("<f4")
    sizes = (1 << 18, 10, 1 << 18, 1 << 17, 1 << 18, 1, 1 << 18, 1 << 18, 300)
    chunks = [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]
    expected = b"".join(np.frombuffer(chunk, "<f4").astype("<f2").tobytes() for chunk in chunks)
    assert b"".join(cast_chunks(chunks, "w", "F32", "F16")) == expected


def test_one_weight_too_large_among_a_million_is_named():
    values = np.zeros(1_000_000, "<f4")
    values[777_777] = -65520.0  # rounds to what fp16 calls infinite; 65519 does not
    with pytest.raises(UserError, match="The weight w holds values beyond 65504") as error:
        through(values.tobytes(), "F32", "F16")
    assert error.value.fix == "take bf16 or fp32."
    values[777_777] = np.inf
    assert np.frombuffer(through(values.tobytes(), "F32", "F16"), "<f2")[777_777] == np.inf


def test_a_nan_stays_one_in_bf16():
    ours = np.frombuffer(
        b"".join(cast_chunks([np.array([np.nan], "<f4").tobytes()], "w", "F32", "BF16")), "<u2"
    )
    assert ours[0] & 0x7F80 == 0x7F80 and ours[0] & 0x007F


def test_whole_numbers_keep_their_dtype_and_unknown_widths_are_named():
    assert target_dtype("I64", "fp16") == "I64"
    assert target_dtype("BOOL", "bf16") == "BOOL"
    assert [target_dtype(one, "bf16") for one in ("F8_E4M3", "F8_E5M2", "F64")] == ["BF16"] * 3
    assert target_dtype("F32", None) == "F32"
    with pytest.raises(UserError, match=r"No dtype 'int8' \(there: fp16, bf16, fp32\)"):
        target_dtype("F32", "int8")
