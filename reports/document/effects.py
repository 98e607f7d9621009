"""What the 4-bit all-gather and the hand-written kernels bring: every strategy with and without each."""

from dataclasses import replace

import pandas as pd

from flopcast.reports.placements import described
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.compare import Comparison, compare
from flopcast.simulator.forecast import Row, forecast
from flopcast.simulator.goodput import run_cost
from flopcast.simulator.model import Model
from flopcast.simulator.plan import QUANTISABLE, Plan
from flopcast.simulator.request import Request

COLUMNS = ("strategy", "gather_bits", "fused_kernels", "fits", "step_s", "memory_bytes", "inter_node_bytes", "days")


def effects(
    model: Model,
    cluster: Cluster,
    request: Request,
    comparison: Comparison,
    num_tokens: float,
    searched: Row | None = None,
) -> pd.DataFrame:
    """One row per strategy (named without +q4), width of the gather and kind of kernels, each at its best.

    ``searched``: a plan from outside the comparison, added as it is but for the gather and the kernels.

    Columns: strategy, gather_bits (16, 4), fused_kernels, fits, step_s, memory_bytes, inter_node_bytes, days.
    """
    sharded = {exact(row.strategy): row.plan["parameter_shard"] > 1 for row in comparison.rows}
    names = [
        name
        for base, gathers in sharded.items()
        for name in ((base, quantised(base)) if base in QUANTISABLE and gathers else (base,))
    ]
    asked = replace(request, tokens_per_gpu=comparison.tokens_per_gpu, strategies=names)
    records = []
    for fused in (True, False):
        rows = list(compare(model, cluster, replace(asked, fused_kernels=fused)).rows)
        if searched is not None:
            rows = [*_variants(model, cluster, searched, fused, comparison.convention), *rows]
        for row in rows:
            days = run_cost(model, cluster, row, num_tokens).days
            records.append(
                (
                    *(exact(row.strategy), row.plan["gather_bits"], fused, row.fits),
                    *(row.step_s, row.memory_bytes, row.inter_node_bytes, days),
                )
            )
    return pd.DataFrame.from_records(records, columns=list(COLUMNS))


def exact(strategy: str) -> str:
    """The strategy's or placement's name without the 4-bit gather."""
    return strategy.replace("+q4", "")


def quantised(strategy: str) -> str:
    """The name of the same with the 4-bit gather: ``zero3 with tp 4`` -> ``zero3+q4 with tp 4``."""
    name, blank, rest = strategy.partition(" ")
    return f"{name}+q4{blank}{rest}"


def _variants(model: Model, cluster: Cluster, row: Row, fused: bool, convention: str) -> list[Row]:
    """The plan with and without the 4-bit gather, where it gathers parameters at all."""
    plan = Plan(**row.plan)
    widths = (16, 4) if plan.parameter_shard > 1 else (plan.gather_bits,)
    base = exact(plan.strategy)
    plans = [
        replace(plan, strategy=f"{base}+q4" if bits == 4 else base, gather_bits=bits, fused_kernels=fused)
        for bits in widths
    ]
    return [replace(one, strategy=described(one)) for one in forecast(model, cluster, plans, convention).rows()]
