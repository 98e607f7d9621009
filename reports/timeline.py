"""A played step as a planner reads it: tables on a terminal, or one JSON document."""

from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from flopcast.reports.comparison import assumptions
from flopcast.reports.explain import bound_by
from flopcast.reports.terminal_table import terminal_table
from flopcast.reports.trace_comparison import TraceComparison
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.conventions import CONVENTIONS
from flopcast.simulator.plan import Plan
from flopcast.simulator.recompute import recompute_in_words
from flopcast.simulator.request import usual_attention
from flopcast.simulator.timeline import (
    Timeline,
    exposed_collectives,
    exposed_communication_s,
    streams,
    waterfall,
)

LABELS = {
    "ideal_at_peak": "ideal: the model's FLOPs at peak",
    "fp8": "matrix products in 8 bits",
    "gemm_efficiency": "matrix products below peak",
    "attention_efficiency": "attention below peak",
    "pointwise": "pointwise work",
    "recompute": "recomputation",
    "launch": "launches: the host holds the GPU up",
    "tensor_communication": "tensor-parallel communication",
    "context_communication": "context-parallel communication",
    "expert_communication": "expert-parallel communication",
    "pipeline_communication": "sends between pipeline stages",
    "gather_communication": "waiting for parameter gathers",
    "reduce_communication": "waiting for gradient reductions",
    "contention": "computation slowed by communication",
    "bubble": "pipeline bubble",
    "stragglers": "stragglers",
    "optimizer": "optimizer and gradient norm",
    "overhead": "data, logging, host",
}
# What is said of a field that does not have its usual value.
IN_WORDS = {
    "sequence_parallel": "sequence parallel",
    "precision": "products in {}",
    "cuda_graphs": "{} CUDA graphs",
    "engine": "engine {}",
    "compiled": "compiled",
    "fused_kernels": "no fused kernels",
    "attention": "attention {}",
    "whole_experts": "whole experts",
    "dispatcher": "dispatcher {}",
    "dispatch_bits": "{}-bit dispatch",
    "overlap_expert": "exchange with experts hidden",
    "overlap_tensor": "tensor-parallel communication hidden",
    "overlap_update": "parameters gathered before the forward",
    "sliced_update": "update exchanged in slices",
    "state_bytes": "{} bytes of optimizer state per parameter",
}
CHARACTERS_OF_BAR = 32
MOST_CLASSES = 8
STEPS_BY = {
    "profiler": "The ratio is simulated over measured. A collective lasts from when the rank comes to it.",
    "optimizer": "The ratio is simulated over measured. Steps are counted by the optimizer's updates.",
    "nothing": "The ratio is simulated over measured. The trace marks no steps (profiler.step()): it is taken as one.",
}


def as_json(timeline: Timeline, comparison: TraceComparison | None = None) -> dict[str, Any]:
    """The document that ``flopcast timeline --json`` prints; times in seconds, shares as fractions."""
    plan, found = timeline.plan, timeline.forecast
    (row,) = found.rows()
    document: dict[str, Any] = {
        "model": found.model.name,
        "cluster": found.cluster.name,
        "strategy": plan.strategy,
        "plan": found.plans.describe(0),
        "step_s": timeline.step_s,
        "closed_form_s": timeline.closed_form_s,
        "departs_from_closed_form": timeline.departs_from_closed_form,
        "undisturbed_s": timeline.undisturbed_s,
        "memory_bytes": row.memory_bytes,
        "fits": row.fits,
        "exposed_communication_s": exposed_communication_s(timeline),
        "waterfall": [asdict(part) for part in waterfall(timeline)],
        "collectives": [asdict(row) for row in exposed_collectives(timeline)],
        "rank_classes": [asdict(row) for row in streams(timeline)],
        "assumptions": _assumptions(timeline),
    }
    if comparison is not None:
        rows = [{**asdict(row), "ratio": row.ratio} for row in comparison.rows]
        document["comparison"] = {**asdict(comparison), "rows": rows}
    return document


def render(timeline: Timeline, comparison: TraceComparison | None) -> Iterator[RenderableType]:
    """What the terminal shows, in order."""
    plan, found = timeline.plan, timeline.forecast
    yield Text(
        f"{found.model.name}, {plan.strategy}, {plan.num_gpus:,} x {found.cluster.gpu.name} ({found.cluster.name}): "
        f"{timeline.step_s:.3f} s per step",
        style="bold",
    )
    yield Text(plan_in_words(plan, found.cluster))
    yield Text(f"The closed form says {timeline.closed_form_s:.3f} s.")
    if timeline.departs_from_closed_form:
        yield Text(f"They differ by {timeline.departs_from_closed_form}.")
    (row,) = found.rows()
    if not row.fits:
        yield Text(f"The plan {bound_by(row, found.cluster.gpu.memory_bytes)}. This is its step if it did.")
    if timeline.disturbance:
        cost = timeline.step_s / timeline.undisturbed_s - 1
        yield Text(
            f"Undisturbed the step takes {timeline.undisturbed_s:.3f} s: stragglers cost the whole job {cost:.1%}."
        )
    yield Text("\nFrom peak to achieved, the average GPU", style="bold")
    yield _waterfall(timeline)
    yield Text(f"The ideal counts {CONVENTIONS['causal']}; its share of the step is MFU.")
    yield Text("\nCollectives of the undisturbed step, the average GPU", style="bold")
    yield _collectives(timeline)
    yield Text("\nWhat the GPU is busy with, from its first kernel to its last", style="bold")
    yield _classes(timeline)
    if comparison is not None:
        steps = "1 step" if comparison.num_steps == 1 else f"{comparison.num_steps} steps, per step"
        yield Text(f"\nBeside {comparison.path}, {steps}", style="bold")
        yield _comparison(comparison)
        yield Text(STEPS_BY[comparison.steps_by])
    if notes := _assumptions(timeline):
        yield Text("\nRests on assumptions", style="bold")
        for note in notes:
            yield Text(note)


def plan_in_words(plan: Plan, cluster: Cluster) -> str:
    """The plan beside its strategy: micro-batches, recomputation, how the work is split, and all that is not usual.

    Usual is a field's default, and of attention what PyTorch runs on the cluster's GPU.
    """
    words = [
        f"micro-batch {plan.micro_batch} x {plan.grad_accum:,} passes of {plan.seq_len:,} tokens",
        f"recompute {recompute_in_words(asdict(plan))}",
        *(f"{name} {getattr(plan, name)}" for name in ("tp", "cp", "ep", "pp") if getattr(plan, name) > 1),
    ]
    if plan.pp > 1:
        chunks = f" with {plan.virtual_pp} chunks a stage" if plan.virtual_pp > 1 else ""
        words.append(f"{plan.schedule}{chunks}")
    usual = {field.name: field.default for field in fields(Plan)} | {"attention": usual_attention(cluster)}
    named = {name: text for name, text in IN_WORDS.items() if getattr(plan, name) != usual[name]}
    words += [text.format(getattr(plan, name)) for name, text in named.items()]
    if plan.parameter_shard > 1 and plan.prefetch != Plan.prefetch:
        words.append(f"prefetch {plan.prefetch}" if plan.prefetch else "no prefetch")
    if plan.shard_ranks > 1:
        in_buckets = plan.parameter_shard == 1 and plan.bucket_bytes != Plan.bucket_bytes
        size = f" in {plan.bucket_bytes / 2**20:,.0f} MiB buckets" if in_buckets else ""
        words.append(f"{plan.gradient_bits}-bit gradients{size}")
    return ", ".join(words)


def _assumptions(timeline: Timeline) -> list[str]:
    """As ``flopcast compare`` has them, of the plan that was played."""
    found = timeline.forecast
    plan = timeline.plan
    return assumptions(found.model, found.cluster, plan.overlap_expert, plan.cuda_graphs == "full")


def _waterfall(timeline: Timeline) -> Table:
    table = terminal_table([""], ("s", "%"))
    table.add_column(no_wrap=True)
    done = 0.0
    for part in waterfall(timeline):
        start = round(CHARACTERS_OF_BAR * done / timeline.step_s)
        done += part.seconds
        end = round(CHARACTERS_OF_BAR * done / timeline.step_s)
        bar = " " * min(start, end) + "█" * abs(end - start)
        table.add_row(LABELS[part.name], f"{part.seconds:.3f}", f"{100 * part.seconds / timeline.step_s:.1f}", bar)
    return table


def _collectives(timeline: Timeline) -> Table:
    table = terminal_table(["collective"], ("under way, s", "waited for, s"))
    for row in exposed_collectives(timeline):
        name = f"{row.collective.replace('_', '-')} over {row.group}, {row.phase}"
        table.add_row(name, f"{row.busy_s:.3f}", f"{row.exposed_s:.3f}")
    return table


def _classes(timeline: Timeline) -> Table:
    headings = ("computes, %", "only communicates, %", "idle, %", "communication\noverlapped, %")
    table = terminal_table(["ranks"], headings)
    found = streams(timeline)
    if len(found) > MOST_CLASSES:  # the slowed ones are what is looked for
        found = sorted(found, key=lambda row: (row.speed * row.link == 1, -row.compute))
    shown = found[:MOST_CLASSES]
    for row in shown:
        alike = f"rank {row.rank}" + (f" and {row.num_ranks - 1} like it" if row.num_ranks > 1 else "")
        alike += f", stage {row.stage}" if timeline.plan.pp > 1 else ""
        alike += f", speed {row.speed:g}" if row.speed < 1 else ""
        alike += f", link {row.link:g}" if row.link < 1 else ""
        shares = (row.compute, row.communication, row.idle, row.overlap)
        table.add_row(alike, *(f"{100 * share:.1f}" for share in shares))
    if len(found) > MOST_CLASSES:
        table.add_row(f"and {len(found) - MOST_CLASSES} more classes")
    return table


def _comparison(comparison: TraceComparison) -> Table:
    table = terminal_table(["operations"], ("simulated, s", "measured, s", "ratio"))
    for row in comparison.rows:
        ratio = "-" if row.ratio is None else f"{row.ratio:,.2f}" if row.ratio < 100 else f"{row.ratio:,.0f}"
        table.add_row(row.operations, f"{row.simulated_s:.4f}", f"{row.measured_s:.4f}", ratio)
    return table
