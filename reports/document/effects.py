"""What the 4-bit all-gather and the hand-written kernels bring: every strategy with and without each."""

from dataclasses import replace

import pandas as pd

from flopcast.simulator.cluster import Cluster
from flopcast.simulator.compare import Comparison, Request, compare
from flopcast.simulator.goodput import run_cost
from flopcast.simulator.model import Model
from flopcast.simulator.plan import QUANTISABLE

COLUMNS = ("strategy", "gather_bits", "fused_kernels", "fits", "step_s", "memory_bytes", "inter_node_bytes", "days")


def effects(
    model: Model, cluster: Cluster, request: Request, comparison: Comparison, num_tokens: float
) -> pd.DataFrame:
    """One row per strategy (named without +q4), width of the gather and kind of kernels, each at its best.

    Columns: strategy, gather_bits (16, 4), fused_kernels, fits, step_s, memory_bytes, inter_node_bytes, days.
    """
    bases = list(dict.fromkeys(row.strategy.partition("+")[0] for row in comparison.rows))
    names = [name for base in bases for name in ((base, f"{base}+q4") if base in QUANTISABLE else (base,))]
    asked = replace(request, tokens_per_gpu=comparison.tokens_per_gpu, strategies=names)
    records = []
    for fused in (True, False):
        for row in compare(model, cluster, replace(asked, fused_kernels=fused)).rows:
            base, _, quantised = row.strategy.partition("+")
            days = run_cost(model, cluster, row, num_tokens).days
            records.append(
                (
                    *(base, 4 if quantised else 16, fused, row.fits),
                    *(row.step_s, row.memory_bytes, row.inter_node_bytes, days),
                )
            )
    return pd.DataFrame.from_records(records, columns=list(COLUMNS))
