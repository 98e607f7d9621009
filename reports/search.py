"""The result of a search as a planner reads it: the winner, what came next and why it lost, time against memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from flopcast.reports.comparison import (
    TOKENS_PER_PARAMETER,
    assumptions,
    days,
    long_context,
    num_parameters,
    row_as_json,
)
from flopcast.reports.document.numbers import counted
from flopcast.reports.placements import described, seconds, settings, varied
from flopcast.reports.runner_up import why_behind
from flopcast.reports.terminal_table import terminal_table
from flopcast.reports.verdict import COSTED, remarks, verdict
from flopcast.simulator.forecast import Row
from flopcast.simulator.search import Found, SearchResult
from flopcast.simulator.units import format_gigabytes

# The least memory shown of the trade against time, as shares of the GPU's.
SHARES = (1.0, 3 / 4, 1 / 2, 1 / 4, 1 / 8)


def as_json(result: SearchResult, token_budget: float | None = None) -> dict[str, Any]:
    """The document that ``flopcast search --json`` prints; SI base units, rows as those of ``flopcast compare``."""
    cluster, limit = result.cluster, result.cluster.gpu.memory_bytes
    budget = token_budget or float(TOKENS_PER_PARAMETER * result.model.num_parameters)
    return {
        "model": {"name": result.model.name, "num_parameters": result.model.num_parameters},
        "cluster": {
            "name": cluster.name,
            "gpu": cluster.gpu.name,
            "memory_bytes": limit,
            "assumptions": _assumptions(result),
        },
        "objective": result.request.objective,
        "fixed": {name: list(values) for name, values in result.request.fixed.items()},
        "convention": result.request.convention,
        "seq_len": result.seq_len,
        "global_batch_tokens": result.global_batch_tokens,
        "num_tokens": budget,
        "num_plans": result.num_plans,
        "elapsed_s": result.elapsed_s,
        "complete": result.complete,
        "memory_margin": result.request.memory_margin,
        "rows": [
            {
                **row_as_json(row, limit),
                "days": days(row, budget),
                "objective": result.objective(row),
                "why_behind": why,
            }
            for found in result.found
            for row, why in top(result, found)
        ],
        "counts": [
            {
                "num_gpus": found.num_gpus,
                "num_plans": found.num_plans,
                "num_fitting": found.num_fitting,
                "memory_margin": found.memory_margin,
                "full_precision": found.full_precision and row_as_json(found.full_precision, limit),
                "with_twice_the_memory": row_as_json(found.with_twice_the_memory, limit),
                "front": [
                    {"plan": row.plan, "step_s": row.step_s, "memory_bytes": row.memory_bytes}
                    for row in found.front.rows()
                ],
            }
            for found in result.found
        ],
        "left_out": {str(num_gpus): reason for num_gpus, reason in result.left_out.items()},
    }


def top(result: SearchResult, found: Found) -> list[tuple[Row, str]]:
    """The best placements on one GPU count, and why each is behind the first."""
    first = found.rows[0]
    by_memory = result.request.objective == "memory"
    rows = found.rows[: result.request.top]
    return [(row, "" if row is first else why_behind(row, first, by_memory)) for row in rows]


def render(result: SearchResult, token_budget: float | None = None) -> Iterator[RenderableType]:
    """What the terminal shows, in order: the question, the winner, the runners-up, time against memory."""
    yield from _question(result)
    found, _ = result.winner
    yield Text(f"\n{verdict(result)}\n", style="bold")
    for remark in remarks(result, token_budget):
        yield Text(remark)
    yield Text()
    if len(result.found) > 1:
        yield _scaling(result)
        yield Text(f"\nThe best placements on {found.num_gpus:,} GPUs", style="bold")
    yield _placements(result, found)
    yield Text("\nThe fastest plan within a share of the GPU's memory", style="bold")
    yield _memory_steps(result, found)
    for num_gpus, reason in result.left_out.items():
        yield Text(f"\n{counted(num_gpus, 'GPU')}: {reason}")
    for note in _assumptions(result):
        yield Text(f"\nassumed: {note}")


def _assumptions(result: SearchResult) -> list[str]:
    """What the winner's forecast rests on that is not published."""
    plan = result.winner[1].plan
    return assumptions(result.model, result.cluster, bool(plan["overlap_expert"]), plan["cuda_graphs"] == "full")


def _question(result: SearchResult) -> Iterator[Text]:
    model, cluster = result.model, result.cluster
    *others, last = (f"{found.num_gpus:,}" for found in result.found)
    counts = f"{', '.join(others)} and {last}" if others else last
    yield Text(
        f"{model.name} ({num_parameters(model)}) on {counts} x {cluster.gpu.name}, "
        f"{cluster.name}: nodes of {cluster.gpus_per_node}",
        style="bold",
    )
    count = counted(result.global_batch_tokens // result.seq_len, "sequence")
    margin = result.winner[0].memory_margin
    spare = f"leave {100 * margin:.0f} % of {cluster.gpu.memory_bytes / 1e9:.1f} GB free" if margin else "fit"
    yield Text(
        f"{result.global_batch_tokens:,} tokens per step: {count} of {result.seq_len:,}. "
        f"{result.num_plans:,} legal plans, {sum(found.num_fitting for found in result.found):,} {spare}."
    )
    if result.request.seq_len is None and (note := long_context(model)):
        yield Text(note)
    if result.request.fixed:
        words = {name: [str(v).lower() for v in values] for name, values in result.request.fixed.items()}
        fixed = (f"{name}={','.join(values)}" for name, values in words.items())
        yield Text(f"Fixed: {' '.join(fixed)}")


def _placements(result: SearchResult, found: Found) -> Table:
    table = terminal_table(["placement"], ("step, s\n(80 % band)", "MFU\n%", "GB per\nGPU"))
    table.add_column("runs as (micro-batch x passes, ...),\nand why it is behind the first", overflow="fold")
    for row, why in top(result, found):
        table.add_row(
            described(row).replace(" with ", "\n"),
            f"{seconds(row.step_s)}\n({seconds(row.low_s)}-{seconds(row.high_s)})",
            f"{100 * row.mfu:.1f}",
            _memory(row),
            settings(row, varied(result)) + (f"\n{why}" if why else ""),
        )
    return table


def memory_steps(result: SearchResult, found: Found) -> list[int]:
    """Places on the front of the fastest plans within a few shares of the GPU's memory."""
    limit, memory_bytes = result.cluster.gpu.memory_bytes, found.front.memory.total
    within = [np.flatnonzero(memory_bytes <= share * limit) for share in SHARES]
    return list(dict.fromkeys(int(places[0]) for places in within if places.size))


def _memory_steps(result: SearchResult, found: Found) -> Table:
    table = terminal_table((), ("GB per\nGPU", "step, s", "slower by\n%"))
    table.add_column("placement", no_wrap=True)
    table.add_column("runs as", overflow="fold")
    rows = found.front.rows()
    for place in memory_steps(result, found):
        row = rows[place]
        table.add_row(
            _memory(row),
            seconds(row.step_s),
            f"{100 * (row.step_s / rows[0].step_s - 1):.0f}",
            described(row),
            settings(row, varied(result)),
        )
    return table


def _scaling(result: SearchResult) -> Table:
    """The best plan on every GPU count, and the throughput kept of the smallest count's."""
    heading, _, scale = COSTED.get(result.request.objective, ("", "", 0.0))
    figures = ("step, s\n(80 % band)", "tokens/s\nper GPU", "kept of the\nfirst, %", "MFU\n%", "GB per\nGPU")
    table = terminal_table((), ("GPUs", *figures, *([heading] if heading else ())))
    table.add_column("placement", overflow="fold")
    first = result.found[0].rows[0]
    for found in result.found:
        row = found.rows[0]
        table.add_row(
            f"{found.num_gpus:,}",
            f"{seconds(row.step_s)} ({seconds(row.low_s)}-{seconds(row.high_s)})",
            f"{row.tokens_per_s_per_gpu:,.0f}",
            f"{100 * row.tokens_per_s_per_gpu / first.tokens_per_s_per_gpu:.0f}",
            f"{100 * row.mfu:.1f}",
            _memory(row),
            *([f"{result.objective(row) * scale:,.4g}"] if heading else []),
            f"{described(row)}: {settings(row, varied(result))}",
        )
    return table


def _memory(row: Row) -> str:
    return f"{format_gigabytes(row.memory_bytes)}{' tight' if row.tight else ''}"
