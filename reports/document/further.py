"""What a search finds beyond the strategies compared: pipelines, split sequences, and mixtures of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flopcast.errors import InputError
from flopcast.reports.document.numbers import JOULES_PER_MWH, digits, gigabytes, percent, rounded, time_unit
from flopcast.reports.document.table import Cell, Table, band, number, text
from flopcast.reports.explain import NOT_TOLD_APART, recommended
from flopcast.reports.placements import described, settings
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.compare import Comparison
from flopcast.simulator.forecast import Row
from flopcast.simulator.goodput import run_cost
from flopcast.simulator.model import Model
from flopcast.simulator.request import Request, usual_attention
from flopcast.simulator.search import SearchRequest, SearchResult, fastest_plan, search
from flopcast.simulator.space import BUCKETS, Space

SHOWN = 3
# A tenth of the time of a run is worth a plan that is harder to set up.
WORTH_SPLITTING = 0.9
# Of the recommended plan's rate per GPU: below it another count is worth a search, unless it has many more GPUs.
WORTH_SEARCHING, MOST_TIMES_SEARCHED = 0.8, 2
PLACEMENT = ("strategy", "tp", "cp", "pp", "ep")
# AdamW's master copy and moments in fp32.
STATE_BYTES = 12
SCHEDULES: dict[str, list[Any]] = {"schedule": ["1f1b", "interleaved", "zero-bubble"]}


def further(comparison: Comparison, request: Request) -> SearchResult | None:
    """The search over the comparison's batch with the settings it compares under; None where no plan fits.

    Buckets, prefetch and the width of gradients stay as compared, so that only the placement differs; GPipe is left
    out, for 1F1B takes its time in less memory.
    """
    try:
        return search(
            comparison.model,
            comparison.cluster,
            SearchRequest(
                [comparison.num_gpus],
                global_batch_tokens=comparison.tokens_per_gpu * comparison.num_gpus,
                seq_len=comparison.seq_len,
                fixed=as_compared(request, comparison.cluster),
                convention=comparison.convention,
            ),
            mend=False,
        )
    except InputError:
        return None


def as_compared(request: Request, cluster: Cluster) -> dict[str, list[Any]]:
    """The fields of a plan that a search leaves as the comparison has them, and the schedules it tries."""
    given = {
        "gradient_bits": request.gradient_bits,
        "bucket_bytes": BUCKETS[0],
        "prefetch": 1,
        "precision": request.precision,
        "compiled": request.compiled,
        "fused_kernels": request.fused_kernels,
        "micro_batch": request.micro_batch,
        "recompute": request.recompute,
        "recompute_layers": request.recompute_layers or None,
        "attention": request.attention or usual_attention(cluster),
        "ep": request.ep,
    }
    return SCHEDULES | {name: [value] for name, value in given.items() if value is not None}


def choice(found: SearchResult) -> Row:
    """The plan to recommend of a search for one number of GPUs."""
    return recommended(found.found[0].rows)


def faster(found: SearchResult | None, best: Row) -> Row | None:
    """The search's best plan where it is told apart from the one recommended."""
    if found is None:
        return None
    row = choice(found)
    return row if row.step_s < best.step_s / NOT_TOLD_APART else None


def worth_splitting(found: SearchResult, best: Row) -> bool:
    """Whether the search's best plan gains enough on a strategy that fits to set up a pipeline or split sequences."""
    return choice(found).step_s < WORTH_SPLITTING * best.step_s


def named(row: Row) -> Row:
    """A row of the search under a name that tells its placement, so that it can stand among strategies."""
    return replace(row, strategy=described(row))


def split_alike(found: SearchResult | None, cluster: Cluster, num_gpus: int, tokens_per_gpu: int) -> Row | None:
    """The best plan that splits the model as the search's choice does, on another cluster, other GPUs, another batch.

    None where such a plan is not legal or does not fit, or the search found nothing.
    """
    if found is None:
        return None
    plan = choice(found).plan
    values = {**found.request.fixed, **{name: [plan[name]] for name in PLACEMENT}}
    sequences = num_gpus * tokens_per_gpu // found.seq_len
    row = fastest_plan(
        Space(found.model, cluster, num_gpus, found.seq_len, sequences, values, (*values,)), found.request.convention
    )
    return None if row is None else named(row)


def at_another_count(
    found: SearchResult | None, recommended: Row, request: Request, compared: Comparison
) -> Row | None:
    """What to run beside the strategies ``compared`` at another number of GPUs, if a plan fits there; or None.

    The best that splits the model as the search's choice does, where that is what is recommended. Where neither this
    nor a strategy fits, or they lose a fifth of the recommended plan's rate per GPU, up to twice the GPUs asked for,
    the best placement.
    """
    row = split_alike(found, compared.cluster, compared.num_gpus, compared.tokens_per_gpu)
    rates = [r.tokens_per_s_per_gpu for r in (row, compared.best) if r is not None and r.fits]
    if max(rates, default=0.0) > WORTH_SEARCHING * recommended.tokens_per_s_per_gpu:
        return row
    if rates and compared.num_gpus > MOST_TIMES_SEARCHED * recommended.plan["num_gpus"]:
        return row
    best = best_placement(compared, request)
    return row if best is None or (row is not None and row.step_s <= best.step_s) else best


def optimizer_fits(asked: Comparison) -> bool:
    """Whether its states, shared out over all GPUs, leave anything of their memory."""
    return STATE_BYTES * asked.model.num_parameters / asked.num_gpus <= asked.cluster.gpu.memory_bytes


def best_placement(asked: Comparison, request: Request) -> Row | None:
    """The fastest plan of all placements with the settings compared under, run as 1F1B; None where none fits."""
    if not optimizer_fits(asked):
        return None
    values = as_compared(request, asked.cluster) | {"schedule": ["1f1b"]}
    sequences = asked.num_gpus * asked.tokens_per_gpu // asked.seq_len
    space = Space(asked.model, asked.cluster, asked.num_gpus, asked.seq_len, sequences, values, (*values,))
    row = fastest_plan(space, asked.convention)
    return None if row is None else named(row)


def further_table(found: SearchResult, num_tokens: float) -> Table:
    """The best placements of the search, as the table of strategies has them."""
    caption = f"The best placements out of {found.num_plans:,} plans (flopcast search)"
    rows = [named(row) for row in found.found[0].rows[:SHOWN]]
    return placements_table("further-table", caption, found.model, found.cluster, rows, num_tokens)


def placements_table(
    name: str, caption: str, model: Model, cluster: Cluster, placements: Sequence[Row], num_tokens: float
) -> Table:
    """Plans of different placements, each with what it costs."""
    price = cluster.costs.gpu_hour_price
    unit, per_day = time_unit(run_cost(model, cluster, placements[0], num_tokens).days)
    rows = tuple(
        (
            text(row.strategy),
            number(row.step_s),
            band(row.low_s, row.step_s, row.high_s),
            number(100 * row.mfu, percent(row.mfu)),
            number(row.memory_bytes / 1e9, gigabytes(row.memory_bytes) + (" tight" if row.tight else "")),
            Cell(
                f"{digits(cost.days * per_day)} ({digits(low.days * per_day)} to {digits(high.days * per_day)})",
                cost.days * per_day,
            ),
            number(cost.gpu_hours, rounded(cost.gpu_hours)),
            number(cost.energy_j / JOULES_PER_MWH, rounded(cost.energy_j / JOULES_PER_MWH)),
            *([] if cost.money is None else [number(cost.money, rounded(cost.money))]),
            text(settings(row)),
        )
        for row in placements
        for low, cost, high in [
            [run_cost(model, cluster, row, num_tokens, s) for s in (row.low_s, row.step_s, row.high_s)]
        ]
    )
    money = () if price is None else (f"at {price:g} per GPU-hour",)
    figures = ("step, s", "band, s", "MFU %", "GB per GPU", unit, "GPU-hours", "MWh", *money)
    return Table(name, caption, ("placement", *figures, "runs as"), rows)


def further_words(found: SearchResult | None, best: Row) -> str:
    """One sentence on what the search found beside the best strategy."""
    if found is None:
        return "flopcast search finds no plan that fits either."
    row = choice(found)
    plan = f"{described(row)} at {digits(row.step_s)} s"
    of_16_bits = "" if row == found.winner[1] else " of those that gather in 16 bits"
    if not best.fits:
        return f"None of the strategies fits by itself; of all placements, {plan} is the fastest that does{of_16_bits}."
    gain = 1 - row.step_s / best.step_s
    if faster(found, best) is None:
        return f"Pipelines and split sequences bring nothing that can be told apart: the best{of_16_bits} is {plan}."
    return f"Pipelines and split sequences would bring {percent(gain)} %: the best{of_16_bits} is {plan}."
