"""What trusting the search would have cost: the plan it picks of a published sweep against the one measured fastest.

A sweep is the runs of one source that share model, machine, GPU count and batch, and differ in their plans.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import RenderableType

from flopcast.errors import InputError
from flopcast.reports.global_fit import RunSet
from flopcast.reports.runs import PUBLISHED_RUNS, Run, read_runs
from flopcast.reports.terminal_table import terminal_table


@dataclass(frozen=True)
class Regret:
    """``sweeps``: one row each with source, model, gpu, num_gpus, num_runs, picked, fastest, regret, at_random.

    ``regret``: measured step of the run that the forecast ranks first over the least measured, less 1; ``at_random``
    the same of a run drawn at random, on average. ``sources``: their medians and worst.
    """

    sweeps: pd.DataFrame
    sources: pd.DataFrame

    def as_json(self) -> dict[str, Any]:
        """The document that ``flopcast accuracy --regret --json`` prints."""
        return {
            "sweeps": self.sweeps.to_dict("records"),
            "sources": self.sources.reset_index(names="source").to_dict("records"),
        }


def regret(path: Path = PUBLISHED_RUNS) -> Regret:
    """The regret of every sweep in a table of runs. Raises InputError where it has none."""
    kept = RunSet.of(read_runs(path))
    table = pd.DataFrame(
        {
            "sweep": [_sweep(run) for run in kept.runs],
            "id": [run.id for run in kept.runs],
            "source": [run.source for run in kept.runs],
            "model": [run.model.name if run.model else "" for run in kept.runs],
            "gpu": [run.gpu for run in kept.runs],
            "num_gpus": kept.batch.plans.num_gpus,
            "plan": [run.plan for run in kept.runs],
            "measured_s": kept.measured_s,
            "predicted_s": kept.predicted_s(),
        }
    )
    sweeps = []
    for _, runs in table.groupby("sweep", sort=False):
        if runs["plan"].nunique() < 2:
            continue
        runs = runs.reset_index(drop=True)
        measured, fastest = runs["measured_s"], runs["measured_s"].min()
        picked = int(runs["predicted_s"].argmin())
        sweeps.append(
            {
                **{name: runs[name][0] for name in ("source", "model", "gpu", "num_gpus")},
                "num_runs": len(runs),
                "picked": runs["id"][picked],
                "fastest": runs["id"][int(measured.argmin())],
                "regret": float(measured[picked] / fastest - 1),
                "at_random": float(measured.mean() / fastest - 1),
            }
        )
    if not sweeps:
        raise InputError(
            f"{path}: has no sweep; give rows of one source, model, machine, GPU count and batch with different plans"
        )
    frame = pd.DataFrame(sweeps)
    return Regret(frame, _by_source(frame))


def render(found: Regret) -> RenderableType:
    """Regret by source, beside that of a run drawn at random."""
    headings = (
        "sweeps",
        "runs",
        "fastest\npicked",
        "regret,\nmedian %",
        "worst\n%",
        "at random,\nmedian %",
        "worst\n%",
    )
    table = terminal_table(["source"], headings)
    for source, row in found.sources.iterrows():
        counts = [str(int(row[name])) for name in ("sweeps", "runs", "hits")]
        shares = [f"{100 * row[name]:.1f}" for name in ("median", "worst", "random_median", "random_worst")]
        table.add_row(str(source), *counts, *shares)
    return table


def _sweep(run: Run) -> tuple[object, ...]:
    assert run.model is not None
    assert run.plan is not None
    assert run.cluster is not None
    sequences = round(run.plan.global_batch_sequences * run.share_of_step)
    machine = (run.gpu, run.cluster.node_bytes_per_s)
    return (
        run.source,
        run.model.name,
        run.model.num_parameters,
        *machine,
        run.plan.num_gpus,
        sequences,
        run.plan.seq_len,
    )


def _by_source(sweeps: pd.DataFrame) -> pd.DataFrame:
    groups = sweeps.assign(hit=sweeps["picked"] == sweeps["fastest"]).groupby("source")
    return pd.DataFrame(
        {
            "sweeps": groups.size(),
            "runs": groups["num_runs"].sum(),
            "hits": groups["hit"].sum(),
            "median": groups["regret"].median(),
            "worst": groups["regret"].max(),
            "random_median": groups["at_random"].median(),
            "random_worst": groups["at_random"].max(),
        }
    )
