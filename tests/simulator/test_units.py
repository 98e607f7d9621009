"""Quantities: what is read, what is refused, and how numbers are printed."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flopcast.errors import InputError
from flopcast.simulator.units import (
    Kind,
    format_count,
    format_rate,
    format_seconds,
    parse_bandwidth,
    parse_compute,
    parse_memory,
    parse_power,
    parse_quantity,
)


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("300 GB/s", 300e9),
        ("300GB/s", 300e9),
        ("400 Gbit/s", 50e9),
        ("200 Gb/s", 25e9),
        ("100 Gbps", 12.5e9),
        ("3.35 TB/s", 3.35e12),
        ("1 GiB/s", 2.0**30),
        ("  1e2 MB/s ", 100e6),
    ],
)
def test_bandwidths_are_bytes_per_second(text: str, bytes_per_s: float) -> None:
    assert parse_bandwidth(text) == pytest.approx(bytes_per_s, rel=1e-15)


def test_decimal_and_binary_bytes_are_never_mixed() -> None:
    assert parse_memory("40 GB") == 40e9
    assert parse_memory("40 GiB") == 40 * 2**30
    assert parse_memory("81559 MiB") == 81559 * 2**20


def test_compute_and_power() -> None:
    assert parse_compute("312 TFLOP/s") == 312e12
    assert parse_compute("2.25 PFLOPS") == 2.25e15
    assert parse_power("6.5 kW") == 6500.0
    assert parse_power("400 W") == 400.0


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (300, 'has no unit; write it as text with one, such as "300 GB/s"'),
        (3e11, "has no unit"),
        ("300", "has no unit"),
        (True, "is not a quantity"),
        (None, "is not a quantity"),
        (["300 GB/s"], "is not a quantity"),
        ("300 W", "unit 'W' is not a unit of bandwidth; write GB/s"),
        ("300 gb/s", "unit 'gb/s' is not a unit of bandwidth"),
        ("GB/s", "does not start with a number"),
        ("1,000 GB/s", "does not start with a number"),
        ("1.2.3 GB/s", "does not start with a number"),
        ("fast", "unit 'fast' is not a unit"),
        ("300 GB/s please", "is not a number and a unit"),
        ("0 GB/s", "must be positive and finite"),
        ("-5 GB/s", "must be positive and finite"),
        ("nan GB/s", "must be positive and finite"),
        ("NaN GB/s", "must be positive and finite"),
        ("inf GB/s", "must be positive and finite"),
        ("1e999 GB/s", "must be positive and finite"),
        ("1e-999 GB/s", "must be positive and finite"),
        ("x" * 500, "..."),
    ],
)
def test_what_is_no_bandwidth_is_refused_in_one_line(value: object, says: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_bandwidth(value)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200


@given(st.one_of(st.text(), st.integers(), st.floats(), st.binary(), st.none(), st.lists(st.integers())))
@settings(max_examples=300, deadline=None)
def test_any_value_is_a_positive_quantity_or_refused(value: object) -> None:
    for kind in ("bandwidth", "memory", "compute", "power"):
        try:
            parsed = parse_quantity(value, kind)
        except InputError as refused:
            message = str(refused)
        else:
            message = ""
            assert parsed > 0
            assert math.isfinite(parsed)
        assert "\n" not in message


@given(
    st.floats(min_value=1e-6, max_value=1e9),
    st.sampled_from([("kB/s", 1e3), ("MiB/s", 2.0**20), ("Gbit/s", 1.25e8), ("TB/s", 1e12)]),
)
def test_a_written_bandwidth_reads_back(number: float, unit: tuple[str, float]) -> None:
    assert parse_bandwidth(f"{number!r} {unit[0]}") == pytest.approx(number * unit[1], rel=1e-12)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 us"),
        (0.00085, "850 us"),
        (0.0009997, "1 ms"),
        (0.0125, "12.5 ms"),
        (0.9996, "1 s"),
        (1.25, "1.25 s"),
        (90.0, "90 s"),
        (600.0, "10 min"),
        (11520.0, "3.2 h"),
        (3_602_880.0, "41.7 days"),
        (math.inf, "inf"),
    ],
)
def test_seconds_are_printed_in_the_unit_that_suits(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(13_099_545_600, "13.1 B"), (1.008e12, "1.0 T"), (512, "512"), (125_239_296, "125 M")]
)
def test_counts_are_printed_in_billions(count: float, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("text", "kind"), [("1e290 GB/s", "bandwidth"), ("1e-9 B", "memory"), ("1e12 PFLOP/s", "compute")]
)
def test_what_no_hardware_has_is_refused(text: str, kind: Kind) -> None:
    with pytest.raises(InputError, match="check the unit"):
        parse_quantity(text, kind)


@pytest.mark.parametrize(
    ("rate", "unit", "text"),
    [
        (1.44e10, "FLOP/s", "14.4 GFLOP/s"),
        (9.894e14, "FLOP/s", "989 TFLOP/s"),
        (9.996e11, "FLOP/s", "1 TFLOP/s"),
        (3.35e12, "B/s", "3.35 TB/s"),
        (39.14e9, "B/s", "39.1 GB/s"),
        (12.0, "B/s", "12 B/s"),
    ],
)
def test_rates_are_printed_in_the_unit_that_suits_them(rate: float, unit: str, text: str) -> None:
    assert format_rate(rate, unit) == text
