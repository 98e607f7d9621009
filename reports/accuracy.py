"""The forecast against measured runs: every row, the error by source, and a null model beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flopcast.reports.global_fit import RunSet
from flopcast.reports.memory_accuracy import MemoryAccuracy, memory_accuracy
from flopcast.reports.memory_rows import MemoryRows
from flopcast.reports.runs import Run, read_runs
from flopcast.simulator.band import band
from flopcast.simulator.conventions import model_flop_per_token
from flopcast.simulator.operation import Array

PUBLISHED_RUNS = Path(__file__).parent / "measurements" / "training_runs.csv"

NUMBERS = ("measured_step_s", "predicted_step_s", "low_s", "high_s", "null_step_s", "error")
COLUMNS = ["id", "source", "gpu", "framework", *NUMBERS, "assumed"]


@dataclass(frozen=True)
class Accuracy:
    """``rows``: one per run that could be forecast; ``skipped``: the others with the reason; ``sources``: their sums.

    Columns of ``rows``: id, source, gpu, framework, measured_step_s, predicted_step_s, low_s, high_s, null_step_s,
    error (predicted / measured - 1), assumed. Of ``sources``: rows, skipped, median, mean and p90 of the error's size,
    bias (its median), null_median, coverage (share of rows inside the band). ``memory``: of the runs that state it.
    """

    rows: pd.DataFrame
    skipped: pd.DataFrame
    sources: pd.DataFrame
    memory: MemoryAccuracy

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
        }


def accuracy(path: Path = PUBLISHED_RUNS) -> Accuracy:
    """Forecast every row of a table of runs that can be expressed."""
    runs = read_runs(path)
    rows = _rows(RunSet.of(runs)) if any(not run.skipped for run in runs) else _no_rows()
    skipped = pd.DataFrame(
        [{"id": run.id, "source": run.source, "skipped": run.skipped} for run in runs if run.skipped],
        columns=["id", "source", "skipped"],
    )
    return Accuracy(rows, skipped, _by_source(rows, skipped), memory_accuracy(MemoryRows.of(runs)))


def _no_rows() -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(dtype="float64" if name in NUMBERS else "str") for name in COLUMNS})


def _rows(kept: RunSet) -> pd.DataFrame:
    predicted = kept.predicted_s()
    low, high = band(kept.batch.plans, kept.batch.hardware.gpus_per_node)
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
            "null_step_s": null_step_s(kept.runs),
            "error": predicted / kept.measured_s - 1,
            "assumed": ["; ".join(run.assumed) for run in kept.runs],
        },
        columns=COLUMNS,
    )


def null_step_s(runs: tuple[Run, ...]) -> Array:
    """Step time by one constant efficiency per GPU type and precision: the median over the sources' medians.

    Hardware FLOPs by the causal convention, recomputation counted where the plan recomputes.
    """
    ideal, kinds = [], []
    for run in runs:
        assert run.model is not None
        assert run.plan is not None
        assert run.cluster is not None
        flop = model_flop_per_token(run.model, run.plan.seq_len, "causal")
        per_token = flop.total + (run.plan.recompute == "full") * flop.layers_forward
        tokens = run.plan.global_batch_sequences * run.plan.seq_len * run.share_of_step
        ideal.append(tokens * per_token / (run.plan.num_gpus * run.cluster.gpu.tensor_flop_per_s))
        kinds.append(f"{run.cluster.gpu.name} {run.plan.precision}")
    table = pd.DataFrame({"ideal": ideal, "kind": kinds, "source": [run.source for run in runs]})
    table["efficiency"] = table["ideal"] / [run.measured_step_s for run in runs]
    medians = table.groupby(["kind", "source"])["efficiency"].median().groupby("kind").median()
    return np.asarray(table["ideal"] / table["kind"].map(medians), dtype=np.float64)


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
