"""The forecast's memory against published runs that state theirs, by source and by the counter each source read."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from flopcast.reports.memory_rows import MemoryRows
from flopcast.reports.terminal_table import terminal_table

COLUMNS = ["id", "source", "counter", "measured_bytes", "predicted_bytes", "error"]


@dataclass(frozen=True)
class MemoryAccuracy:
    """``rows``: id, source, counter, measured_bytes, predicted_bytes, error (predicted / measured - 1).

    ``sources``: rows, counter, median, bias and p90 (of the error's size; bias its median).
    """

    rows: pd.DataFrame
    sources: pd.DataFrame

    @property
    def overall(self) -> dict[str, float]:
        """Every source counted alike; ``median_of_rows`` counts every row alike."""
        if self.rows.empty:
            return {"rows": 0.0}
        means = {name: float(self.sources[name].mean()) for name in ("median", "p90")}
        every = {"median_of_rows": float(self.rows["error"].abs().median()), "rows": float(len(self.rows))}
        return means | every

    def as_json(self) -> dict[str, Any]:
        """What ``flopcast accuracy --json`` prints under "memory"."""
        return {
            "rows": self.rows.to_dict("records"),
            "sources": self.sources.reset_index(names="source").to_dict("records"),
            "overall": self.overall,
        }


def memory_accuracy(stated: MemoryRows) -> MemoryAccuracy:
    """The error of every run that states its memory, and its sums by source."""
    predicted = stated.predicted_bytes()
    rows = pd.DataFrame(
        {
            "id": [run.id for run in stated.runs],
            "source": stated.sources,
            "counter": stated.counters,
            "measured_bytes": stated.measured_bytes,
            "predicted_bytes": predicted,
            "error": predicted / stated.measured_bytes - 1,
        },
        columns=COLUMNS,
    )
    groups = rows.assign(size=rows["error"].abs()).groupby("source")
    sources = pd.DataFrame(
        {
            "rows": groups.size(),
            "counter": groups["counter"].first(),
            "median": groups["size"].median(),
            "bias": groups["error"].median(),
            "p90": groups["size"].quantile(0.9),
        }
    )
    return MemoryAccuracy(rows, sources)


def memory_table(accuracy: MemoryAccuracy) -> Table:
    """Errors of the peak of memory by source, with the counter that was compared."""
    table = terminal_table(("memory at the peak", "counter"), ("rows", "median\n|error| %", "bias\n%", "90th\n%"))
    for source, row in accuracy.sources.iterrows():
        errors = [f"{100 * row[name]:.1f}" for name in ("median", "bias", "p90")]
        table.add_row(str(source), str(row["counter"]), str(int(row["rows"])), *errors)
    overall = accuracy.overall
    table.add_section()
    figures = [f"{100 * overall['median']:.1f}", "", f"{100 * overall['p90']:.1f}"]
    table.add_row("mean of sources", "", str(int(overall["rows"])), *figures)
    bias = 100 * float(np.median(accuracy.rows["error"]))
    table.add_row("every row alike", "", "", f"{100 * overall['median_of_rows']:.1f}", f"{bias:.1f}", "")
    return table
