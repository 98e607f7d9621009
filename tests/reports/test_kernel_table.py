from io import StringIO
from typing import Any

from rich.console import Console

from flopcast.cli.output import PIPE_WIDTH
from flopcast.reports.kernel_table import render


def shown(**more: Any) -> str:
    key = {"op": "rope", "pass": "forward", "provider": "flopcast", "tokens": 1024, "hidden": 5120}
    measured = {"median_s": 12.5e-6, "spread": 0.02, "bytes_per_s": 2.5e12, "error": 1e-3}
    row = {**key, **measured, "of_copy": 0.9, "of_copy_same_bytes": 1.05, "of_datasheet": 0.75, **more}
    console = Console(file=StringIO(), width=PIPE_WIDTH)
    for part in render({"environment": {"device": "H100"}, "copy_bytes_per_s": 2.8e12, "rows": [row]}):
        console.print(part)
    return console.file.getvalue()


def test_both_copies_stand_beside_a_row() -> None:
    (line,) = [line for line in shown().splitlines() if line.startswith("rope")]
    assert line.split() == [
        "rope",
        "forward",
        "flopcast",
        "1,024",
        "5,120",
        "12.5",
        "2",
        "2,500.0",
        "90.0",
        "105.0",
        "75.0",
        "1.0e-03",
    ]


def test_a_time_that_may_be_the_hosts_is_marked() -> None:
    assert "*" not in shown(host_bound=False)
    marked = shown(host_bound=True)
    assert "12.5*" in marked
    assert "* the host may have been slower than the GPU" in marked


def test_the_widest_row_is_not_cut_short_in_a_pipe() -> None:
    largest = {"op": "add_add_rms_norm", "pass": "backward", "tokens": 131072, "hidden": 16384, "median_s": 0.1234567}
    text = shown(**largest, host_bound=True, of_copy_same_bytes=10.123)
    assert "\u2026" not in text
    assert text.splitlines()[4].split()[-1] == "1.0e-03"
