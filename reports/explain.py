"""Why a plan takes the time it takes, in a sentence."""

from collections.abc import Iterable, Sequence

from flopcast.reports.document.numbers import digits
from flopcast.simulator.forecast import Row, best_of
from flopcast.simulator.recompute import recompute_in_words

# What each part of a step is called in a sentence, and what would shorten it.
_NAMES = {
    "gemm": "matrix products",
    "attention": "attention",
    "pointwise": "memory-bound kernels",
    "launch": "the host launching kernels",
    "tensor_communication": "tensor-parallel communication",
    "expert_communication": "expert-parallel communication",
    "pipeline_communication": "sends between pipeline stages",
    "gather_communication": "exposed parameter gathers",
    "reduce_communication": "exposed gradient reductions",
    "bubble": "the pipeline's bubble",
    "optimizer": "the optimizer",
    "overhead": "per-step overhead",
}
_WAITS = (
    "launch",
    "tensor_communication",
    "expert_communication",
    "pipeline_communication",
    "gather_communication",
    "reduce_communication",
    "bubble",
    "optimizer",
    "overhead",
)
MEANINGS = {
    "ddp": "plain data parallelism",
    "zero1": "ZeRO-1, the optimizer state sharded",
    "zero2": "ZeRO-2, gradients and optimizer state sharded",
    "zero3": "ZeRO-3 (FSDP), everything sharded over all GPUs",
    "zero3-node": "ZeRO-3 with parameters kept inside the node",
    "hsdp": "FSDP inside groups of GPUs, replicated across them",
    "tp": "tensor parallelism, and ZeRO-1 across its groups",
}
WORTH_NAMING = 0.02
NOT_TOLD_APART = 1.03


def bound_by(row: Row, gpu_memory_bytes: float) -> str:
    """What bounds the plan: memory where it does not fit, else the shares of the step, largest first."""
    total = row.step_s
    shares = {name: value / total for name, value in row.seconds.items()}
    if not row.fits:
        held, size = max((value, name) for name, value in row.memory.items())
        need, card = apart(row.memory_bytes / 1e9, gpu_memory_bytes / 1e9)
        return f"does not fit: {need} GB for a GPU of {card} GB, {held / 1e9:,.0f} GB of it {size}"
    computing = sum(shares[name] for name in ("gemm", "attention", "pointwise"))
    waits = sorted(((shares[name], name) for name in _WAITS if shares[name] >= WORTH_NAMING), reverse=True)
    work = f"{100 * shares['gemm']:.0f} % {_NAMES['gemm']}"
    if not waits:
        return f"bound by computation: {work}, {100 * (1 - shares['gemm']):.0f} % everything else"
    lost = ", ".join(f"{100 * share:.0f} % {_NAMES[name]}" for share, name in waits)
    if waits[0][0] > 1 - computing - waits[0][0] and waits[0][0] > 0.25:
        return f"bound by {_NAMES[waits[0][1]]}: {lost}; {work}"
    return f"bound by computation ({work}); loses {lost}"


def apart(value: float, limit: float) -> tuple[str, str]:
    """Two figures without decimals, or with as many as tell them apart, up to three."""
    decimals = next((n for n in range(3) if f"{value:.{n}f}" != f"{limit:.{n}f}"), 3)
    return f"{value:,.{decimals}f}", f"{limit:,.{decimals}f}"


def efficiency_words(peak_flop_per_s: float, row: Row) -> str:
    """What MFU and HFU are shares of: the 16-bit peak, whatever products have."""
    teraflops = peak_flop_per_s / 1e12
    peak = f"{teraflops:,.0f} dense" if teraflops >= 10 else f"{digits(teraflops)} dense"
    if row.plan["precision"] == "fp8":
        return f"Products have 8 bits; MFU and HFU are shares of {peak} 16-bit TFLOP/s"
    return f"MFU and HFU are shares of {peak} TFLOP/s"


def meaning(strategy: str) -> str:
    """A strategy's name in words, for a reader who has not met it."""
    name, _, quantised = strategy.partition("+")
    words = MEANINGS.get(name) or MEANINGS[name.rstrip("0123456789")]
    return f"{words}, gathered in four bits" if quantised else words


def runs_as(row: Row) -> str:
    """What was chosen for the plan, as short as can be read: micro-batch x passes, recomputation, how it is split."""
    plan = row.plan
    words = f"{plan['micro_batch']} x {plan['grad_accum']:,}, {recompute_in_words(plan)}"
    words += f", ep {plan['ep']}" if plan["ep"] > 1 else ""
    words += " of whole experts" if plan["whole_experts"] else ""
    words += f", {plan['schedule']}" if plan["pp"] > 1 else ""
    words += f" x {plan['virtual_pp']}" if plan["virtual_pp"] > 1 else ""
    return f"{words}, sequence parallel" if plan["sequence_parallel"] else words


def ranked(rows: Iterable[Row]) -> list[Row]:
    """What fits with memory to spare first, then what is tight, then what does not fit; each the fastest first."""
    return sorted(rows, key=lambda row: (not row.fits, row.tight, row.step_s))


def equals(rows: Sequence[Row]) -> list[Row]:
    """Of :func:`ranked` rows those that the forecast cannot tell from the first, which fits: within 3 %.

    Repeats of one run vary by half that. Left out is what is the first plan under another name.
    """
    best = rows[0]
    within = NOT_TOLD_APART * best.step_s
    near = [row for row in rows[1:] if row.fits and row.tight == best.tight and row.step_s < within]
    same = {row.strategy for row in same_plan(rows)}
    return [row for row in near if row.strategy not in same]


def recommended(rows: Sequence[Row]) -> Row:
    """The best of rows, or of those not told apart from it the first that gathers in 16 bits.

    What cannot be measured is not worth other arithmetic in training.
    """
    best = best_of(rows)
    near = equals(ranked(rows)) if best.fits else []
    return next((row for row in (best, *near) if row.plan["gather_bits"] == 16), best)


def same_plan(rows: Sequence[Row]) -> list[Row]:
    """Of rows those that do what the first does under another name, as zero3 and hsdp within one node."""
    first = {**rows[0].plan, "strategy": ""}
    return [row for row in rows[1:] if {**row.plan, "strategy": ""} == first]


def faster_but_tight(rows: Sequence[Row]) -> list[Row]:
    """Of :func:`ranked` rows those that beat the first by more than 3 % where their memory holds."""
    best = rows[0]
    return [row for row in rows[1:] if row.tight > best.tight and row.step_s < best.step_s / NOT_TOLD_APART]


def verdict(rows: Sequence[Row], gpu_memory_bytes: float) -> str:
    """The answer in a sentence: the fastest plan that fits, those not told apart from it, those that may not fit.

    ``rows``: :func:`ranked`.
    """
    best = rows[0]
    if not best.fits:
        least = min(rows, key=lambda row: row.memory_bytes)
        need, card = apart(least.memory_bytes / 1e9, gpu_memory_bytes / 1e9)
        more = (
            ""
            if least.plan["parameter_shard"] > 1 or least.plan["num_gpus"] == 1
            else "Sharding more (zero3) would need less; "
        )
        return (
            f"Nothing fits: {least.strategy} needs least, {need} GB per GPU of {card} GB. {more}"
            "flopcast search splits layers and sequences too (pp, cp); more GPUs, a "
            "shorter sequence or larger tensor parallelism would help as well."
        )
    same, near, tight = (", ".join(row.strategy for row in of(rows)) for of in (same_plan, equals, faster_but_tight))
    words = [
        f"{best.strategy}, {digits(best.step_s)} s per step ({digits(best.low_s)}-{digits(best.high_s)})",
        f", {100 * best.mfu:.0f} % MFU" + (" of the 16-bit peak" if best.plan["precision"] == "fp8" else ""),
        f", tight: {100 * best.memory_bytes / gpu_memory_bytes:.0f} % of the memory" if best.tight else "",
        f"; here the same plan: {same}" if same else "",
        f"; not told apart from it: {near}" if near else "",
        f"; faster but tight in memory: {tight}" if tight else "",
    ]
    return f"Fastest that fits: {''.join(words)}."
