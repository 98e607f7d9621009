"""A plan of a search in a few words: where it places the model, and what else was chosen for it."""

from collections.abc import Sequence

from flopcast.simulator.forecast import Row
from flopcast.simulator.recompute import recompute_in_words
from flopcast.simulator.search import SearchResult

# Fields of a plan that its name and settings tell; a request may vary others.
SAID = {
    *("strategy", "tp", "cp", "pp", "ep", "micro_batch", "grad_accum", "recompute", "sequence_parallel"),
    *(
        "recompute_layers",
        "schedule",
        "virtual_pp",
        "gradient_bits",
        "gather_bits",
        "bucket_bytes",
        "prefetch",
        "cuda_graphs",
    ),
}


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
    if plan["cuda_graphs"] != "none":
        words.append(f"{plan['cuda_graphs']} CUDA graphs")
    words += [f"{name.replace('_', ' ')} {str(plan[name]).lower()}" for name in also]
    return ", ".join(words)


def seconds(value: float) -> str:
    """A time at the decimals a reader can use."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value >= 0.1 else f"{value:.3g}"
