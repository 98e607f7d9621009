"""A benchmark of kernels as its users read it: time, bandwidth, share of the measured copy, and the error beside it."""

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from flopcast.reports.terminal_table import terminal_table


def render(result: dict[str, Any]) -> Iterator[RenderableType]:
    """The document of ``kernels.benchmark.run``: a line on the machine, a row per operation, pass and provider."""
    machine = result["environment"]
    yield Text(f"{machine.get('device', 'cpu')}; copy {result['copy_bytes_per_s'] / 1e9:,.0f} GB/s", style="bold")
    headings = (
        *("tokens", "hidden", "median\nus", "spread\n%", "GB/s", "% of\ncopy", "of same\nbytes", "of data-\nsheet"),
        "error",
    )
    table = terminal_table(("operation", "pass", "provider"), headings)
    table.collapse_padding = True
    skipped = []
    for row in result["rows"]:
        if "median_s" not in row:
            skipped.append(
                f"{row.get('op')} by {row.get('provider')}: {row.get('skipped', row.get('reason', 'not run'))}"
            )
            continue
        table.add_row(
            *(row["op"], row["pass"], row["provider"], f"{row['tokens']:,}", f"{row['hidden']:,}"),
            f"{row['median_s'] * 1e6:,.1f}{'*' if row.get('host_bound') else ''}",
            f"{100 * row['spread']:.0f}",
            _scaled(row.get("bytes_per_s"), 1e-9, 1),
            _scaled(row.get("of_copy"), 100, 1),
            _scaled(row.get("of_copy_same_bytes"), 100, 1),
            _scaled(row.get("of_datasheet"), 100, 1),
            "-" if row.get("error") is None else f"{row['error']:.1e}",
        )
    yield table
    if any(row.get("host_bound") for row in result["rows"]):
        yield Text("* the host may have been slower than the GPU")
    for reason in dict.fromkeys(skipped):
        yield Text(f"skipped {reason}")


def _scaled(value: float | None, factor: float, decimals: int) -> str:
    return "-" if value is None else f"{value * factor:,.{decimals}f}"
