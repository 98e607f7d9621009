"""The result of a search as a planner reads it: the winner, what came next and why it lost, time against memory."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich import box
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
from flopcast.reports.document.numbers import digits, rounded, tokens
from flopcast.reports.explain import NOT_TOLD_APART, WORTH_NAMING
from flopcast.reports.runner_up import why_behind
from flopcast.simulator.forecast import Row
from flopcast.simulator.recompute import recompute_in_words
from flopcast.simulator.search import Found, SearchResult

# Placements that the first is held against, however many are shown.
MOST_NEAR = 5
# The least memory shown of the trade against time, as shares of the GPU's.
SHARES = (1.0, 3 / 4, 1 / 2, 1 / 4, 1 / 8)
# What an objective is called in a table and in the verdict, and what it is multiplied by.
COSTED = {"cost": ("cost of\na step", "costs {} a step,", 1.0), "energy": ("MJ per\nstep", "{} MJ per step,", 1e-6)}


# Fields of a plan that its name and settings tell; a request may vary others.
SAID = {
    *("strategy", "tp", "cp", "pp", "ep", "micro_batch", "grad_accum", "recompute", "sequence_parallel"),
    *("recompute_layers", "schedule", "virtual_pp", "gradient_bits", "gather_bits", "bucket_bytes", "prefetch"),
}


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
        yield Text(f"\n{num_gpus:,} GPUs: {reason}")
    for note in _assumptions(result):
        yield Text(f"\nassumed: {note}")


def _assumptions(result: SearchResult) -> list[str]:
    """What the winner's forecast rests on that is not published."""
    return assumptions(result.model, result.cluster, bool(result.winner[1].plan["overlap_expert"]))


def verdict(result: SearchResult) -> str:
    """The winner in a sentence with its band, and the placements that the forecast cannot tell from it."""
    found, row = result.winner
    objective = result.request.objective
    gpus = f" on {found.num_gpus:,} GPUs" if len(result.found) > 1 else ""
    _, words, scale = COSTED.get(objective, ("", "", 0.0))
    least = f" {words.format(digits(result.objective(row) * scale))}" if words else ""
    near = [
        described(other)
        for other in found.rows[1:MOST_NEAR]
        if result.objective(other) < NOT_TOLD_APART * result.objective(row)
    ]
    also = f" Not told apart from it: {'; '.join(near)}." if near else ""
    peak = " of the 16-bit peak" if row.plan["precision"] == "fp8" else ""
    partly = "" if result.complete else " so far (interrupted)"
    return (
        f"Best by {objective}{partly}{gpus}: {described(row)}:{least} {_seconds(row.step_s)} s per step "
        f"({_seconds(row.low_s)}-{_seconds(row.high_s)}), {100 * row.mfu:.0f} % MFU{peak}, "
        f"{_gigabytes(row.memory_bytes)} GB per GPU.{also}"
    )


def remarks(result: SearchResult, token_budget: float | None = None) -> list[str]:
    """What a planner asks of the winner next: days, is it tight, is the arithmetic changed, would memory help."""
    found, row = result.winner
    budget = token_budget or TOKENS_PER_PARAMETER * result.model.num_parameters
    assumed = "" if token_budget else f", {TOKENS_PER_PARAMETER} per parameter (--tokens sets it),"
    gpu_hours = budget / row.tokens_per_s_per_gpu / 3600
    price = result.cluster.costs.gpu_hour_price
    source = result.cluster.sources.get("operation.gpu_hour_price")
    whose = f" ({source})" if source else ""
    money = f", {rounded(gpu_hours * price)} at {price:g} per GPU-hour{whose}" if price is not None else ""
    said = [
        f"At that rate {tokens(budget)}{assumed} take {_duration(days(row, budget))} and "
        f"{rounded(gpu_hours)} GPU-hours{money}, without failures."
    ]
    card = result.cluster.gpu.memory_bytes
    if found.memory_margin < result.request.memory_margin:
        said.append(
            f"Tight: no plan leaves {100 * result.request.memory_margin:.0f} % of a GPU's memory free; this one needs "
            f"{100 * row.memory_bytes / card:.0f} % of it, and the forecast's own error may decide whether it runs."
        )
    exact = found.full_precision
    adds = "reduces" if row.plan["num_gpus"] > row.plan["tp"] * row.plan["pp"] else "adds up"
    changes = [
        *([f"{adds} gradients in 16 bits"] if row.plan["gradient_bits"] == 16 else []),
        *(["gathers parameters in 4 bits"] if row.plan["gather_bits"] == 4 else []),
    ]
    if changes and exact is not None:
        said.append(
            f"The winner {' and '.join(changes)}. With gradients in 32 bits and no 4-bit gather the best is "
            f"{described(exact)}: {_compared(result, exact, row)}."
        )
    if exchange := exchange_remark(row):
        said.append(exchange)
    larger = found.with_twice_the_memory
    if result.request.objective != "memory" and larger.step_s < row.step_s / NOT_TOLD_APART:
        said.append(
            f"GPUs of twice the memory would run {described(larger)} in {_seconds(larger.step_s)} s, "
            f"{100 * (1 - larger.step_s / row.step_s):.0f} % less, with {_gigabytes(larger.memory_bytes)} GB each."
        )
    return said


def exchange_remark(row: Row) -> str:
    """Where tokens on their way to experts hold a step up: the fields by which a search plans with software that helps.

    Empty where they do not, or where the plan has such software already.
    """
    waits = row.seconds["expert_communication"]
    fields = {"dispatcher": "deepep", "overlap_expert": True}
    helped = any(row.plan[name] == value for name, value in fields.items())
    if helped or waits < WORTH_NAMING * row.step_s:
        return ""
    return (
        f"Tokens on their way to experts and back take {_seconds(waits)} s of it, {100 * waits / row.step_s:.0f} %. "
        "Software that sends one copy to a node (DeepEP) is planned by --fix dispatcher=deepep, software that hides "
        "them behind another micro-batch (DualPipe, Megatron Core) by --fix overlap_expert=true."
    )


def _duration(num_days: float) -> str:
    return f"{digits(num_days)} days" if num_days >= 1 else f"{digits(24 * num_days)} hours"


def _compared(result: SearchResult, other: Row, row: Row) -> str:
    more = 100 * (result.objective(other) / result.objective(row) - 1)
    if result.request.objective == "memory":
        return f"{_gigabytes(other.memory_bytes)} GB per GPU, {more:.0f} % more"
    return f"{_seconds(other.step_s)} s per step, " + (f"{more:.0f} % more" if more >= 0.5 else "hardly more")


def described(row: Row) -> str:
    """A placement in a few words: strategy and degrees of parallelism above 1."""
    degrees = [f"{name} {row.plan[name]}" for name in ("tp", "cp", "pp", "ep") if row.plan[name] > 1]
    return " ".join([row.strategy, *(["with", ", ".join(degrees)] if degrees else [])])


def varied(result: SearchResult) -> list[str]:
    """Fields that the request gave several values and that :func:`described` and :func:`settings` say nothing of."""
    return [name for name, values in result.request.fixed.items() if len(values) > 1 and name not in SAID]


def settings(row: Row, also: Sequence[str] = ()) -> str:
    """What was chosen for a placement: micro-batch x passes, recomputation, schedule, how gradients and gathers run.

    ``also``: further fields of the plan to name.
    """
    plan = row.plan
    words = [f"{plan['micro_batch']} x {plan['grad_accum']:,}"]
    if plan["recompute"] != "none":
        words.append(f"recompute {recompute_in_words(plan)}")
    if plan["sequence_parallel"]:
        words.append("sequence parallel")
    if plan["whole_experts"]:
        words.append("whole experts")
    if plan["pp"] > 1:
        chunks = f" x {plan['virtual_pp']}" if plan["virtual_pp"] > 1 else ""
        words.append(f"{plan['schedule']}{chunks}")
    if plan["num_gpus"] > plan["tp"] * plan["pp"]:
        mebibytes = plan["bucket_bytes"] // 2**20
        size = f"{mebibytes // 1024} GiB" if mebibytes % 1024 == 0 else f"{mebibytes} MiB"
        buckets = f" in {size} buckets" if plan["parameter_shard"] == 1 else ""
        words.append(f"{plan['gradient_bits']}-bit gradients{buckets}")
    if plan["parameter_shard"] > 1 and plan["prefetch"] == 0:
        words.append("no prefetch")
    words += [f"{name.replace('_', ' ')} {str(plan[name]).lower()}" for name in also]
    return ", ".join(words)


def _question(result: SearchResult) -> Iterator[Text]:
    model, cluster = result.model, result.cluster
    *others, last = (f"{found.num_gpus:,}" for found in result.found)
    counts = f"{', '.join(others)} and {last}" if others else last
    yield Text(
        f"{model.name} ({num_parameters(model)}) on {counts} x {cluster.gpu.name}, "
        f"{cluster.name}: nodes of {cluster.gpus_per_node}",
        style="bold",
    )
    sequences = result.global_batch_tokens // result.seq_len
    count = f"{sequences:,} sequences" if sequences > 1 else "1 sequence"
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
    figures = ("step, s\n(80 % band)", "MFU\n%", "GB per\nGPU")
    table = _table(("placement", "left"), *((figure, "right") for figure in figures))
    table.add_column("runs as (micro-batch x passes, ...),\nand why it is behind the first", overflow="fold")
    for row, why in top(result, found):
        table.add_row(
            described(row).replace(" with ", "\n"),
            f"{_seconds(row.step_s)}\n({_seconds(row.low_s)}-{_seconds(row.high_s)})",
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
    table = _table(("GB per\nGPU", "right"), ("step, s", "right"), ("slower by\n%", "right"), ("placement", "left"))
    table.add_column("runs as", overflow="fold")
    rows = found.front.rows()
    for place in memory_steps(result, found):
        row = rows[place]
        table.add_row(
            _memory(row),
            _seconds(row.step_s),
            f"{100 * (row.step_s / rows[0].step_s - 1):.0f}",
            described(row),
            settings(row, varied(result)),
        )
    return table


def _scaling(result: SearchResult) -> Table:
    """The best plan on every GPU count, and the throughput kept of the smallest count's."""
    table = _table(("GPUs", "right"), ("step, s\n(80 % band)", "right"), ("tokens/s\nper GPU", "right"))
    for heading in ("kept of the\nfirst, %", "MFU\n%", "GB per\nGPU"):
        table.add_column(heading, justify="right", no_wrap=True)
    heading, _, scale = COSTED.get(result.request.objective, ("", "", 0.0))
    if heading:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("placement", overflow="fold")
    first = result.found[0].rows[0]
    for found in result.found:
        row = found.rows[0]
        table.add_row(
            f"{found.num_gpus:,}",
            f"{_seconds(row.step_s)} ({_seconds(row.low_s)}-{_seconds(row.high_s)})",
            f"{row.tokens_per_s_per_gpu:,.0f}",
            f"{100 * row.tokens_per_s_per_gpu / first.tokens_per_s_per_gpu:.0f}",
            f"{100 * row.mfu:.1f}",
            _memory(row),
            *([f"{result.objective(row) * scale:,.4g}"] if heading else []),
            f"{described(row)}: {settings(row, varied(result))}",
        )
    return table


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading, justify in columns:
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    return table


def _memory(row: Row) -> str:
    return f"{_gigabytes(row.memory_bytes)}{' tight' if row.tight else ''}"


def _gigabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:,.0f}" if size_bytes >= 100e9 else f"{size_bytes / 1e9:.1f}"


def _seconds(value: float) -> str:
    """A time at the decimals a reader can use."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value >= 0.1 else f"{value:.3g}"
