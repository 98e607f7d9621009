"""The accuracy of the forecast as a reader sees it: a table by source, and the report of a global fit."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from flopcast.reports.accuracy import Accuracy
from flopcast.reports.memory_accuracy import memory_table
from flopcast.reports.terminal_table import terminal_table
from flopcast.simulator.constants import Constants, entries


def render(accuracy: Accuracy) -> Iterator[RenderableType]:
    """Errors by source beside the null model's, what was not taken as it is written, and what was skipped and why."""
    if not accuracy.rows.empty:
        yield from _render_errors(accuracy)
    doubted = accuracy.rows[accuracy.rows["doubts"] != ""].groupby(["source", "doubts"]).size().rename("number")
    for doubt in doubted.reset_index().to_dict("records"):
        yield Text(f"{doubt['number']} of {doubt['source']} forecast with {doubt['doubts']}")
    reasons = accuracy.skipped.groupby(["source", "skipped"]).size().rename("number").reset_index()
    for skip in reasons.to_dict("records"):
        yield Text(f"skipped {skip['number']} of {skip['source']}: {skip['skipped']}")


def _render_errors(accuracy: Accuracy) -> Iterator[RenderableType]:
    headings = (
        "rows",
        "skipped",
        "median\n|error| %",
        "mean\n%",
        "90th\n%",
        "bias\n%",
        "null model\nmedian %",
        "in the\nband %",
    )
    table = terminal_table(["source"], headings)
    for source, row in accuracy.sources.iterrows():
        errors = [f"{100 * row[name]:.1f}" for name in ("median", "mean", "p90", "bias", "null_median")]
        table.add_row(
            str(source), str(int(row["rows"])), str(int(row["skipped"])), *errors, f"{100 * row['coverage']:.0f}"
        )
    overall = accuracy.overall
    table.add_section()
    table.add_row(
        "mean of sources",
        str(int(overall["rows"])),
        str(int(overall["skipped"])),
        *(f"{100 * overall[name]:.1f}" for name in ("median", "mean", "p90")),
        "",
        f"{100 * overall['null_median']:.1f}",
        f"{100 * overall['coverage']:.0f}",
    )
    yield table
    yield Text(
        f"Step time, predicted over measured. {accuracy.null_model} The constants "
        "were fitted to the published runs together; the band is from runs whose framework they had not seen."
    )
    if not accuracy.memory.rows.empty:
        yield memory_table(accuracy.memory)
        yield Text(
            "Memory per GPU, predicted over measured. Counters: allocated, bytes of tensors; reserved, what PyTorch's "
            "allocator took for them; card, what nvidia-smi shows; unsaid, compared as card."
        )


def render_constants(before: Constants, after: Constants) -> Table:
    """Every constant before and after a fit, with its range and unit."""
    table = terminal_table(["constant"], ("before", "after", "range"))
    table.add_column("unit")
    for entry in entries():
        if entry.fitted:
            values = [f"{getattr(constants, entry.name):.4g}" for constants in (before, after)]
            table.add_row(entry.name, *values, f"{entry.low:g} to {entry.high:g}", entry.unit)
    return table
