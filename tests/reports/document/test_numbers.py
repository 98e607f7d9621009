"""Numbers as the reader sees them, by hand."""

import math

import pytest

from flopcast.reports.document.numbers import digits, millions, percent, rounded, tokens
from flopcast.reports.document.table import numbers_in


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (4.658, "4.66"),
        (9.996, "10.0"),
        (99.96, "100"),
        (0.05123, "0.0512"),
        (0.9999, "1.00"),
        (1507.2, "1,507"),
        (41_826.9, "41,827"),
        (0.0, "0"),
        (-12.34, "-12.3"),
        (2e-9, "0.000000"),
        (math.nan, "-"),
    ],
)
def test_three_digits_and_all_of_the_whole_part(value: float, shown: str) -> None:
    assert digits(value) == shown


def test_rounding_shares_and_budgets() -> None:
    assert rounded(41_826.9) == "41,800"
    assert rounded(1_318_000) == "1,320,000"
    assert rounded(99.96) == "100"
    assert rounded(0.0) == "0"
    assert percent(0.46267) == "46.3"
    assert percent(math.nan) == "-"
    assert tokens(261_990_912_000) == "262 G tokens"
    assert tokens(15e12) == "15.0 T tokens"
    assert [tokens(n) for n in (1, 20, 4_194_304)] == ["1 token", "20 tokens", "4.19 M tokens"]
    assert [millions(n) for n in (1, 2048, 3_932_160, 134_217_728, 480e9)] == [
        *("0.000001", "0.00205", "3.93", "134.22", "480,000"),
    ]


def test_numbers_inside_names_are_not_numbers() -> None:
    assert numbers_in("Run zero3-node+q4 on 480 x a100-40gb: 4.66 s (3.92 to 6.13), 41,800, tp8, 1 x 2.") == [
        *("480", "4.66", "3.92", "6.13", "41,800", "1", "2"),
    ]
