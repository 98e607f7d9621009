"""The NF4 payload against a second implementation in NumPy, written block by block from the definition."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flopcast.errors import InputError
from flopcast.kernels.nf4 import format as layout
from flopcast.kernels.nf4 import reference
from flopcast.kernels.nf4.reference import dequantise, quantise

# Relative error (Frobenius norm) of torchao 0.18.0's NF4Tensor on torch 2.13.0, CPU: to_nf4(w, 64, 256) of
# torch.manual_seed(0); torch.randn(4096, 4096). Its block size and group size are ours.
TORCHAO_ERROR = {torch.float32: 0.091987, torch.bfloat16: 0.092108}

SIZES = (1, 2, 63, 64, 65, 127, 128, 1000, 16383, 16384, 16385, 20011, 64 * 16384 + 77)


def lift(value: np.float32) -> np.float32:
    return np.float32(2.0**64 if abs(value) < 2.0**-64 else 2.0**-64 if abs(value) > 2.0**64 else 1)


def by_definition(values: np.ndarray) -> bytes:
    """The payload of fp32 values, one group and one block at a time."""
    f = np.float32
    thresholds = np.array(layout.THRESHOLDS, dtype=f)
    blocks = -(-len(values) // 64)
    x = np.zeros(blocks * 64, dtype=f)
    x[: len(values)] = values
    x = x.reshape(blocks, 64)
    codes, constants, scales = [], [], []
    with np.errstate(all="ignore"):
        for first in range(0, blocks, 256):
            group = x[first : first + 256]
            absmax = np.array([np.abs(b[np.isfinite(b)]).max(initial=0) for b in group], dtype=f)
            total = np.zeros(256, dtype=f)
            total[: len(group)] = absmax * f(1 / 256)
            while len(total) > 1:
                total = total[: len(total) // 2] + total[len(total) // 2 :]
            mean = min(total[0] * (f(256) / f(len(group))), np.finfo(f).max)
            span = np.abs(absmax - mean).max()
            levels = f(127) / (span * lift(span)) if span else f(0)
            constants += [span, mean]
            for block, top in zip(group, absmax, strict=True):
                finite = np.isfinite(block).all()
                scale = int(np.rint((top - mean) * lift(span) * levels))
                s = min(f(scale) * (f(1) / f(127)) * span + mean, np.finfo(f).max) if finite else (mean or f(1))
                scales.append(scale if finite else -128)
                r = float(f(1) / (s * lift(s))) * float(lift(s)) if s else 0.0
                for value in block:
                    # In fp64 the product is exact.
                    code = int((thresholds <= float(value) * r).sum()) if math.isfinite(value) else 0
                    if not finite:
                        code = min(max(code, 1), 13)
                        code = 14 if math.isnan(value) else 15 if value == np.inf else 0 if value == -np.inf else code
                    codes.append(code)
    pairs = np.array(codes, dtype=np.uint8).reshape(-1, 2)
    body = (pairs[:, 0] | pairs[:, 1] << 4).tobytes()
    body += np.array(constants, dtype="<f4").tobytes() + np.array(scales, dtype=np.int8).tobytes()
    return body + bytes(-len(body) % 16)


def round_trip(x: torch.Tensor) -> torch.Tensor:
    return dequantise(quantise(x), x.numel(), x.dtype)


def relative_error(x: torch.Tensor) -> float:
    return float((round_trip(x).double() - x.double()).norm() / x.double().norm())


@pytest.mark.parametrize("numel", SIZES)
def test_size_of_payload(numel: int) -> None:
    payload = quantise(torch.ones(numel))
    assert payload.numel() == int(layout.payload_bytes(numel)) == int(layout.payload_bytes(np.array([numel]))[0])
    assert payload.numel() % layout.ALIGNMENT == 0
    assert layout.constants_offset(numel) % 16 == 0
    assert layout.scales_offset(numel) % 8 == 0
    end = layout.scales_offset(numel) + layout.num_blocks(numel)
    assert end <= payload.numel() < end + layout.ALIGNMENT
    assert not payload[end:].any()


def test_bytes_per_parameter() -> None:
    num = 10**9
    assert int(layout.payload_bytes(num)) / num == pytest.approx(0.5 + 1 / 64 + 8 / 16384, rel=1e-6)


@pytest.mark.parametrize("numel", [1, 65, 1000, 16385])
@pytest.mark.parametrize("scale", [1.0, 1e-42, 1e-38, 3e37])
def test_bytes_are_those_of_the_definition(numel: int, scale: float) -> None:
    x = torch.randn(numel, generator=torch.Generator().manual_seed(numel)) * scale
    x[: numel // 3] *= 1e-3
    assert bytes(quantise(x).numpy()) == by_definition(x.numpy())


def test_a_scale_between_two_levels_is_rounded_as_the_definition_says() -> None:
    """Of three blocks two of zeros lie 63.5 levels below the mean: one rounding more in 127 / span decides which."""
    values = torch.rand(200, generator=torch.Generator().manual_seed(0)) + torch.tensor([[1e16], [1.0]])
    for value in [1.708782803484672e16, *values.flatten().tolist()]:
        x = torch.zeros(129)
        x[0] = value
        assert bytes(quantise(x).numpy()) == by_definition(x.numpy())


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.one_of(st.floats(width=32), st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 3.4028234663852886e38])),
        min_size=1,
        max_size=200,
    ),
    st.integers(0, 400),
)
def test_any_values_follow_the_definition_and_survive(values: list[float], zeros: int) -> None:
    x = torch.tensor(values + [0.0] * zeros, dtype=torch.float32)
    assert bytes(quantise(x).numpy()) == by_definition(x.numpy())
    y = round_trip(x)
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y == math.inf, x == math.inf)
    assert torch.equal(y == -math.inf, x == -math.inf)
    assert not y[x == 0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gaussian_error_is_within_one_percent_of_torchao(dtype: torch.dtype) -> None:
    x = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert relative_error(x) == pytest.approx(TORCHAO_ERROR[dtype], rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("numel", SIZES)
def test_every_size_and_type(numel: int, dtype: torch.dtype) -> None:
    x = torch.randn(numel, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = round_trip(x)
    assert y.dtype == dtype
    assert y.shape == (numel,)
    # Half the widest gap of the code, and half a step of the scale; the mean of one group at least halves both.
    assert (y.float() - x.float()).abs().max() <= 0.19 * x.float().abs().max()


def test_error_is_what_the_nearest_value_under_the_sent_scale_leaves() -> None:
    x = torch.randn(3 * 16384, generator=torch.Generator().manual_seed(2))
    payload = quantise(x)
    blocks = layout.num_blocks(x.numel())
    scale = payload[layout.scales_offset(x.numel()) :][:blocks].view(torch.int8).float()
    pair = payload[layout.constants_offset(x.numel()) : layout.scales_offset(x.numel())].view(torch.float32)
    pair = pair.view(-1, 2).repeat_interleave(256, dim=0)
    s = (scale / 127 * pair[:, 0] + pair[:, 1]).unsqueeze(1)
    candidates = s.unsqueeze(2) * torch.tensor(layout.VALUES)
    best = (candidates - x.view(blocks, 64, 1)).abs().amin(2)
    mine = (round_trip(x) - x).abs().view(blocks, 64)
    torch.testing.assert_close(mine, best, rtol=1e-4, atol=1e-6)


def test_not_finite_elements_come_out_in_place_and_alone() -> None:
    x = torch.randn(40000, generator=torch.Generator().manual_seed(3))
    clean = round_trip(x)
    x[5], x[70], x[71], x[39999] = math.nan, math.inf, -math.inf, math.nan
    y = round_trip(x)
    assert y[5].isnan()
    assert y[39999].isnan()
    assert y[70] == math.inf
    assert y[71] == -math.inf
    assert y.isfinite().sum() == x.numel() - 4
    # Blocks without one are as good as before: only the constants that they share moved.
    whole = torch.ones(40000, dtype=torch.bool)
    whole[:128] = whole[39936:] = False
    assert (y - x)[whole].norm() == pytest.approx(float((clean - x)[whole].norm()), rel=0.01)
    # And the finite neighbours keep their sign and size.
    near = x[:128].isfinite()
    assert (y - x)[:128][near].norm() < 0.5 * x[:128][near].norm()


def test_all_not_finite_and_all_zero() -> None:
    nan = torch.full((100,), math.nan)
    assert round_trip(nan).isnan().all()
    assert torch.equal(round_trip(torch.zeros(1000)), torch.zeros(1000))
    mixed = torch.tensor([math.inf, 0.0, -math.inf, math.nan])
    torch.testing.assert_close(round_trip(mixed), mixed, equal_nan=True)


@pytest.mark.parametrize("value", [1e-45, 1e-41, 1e-38, 3.3e38])
def test_denormal_and_huge_values_survive(value: float) -> None:
    x = torch.full((300,), value)
    torch.testing.assert_close(round_trip(x), x, rtol=1e-2, atol=1e-45)


def test_largest_values_of_each_type_stay_finite() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.rand(5000, generator=torch.Generator().manual_seed(4)).to(dtype) * torch.finfo(dtype).max
        assert round_trip(x).isfinite().all()


def test_many_payloads_at_once_and_a_given_output() -> None:
    numel = 1000
    x = torch.randn(5, numel, generator=torch.Generator().manual_seed(5)).bfloat16()
    payloads = torch.stack([quantise(row) for row in x])
    alone = torch.stack([dequantise(p, numel, torch.bfloat16) for p in payloads])
    wide = torch.zeros(5, numel + 24, dtype=torch.bfloat16)
    dequantise(payloads, numel, torch.bfloat16, out=wide[:, 8 : 8 + numel])
    assert torch.equal(wide[:, 8 : 8 + numel], alone)
    assert not wide[:, :8].any()
    buffer = torch.full((payloads.shape[1],), 255, dtype=torch.uint8)
    assert quantise(x[0], out=buffer) is buffer
    assert torch.equal(buffer, payloads[0])


def test_a_cut_at_any_chunk_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3 * 16384 + 100, generator=torch.Generator().manual_seed(6))
    whole, values = quantise(x), round_trip(x)
    monkeypatch.setattr("flopcast.kernels.nf4.reference.CHUNK", layout.GROUP)
    assert torch.equal(quantise(x), whole)
    assert torch.equal(round_trip(x), values)


def test_bad_input_is_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match="float32, bfloat16 or float16"):
        quantise(torch.ones(4, dtype=torch.int64))
    with pytest.raises(InputError, match="empty"):
        quantise(torch.ones(0))
    with pytest.raises(InputError, match=r"\[48\]"):
        quantise(torch.ones(4), out=torch.empty(47, dtype=torch.uint8))
    with pytest.raises(InputError, match="65 elements travel as"):
        dequantise(quantise(torch.ones(64)), 65, torch.float32)
    with pytest.raises(InputError, match="dtype is"):
        dequantise(quantise(torch.ones(64)), 64, torch.float64)
    with pytest.raises(InputError, match="the values are"):
        dequantise(quantise(torch.ones(64)), 64, torch.float32, out=torch.empty(63))


def test_codes_by_table_are_those_by_search_at_every_threshold_and_beside_it() -> None:
    thresholds = torch.tensor(layout.THRESHOLDS)
    up, down = (torch.nextafter(thresholds, torch.tensor(end)) for end in (2.0, -2.0))
    ends = torch.tensor([-3e38, -1.5, -1.0, -0.0, 0.0, 1e-45, 1.0, 1.5, 3e38])
    ratio = torch.cat([thresholds, up, down, ends, torch.linspace(-1.1, 1.1, 100_001)])
    expected = torch.bucketize(ratio, thresholds, right=True).to(torch.uint8)
    assert torch.equal(reference._num_thresholds_not_above(ratio, torch.ones(())), expected)


def test_a_product_that_rounding_brings_up_to_a_threshold_stays_below_it() -> None:
    threshold = torch.tensor(layout.THRESHOLDS[9])
    # Products of 48 bits, of which some round to the threshold from below, some from above.
    r = 1 + torch.arange(1, 2**16, dtype=torch.float32) * 2.0**-23
    x = (threshold.double() / r.double()).float()
    product = x.double() * r.double()
    rounded_up = (x * r == threshold) & (product < threshold)
    assert rounded_up.any()
    assert torch.equal(reference._num_thresholds_not_above(x, r) == 10, product >= threshold)


def test_thresholds_are_halfway_between_values() -> None:
    halfway = np.array([(a + b) / 2 for a, b in pairwise(layout.VALUES)])
    assert np.abs(np.array(layout.THRESHOLDS) - halfway).max() <= 2.0**-22
    assert all(t * 2**23 % 2 == 1 for t in layout.THRESHOLDS)
