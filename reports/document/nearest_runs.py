"""The published runs most like a plan, each forecast from its own specification: how far to trust this one."""

import math

import numpy as np
import pandas as pd

from flopcast.reports.global_fit import RunSet
from flopcast.reports.runs import Run, published_runs
from flopcast.simulator.band import band
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.forecast import Row
from flopcast.simulator.model import Model

MOST_OF_ONE_SOURCE = 3
COLUMNS = (
    *("id", "source", "model", "num_parameters", "gpu", "num_gpus", "strategy", "measured_s", "predicted_s", "ratio"),
    "in_band",
)


def nearest_runs(model: Model, cluster: Cluster, row: Row, number: int = 10) -> pd.DataFrame:
    """The ``number`` nearest published runs, nearest first, at most three of one source.

    Near is: the same GPU, then its family; as many parameters and GPUs; split the same way. Columns: id, source,
    model, num_parameters, gpu, num_gpus, strategy, measured_s, predicted_s, ratio (predicted over measured), in_band.
    """
    runs = [run for run in published_runs() if not run.skipped]
    kept: list[Run] = []
    for run in sorted(runs, key=lambda run: _distance(run, model, cluster, row)):
        if sum(other.source == run.source for other in kept) < MOST_OF_ONE_SOURCE:
            kept.append(run)
        if len(kept) == number:
            break
    if not kept:
        return pd.DataFrame(columns=list(COLUMNS))
    chosen = RunSet.of(kept)
    predicted, measured = chosen.predicted_s(), chosen.measured_s
    cases = chosen.batch.cases
    mixture = np.array([case.model.num_experts > 0 for case in cases])
    low, high = band(chosen.batch.plans, chosen.batch.hardware.gpus_per_node, mixture)
    return pd.DataFrame(
        {
            "id": [run.id for run in kept],
            "source": [run.source for run in kept],
            "model": [case.model.name for case in cases],
            "num_parameters": [case.model.num_parameters for case in cases],
            "gpu": [case.cluster.gpu.name for case in cases],
            "num_gpus": [case.plan.num_gpus for case in cases],
            "strategy": [case.plan.strategy for case in cases],
            "measured_s": measured,
            "predicted_s": predicted,
            "ratio": predicted / measured,
            "in_band": (predicted * low <= measured) & (measured <= predicted * high),
        }
    )


def _distance(run: Run, model: Model, cluster: Cluster, row: Row) -> float:
    """How unlike the plan a run is: factors of two of its size and its GPUs, and what is of another kind."""
    assert run.model is not None
    assert run.cluster is not None
    assert run.plan is not None
    theirs, ours = run.cluster.gpu, cluster.gpu
    gpu = 0.0 if theirs.name == ours.name else 0.5 if _chip(theirs.name) == _chip(ours.name) else 2.0
    if theirs.architecture != ours.architecture:
        gpu = 6.0
    size = abs(math.log2(run.model.num_parameters / model.num_parameters))
    count = abs(math.log2(run.plan.num_gpus / row.plan["num_gpus"]))
    leaves_node = (run.plan.num_gpus > run.cluster.gpus_per_node) != (row.plan["num_gpus"] > cluster.gpus_per_node)
    unlike = sum((getattr(run.plan, name) > 1) != (row.plan[name] > 1) for name in ("tp", "pp", "parameter_shard"))
    return float(gpu + size + 0.5 * count + 2.0 * leaves_node + unlike)


def _chip(gpu: str) -> str:
    return gpu.partition("-")[0]
