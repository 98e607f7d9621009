"""What a search finds beyond the strategies compared: pipelines, split sequences, and mixtures of them."""

from typing import Any

from flopcast.errors import InputError
from flopcast.reports.document.numbers import digits, gigabytes, percent, rounded
from flopcast.reports.document.table import Cell, Table, number, text
from flopcast.reports.explain import NOT_TOLD_APART
from flopcast.reports.search import described, settings
from flopcast.simulator.compare import Comparison, Request
from flopcast.simulator.forecast import Row
from flopcast.simulator.goodput import run_cost
from flopcast.simulator.search import SearchRequest, SearchResult, search
from flopcast.simulator.space import BUCKETS

SHOWN = 3
SCHEDULES: dict[str, list[Any]] = {"schedule": ["1f1b", "interleaved", "zero-bubble"]}


def further(comparison: Comparison, request: Request) -> SearchResult | None:
    """The search over the comparison's batch with the settings it compares under; None where no plan fits.

    Buckets, prefetch and the width of gradients stay as compared, so that only the placement differs; GPipe is left
    out, for 1F1B takes its time in less memory.
    """
    given = {
        "gradient_bits": request.gradient_bits,
        "bucket_bytes": BUCKETS[0],
        "prefetch": 1,
        "compiled": request.compiled,
        "fused_kernels": request.fused_kernels,
        "micro_batch": request.micro_batch,
        "recompute": request.recompute,
        "attention": request.attention,
        "ep": request.ep,
    }
    try:
        return search(
            comparison.model,
            comparison.cluster,
            SearchRequest(
                [comparison.num_gpus],
                global_batch_tokens=comparison.tokens_per_gpu * comparison.num_gpus,
                seq_len=comparison.seq_len,
                fixed=SCHEDULES | {name: [value] for name, value in given.items() if value is not None},
                convention=comparison.convention,
            ),
        )
    except InputError:
        return None


def faster(found: SearchResult | None, best: Row) -> Row | None:
    """The search's best plan where it is told apart from the comparison's, or is the only one that fits."""
    if found is None:
        return None
    _, row = found.winner
    return row if not best.fits or row.step_s < best.step_s / NOT_TOLD_APART else None


def further_table(found: SearchResult, num_tokens: float) -> Table:
    """The best placements of the search, as the table of strategies has them."""
    rows = tuple(
        (
            text(described(row)),
            number(row.step_s),
            Cell(f"{digits(row.low_s)} to {digits(row.high_s)}", row.step_s),
            number(100 * row.mfu, percent(row.mfu)),
            number(row.memory_bytes, gigabytes(row.memory_bytes) + (" tight" if row.tight else "")),
            Cell(f"{digits(cost.days)} ({digits(low.days)} to {digits(high.days)})", cost.days),
            number(cost.gpu_hours, rounded(cost.gpu_hours)),
            text(settings(row)),
        )
        for row in found.found[0].rows[:SHOWN]
        for low, cost, high in [
            [run_cost(found.model, found.cluster, row, num_tokens, s) for s in (row.low_s, row.step_s, row.high_s)]
        ]
    )
    headings = ("placement", "step, s", "band, s", "MFU %", "GB per GPU", "days", "GPU-hours", "runs as")
    caption = f"The best placements out of {found.num_plans:,} plans (flopcast search)"
    return Table("further-table", caption, headings, rows)


def further_words(found: SearchResult | None, best: Row) -> str:
    """One sentence on what the search found."""
    if found is None:
        return "flopcast search finds no plan that fits either."
    row = found.winner[1]
    plan = f"{described(row)} at {digits(row.step_s)} s"
    if not best.fits:
        return f"None of the strategies fits; split into stages or along the sequence as well, {plan} does."
    gain = 1 - row.step_s / best.step_s
    if faster(found, best) is None:
        return f"Pipelines and split sequences bring nothing that can be told apart: the best is {plan}."
    return f"Pipelines and split sequences would bring {percent(gain)} %: the best is {plan}."
