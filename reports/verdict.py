"""What a search found, in sentences: the winner, what it takes, what it rests on and what would help."""

from flopcast.reports.comparison import TOKENS_PER_PARAMETER, days
from flopcast.reports.document.numbers import digits, rounded, tokens
from flopcast.reports.explain import NOT_TOLD_APART, WORTH_NAMING
from flopcast.reports.placements import described, seconds
from flopcast.simulator.forecast import Row
from flopcast.simulator.search import SearchResult
from flopcast.simulator.units import format_gigabytes

# What an objective is called in a table and in the verdict, and what it is multiplied by.
COSTED = {"cost": ("cost of\na step", "costs {} a step,", 1.0), "energy": ("MJ per\nstep", "{} MJ per step,", 1e-6)}
# Where ranks split layers, sequences or the model's depth, Megatron-LM holds less and moves more than PyTorch does.
ENGINE = "The forecast is of PyTorch's own engine; {}--fix engine=megatron forecasts what Megatron-LM holds and moves."
# Placements that the first is held against, however many are shown.
MOST_NEAR = 5


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
        f"Best by {objective}{partly}{gpus}: {described(row)}:{least} {seconds(row.step_s)} s per step "
        f"({seconds(row.low_s)}-{seconds(row.high_s)}), {100 * row.mfu:.0f} % MFU{peak}, "
        f"{format_gigabytes(row.memory_bytes)} GB per GPU.{also}"
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
    said += filter(None, (exchange_remark(row), launch_remark(row)))
    larger = found.with_twice_the_memory
    if result.request.objective != "memory" and larger.step_s < row.step_s / NOT_TOLD_APART:
        said.append(
            f"GPUs of twice the memory would run {described(larger)} in {seconds(larger.step_s)} s, "
            f"{100 * (1 - larger.step_s / row.step_s):.0f} % less, with "
            f"{format_gigabytes(larger.memory_bytes)} GB each."
        )
    split = max(row.plan["tp"], row.plan["cp"], row.plan["pp"]) > 1
    if split and row.plan["engine"] == "fsdp2" and "engine" not in result.request.fixed:
        said.append(ENGINE.format(""))
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
        f"Tokens on their way to experts and back take {seconds(waits)} s of it, {100 * waits / row.step_s:.0f} %. "
        "Software that sends one copy to a node (DeepEP) is planned by --fix dispatcher=deepep, software that hides "
        "them behind another micro-batch (DualPipe, Megatron Core) by --fix overlap_expert=true."
    )


def launch_remark(row: Row) -> str:
    """Where the host holds a step up: the field by which a search plans with CUDA graphs; empty where it does not."""
    waits = row.seconds["launch"]
    if row.plan["cuda_graphs"] != "none" or waits < WORTH_NAMING * row.step_s:
        return ""
    return (
        f"The host launching kernels holds it up for {seconds(waits)} s, {100 * waits / row.step_s:.0f} %. Software "
        "that replays them from CUDA graphs is planned by --fix cuda_graphs=partial, of each layer what has fixed "
        "sizes, or by cuda_graphs=full, all passes" + (" (with dispatcher=deepep)." if row.plan["ep"] > 1 else ".")
    )


def _duration(num_days: float) -> str:
    return f"{digits(num_days)} days" if num_days >= 1 else f"{digits(24 * num_days)} hours"


def _compared(result: SearchResult, other: Row, row: Row) -> str:
    more = 100 * (result.objective(other) / result.objective(row) - 1)
    if result.request.objective == "memory":
        return f"{format_gigabytes(other.memory_bytes)} GB per GPU, {more:.0f} % more"
    return f"{seconds(other.step_s)} s per step, " + (f"{more:.0f} % more" if more >= 0.5 else "hardly more")
