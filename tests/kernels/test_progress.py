"""A long measurement is heard of in a log: where a kind begins, and once a minute after that."""

from collections.abc import Iterator

import pytest

from flopcast.kernels.progress import ProgressLines


def test_a_line_for_each_kind_and_one_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    seconds: Iterator[float] = iter((0, 1, 30, 62, 90, 91, 130, 152))
    lines = ProgressLines(7, clock=lambda: next(seconds))
    for number, name in enumerate(("gemm a", "gemm b", "gemm c", "gemm d", "copy a", "copy b", "copy c"), 1):
        lines.begin(number, name.split()[0], name)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "flopcast: measures gemm a (1 of 7, after 1 s)",
        "flopcast: measures gemm c (3 of 7, after 62 s)",
        "flopcast: measures copy a (5 of 7, after 91 s)",
        "flopcast: measures copy c (7 of 7, after 152 s)",
    ]
