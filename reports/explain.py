"""Why a plan takes the time it takes, in a sentence."""

from flopcast.simulator.forecast import Row

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
WORTH_NAMING = 0.02
NOT_TOLD_APART = 1.03


def bound_by(row: Row, gpu_memory_bytes: float) -> str:
    """What bounds the plan: memory where it does not fit, else the shares of the step, largest first."""
    total = row.step_s
    shares = {name: value / total for name, value in row.seconds.items()}
    if not row.fits:
        held, size = max((value, name) for name, value in row.memory.items())
        return (
            f"does not fit: {row.memory_bytes / 1e9:.0f} GB for a GPU of {gpu_memory_bytes / 1e9:.0f} GB, "
            f"{held / 1e9:.0f} GB of it {size}"
        )
    computing = sum(shares[name] for name in ("gemm", "attention", "pointwise"))
    waits = sorted(((shares[name], name) for name in _WAITS if shares[name] >= WORTH_NAMING), reverse=True)
    work = f"{shares['gemm']:.0%} {_NAMES['gemm']}"
    if not waits:
        return f"bound by computation: {work}, {1 - shares['gemm']:.0%} everything else"
    lost = ", ".join(f"{share:.0%} {_NAMES[name]}" for share, name in waits)
    if waits[0][0] > 1 - computing - waits[0][0] and waits[0][0] > 0.25:
        return f"bound by {_NAMES[waits[0][1]]}: {lost}; {work}"
    return f"bound by computation ({work}); loses {lost}"


def runs_as(row: Row) -> str:
    """What was chosen for the plan, as short as can be read: micro-batch x passes, recomputation, how it is split."""
    plan = row.plan
    words = f"{plan['micro_batch']} x {plan['grad_accum']}, {plan['recompute']}"
    words += f", ep {plan['ep']}" if plan["ep"] > 1 else ""
    return f"{words}, sequence parallel" if plan["sequence_parallel"] else words


def verdict(ranked: list[Row], gpu_memory_bytes: float) -> str:
    """The answer in a sentence: the fastest plan that fits, and those the forecast cannot tell from it.

    ``ranked``: fastest that fits first. Two plans closer than 3 % are not told apart,
    for repeats of one run vary by half that.
    """
    best = ranked[0]
    if not best.fits:
        least = min(ranked, key=lambda row: row.memory_bytes)
        return (
            f"Nothing fits: {least.strategy} needs least, {least.memory_bytes / 1e9:,.0f} GB per GPU of "
            f"{gpu_memory_bytes / 1e9:.0f} GB. More GPUs, a shorter sequence or larger tensor parallelism would help."
        )
    near = [row.strategy for row in ranked[1:] if row.fits and row.step_s < NOT_TOLD_APART * best.step_s]
    also = f"; not told apart from it: {', '.join(near)}" if near else ""
    return (
        f"Fastest that fits: {best.strategy}, {best.step_s:.3g} s per step ({best.low_s:.3g}-{best.high_s:.3g}), "
        f"{100 * best.mfu:.0f} % MFU{also}."
    )
