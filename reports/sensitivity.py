"""What half and twice of each figure of the question would change: the best plan is chosen again under each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from flopcast.errors import InputError
from flopcast.reports import explain
from flopcast.reports.document.numbers import millions
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.compare import Comparison, compare
from flopcast.simulator.forecast import Row
from flopcast.simulator.goodput import run_cost
from flopcast.simulator.model import Model
from flopcast.simulator.request import Request

COLUMNS = ("figure", "change", "value", "strategy", "step_s", "days", "ratio", "why_not")
BATCH, NOTHING_FITS = "global batch", "nothing fits"
CHANGES = {"half": 0.5, "twice": 2.0}


@dataclass(frozen=True)
class Change:
    """One figure at half or twice what it is: ``value`` is what it then is, as a reader writes it."""

    figure: str
    change: str
    value: str
    cluster: Cluster
    request: Request


def changes(cluster: Cluster, comparison: Comparison, request: Request) -> Iterator[Change]:
    """Every change: the network, NVLink, the GPU's memory and its size, its peak, and the batch."""
    gpu = cluster.gpu
    asked = replace(request, tokens_per_gpu=comparison.tokens_per_gpu)
    for change, factor in CHANGES.items():
        if comparison.num_gpus > cluster.gpus_per_node:
            faster = replace(cluster, nic_bytes_per_s=factor * cluster.nic_bytes_per_s)
            value = f"{faster.node_bytes_per_s * 8e-9:,.0f} Gbit/s"
            yield Change("network of a node", change, value, faster, asked)
        if comparison.num_gpus > 1:
            faster = replace(cluster, nvlink_bytes_per_s=factor * cluster.nvlink_bytes_per_s)
            yield Change("NVLink", change, f"{faster.nvlink_bytes_per_s / 1e9:,.0f} GB/s", faster, asked)
        larger = replace(cluster, gpu=replace(gpu, memory_bytes=factor * gpu.memory_bytes))
        yield Change("memory of a GPU", change, f"{larger.gpu.memory_bytes / 2**30:,.0f} GiB", larger, asked)
        wider = replace(cluster, gpu=replace(gpu, memory_bytes_per_s=factor * gpu.memory_bytes_per_s))
        yield Change("memory bandwidth", change, f"{wider.gpu.memory_bytes_per_s / 1e12:,.2f} TB/s", wider, asked)
        rates = ("tensor_flop_per_s", "fp8_flop_per_s", "matmul_flop_per_s")
        peaks = {name: factor * getattr(gpu, name) for name in rates}
        stronger = replace(cluster, gpu=replace(gpu, **peaks))
        yield Change("peak of a GPU", change, f"{peaks['tensor_flop_per_s'] / 1e12:,.0f} TFLOP/s", stronger, asked)
        sequences = factor * comparison.tokens_per_gpu / comparison.seq_len
        # Below one, tensor-parallel ranks may have whole sequences together.
        tokens = int((round(sequences) if sequences >= 1 else sequences) * comparison.seq_len)
        value = f"{millions(tokens * comparison.num_gpus)} M tokens"
        yield Change(BATCH, change, value, cluster, replace(asked, tokens_per_gpu=max(tokens, 1)))


def sensitivity(
    model: Model,
    cluster: Cluster,
    request: Request,
    comparison: Comparison,
    num_tokens: float,
    recommended: Row | None = None,
    also: Callable[[Cluster, int, int], Row | None] = lambda cluster, num_gpus, tokens_per_gpu: None,
) -> pd.DataFrame:
    """One row per figure and change; ``ratio`` is the days over those of the question as asked, NaN where
    that does not fit.

    ``recommended``: the plan that answers the question as asked, by default what is recommended of ``comparison``.
    ``also`` gives a further plan for a cluster, a number of GPUs and tokens per GPU, if it has one that fits.

    Columns: figure, change (half, twice), value, strategy, step_s, days (failures and checkpoints included), ratio;
    where nothing fits or is legal, NaN and ``why_not``.
    """
    asked = recommended or explain.recommended(comparison.rows)
    base = run_cost(model, cluster, asked, num_tokens).days if asked.fits else float("nan")
    records = []
    for item in changes(cluster, comparison, request):
        record: dict[str, Any] = {"figure": item.figure, "change": item.change, "value": item.value, "why_not": ""}
        try:
            rows = compare(model, item.cluster, item.request).rows
            more = also(item.cluster, comparison.num_gpus, item.request.tokens_per_gpu or comparison.tokens_per_gpu)
            best = explain.recommended([*rows, *([] if more is None else [more])])
            if not best.fits:
                raise InputError(NOTHING_FITS)
            days = run_cost(model, item.cluster, best, num_tokens).days
            record |= {"strategy": best.strategy, "step_s": best.step_s, "days": days, "ratio": days / base}
        except InputError as error:
            too_few = item.figure == BATCH and str(error) != NOTHING_FITS
            record["why_not"] = "less than a sequence for each rank" if too_few else str(error)
        records.append(record)
    return pd.DataFrame.from_records(records, columns=list(COLUMNS))
