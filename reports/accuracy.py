"""The forecast against measured runs: every row, the error by source, and a null model beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flopcast.errors import InputError
from flopcast.reports.global_fit import RunSet
from flopcast.reports.memory_accuracy import MemoryAccuracy, memory_accuracy
from flopcast.reports.memory_rows import MemoryRows
from flopcast.reports.null_model import NullModel
from flopcast.reports.runs import PUBLISHED_RUNS, published_runs, read_runs
from flopcast.simulator.band import band

NUMBERS = ("measured_step_s", "predicted_step_s", "low_s", "high_s", "null_step_s", "error")
COLUMNS = ["id", "source", "gpu", "framework", *NUMBERS, "assumed", "doubts"]


@dataclass(frozen=True)
class Accuracy:
    """``rows``: one per run that could be forecast; ``skipped``: the others with the reason; ``sources``: their sums.

    Columns of ``rows``: id, source, gpu, framework, measured_step_s, predicted_step_s, low_s, high_s, null_step_s,
    error (predicted / measured - 1), assumed, doubts (those of them that stand against a cell). Of ``sources``: rows,
    skipped, median, mean and p90 of the error's size, bias (its median), null_median, coverage (share of rows inside
    the band). ``memory``: of the runs that state it. ``null_model``: a sentence that says what the null model is.
    """

    rows: pd.DataFrame
    skipped: pd.DataFrame
    sources: pd.DataFrame
    memory: MemoryAccuracy
    null_model: str

    def check_scored(self) -> None:
        """Raise InputError where no row could be forecast, with a reason of each source."""
        if self.rows.empty:
            first = self.skipped.groupby("source", sort=False).head(1)
            reasons = "; ".join(f"{row['id']}: {row['skipped']}" for row in first.to_dict("records"))
            raise InputError(f"none of the table's rows can be scored ({reasons}); mend them")

    @property
    def overall(self) -> dict[str, float]:
        """Every source counted alike; numbers of rows alone where none could be forecast."""
        numbers = {"rows": float(len(self.rows)), "skipped": float(len(self.skipped))}
        names = () if self.rows.empty else ("median", "mean", "p90", "null_median", "coverage")
        return {name: float(self.sources[name].mean()) for name in names} | numbers

    def as_json(self) -> dict[str, Any]:
        """The document that ``flopcast accuracy --json`` prints."""
        rows = self.rows[["id", "source", "measured_step_s", "predicted_step_s", "low_s", "high_s", "assumed"]]
        return {
            "rows": [*rows.to_dict("records"), *self.skipped[["id", "source", "skipped"]].to_dict("records")],
            "sources": self.sources.reset_index(names="source").to_dict("records"),
            "overall": self.overall,
            "memory": self.memory.as_json(),
            "null_model": self.null_model,
        }


def accuracy(path: Path = PUBLISHED_RUNS) -> Accuracy:
    """Forecast every row of a table of runs that can be expressed.

    The null model of the published runs is fitted to them; that of another table too, not to its own rows.
    """
    own = path.resolve() == PUBLISHED_RUNS.resolve()
    runs = published_runs() if own else read_runs(path)
    kept = [run for run in runs if not run.skipped]
    rows, null_model = _no_rows(), ""
    if kept:
        null = NullModel.of([run for run in published_runs() if not run.skipped])
        rows, null_model = _rows(RunSet.of(kept), null), _said(own, null.borrowed(kept))
    skipped = pd.DataFrame(
        [{"id": run.id, "source": run.source, "skipped": run.skipped} for run in runs if run.skipped],
        columns=["id", "source", "skipped"],
    )
    return Accuracy(rows, skipped, _by_source(rows, skipped), memory_accuracy(MemoryRows.of(runs)), null_model)


def _said(own: bool, borrowed: dict[str, str]) -> str:
    if own:
        return "The null model is one constant efficiency per GPU type."
    lacking = "".join(f"; of {kind}, which they lack, that of {other}" for kind, other in borrowed.items())
    return f"The null model is the median efficiency of the published runs by GPU type and precision{lacking}."


def _no_rows() -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(dtype="float64" if name in NUMBERS else "str") for name in COLUMNS})


def _rows(kept: RunSet, null: NullModel) -> pd.DataFrame:
    predicted = kept.predicted_s()
    mixture = np.array([case.model.num_experts > 0 for case in kept.batch.cases])
    low, high = band(kept.batch.plans, kept.batch.hardware.gpus_per_node, mixture)
    return pd.DataFrame(
        {
            "id": [run.id for run in kept.runs],
            "source": kept.sources,
            "gpu": [run.gpu for run in kept.runs],
            "framework": kept.frameworks,
            "measured_step_s": kept.measured_s,
            "predicted_step_s": predicted,
            "low_s": predicted * low,
            "high_s": predicted * high,
            "null_step_s": null.step_s(kept.runs),
            "error": predicted / kept.measured_s - 1,
            "assumed": ["; ".join(run.assumed) for run in kept.runs],
            "doubts": ["; ".join(run.doubts) for run in kept.runs],
        },
        columns=COLUMNS,
    )


def _by_source(rows: pd.DataFrame, skipped: pd.DataFrame) -> pd.DataFrame:
    inside = (rows["measured_step_s"] >= rows["low_s"]) & (rows["measured_step_s"] <= rows["high_s"])
    table = rows.assign(
        size=rows["error"].abs(),
        null_size=(rows["null_step_s"] / rows["measured_step_s"] - 1).abs(),
        inside=inside,
    )
    groups = table.groupby("source")
    sources = pd.DataFrame(
        {
            "rows": groups.size(),
            "median": groups["size"].median(),
            "mean": groups["size"].mean(),
            "p90": groups["size"].quantile(0.9),
            "bias": groups["error"].median(),
            "null_median": groups["null_size"].median(),
            "coverage": groups["inside"].mean(),
        }
    )
    sources.insert(1, "skipped", skipped.groupby("source").size().reindex(sources.index, fill_value=0))
    return sources
