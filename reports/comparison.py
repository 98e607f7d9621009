"""A comparison as a planner reads it: tables on a terminal, or one JSON document."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from flopcast.reports.document.numbers import counted, digits, millions, time_unit, tokens
from flopcast.reports.explain import bound_by, efficiency_words, ranked, runs_as, verdict
from flopcast.reports.terminal_table import terminal_table
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.compare import MOST_GLOBAL_BATCH_TOKENS, Comparison
from flopcast.simulator.conventions import CONVENTIONS
from flopcast.simulator.forecast import Row
from flopcast.simulator.model import Model
from flopcast.simulator.plan import Plan, Plans
from flopcast.simulator.units import format_count, format_gigabytes

# A model worth training sees about 20 tokens per parameter (Hoffmann et al., arXiv:2203.15556); many see more.
TOKENS_PER_PARAMETER = 20
# A model's context above this is what it was extended to at the end; most of its training ran on shorter sequences.
LONG_CONTEXT = 16384
EVENLY = "mixture of experts: tokens are assumed to fall evenly on the experts{alone}; of NVIDIA's published mixtures "
LAUNCHED = (
    "those launched kernel by kernel took 1.2 times the forecast in the median, and up to 1.5 times in nine of ten; "
    "those that CUDA graphs replay took as long as forecast (search --fix cuda_graphs=full dispatcher=deepep "
    "overlap_expert=true; docs/models.md)"
)
REPLAYED = (
    "those that CUDA graphs replay took as long as forecast in the median, GPT-OSS 1.3 to 2.1 times (docs/models.md)"
)
# Generations of the GPUs of the published runs that constants and band are fitted to.
FITTED = ("ampere", "hopper", "blackwell")
UNFITTED = (
    "gpu: constants and band are of runs on GPUs of the generations ampere, hopper and blackwell, and {name} is of none"
    " of them; flopcast accuracy --runs holds the forecast against runs of your own"
)


def as_json(comparison: Comparison, token_budget: float | None = None) -> dict[str, Any]:
    """The document that ``flopcast compare --json`` prints; efficiencies are fractions, the rest SI base units."""
    gpu = comparison.cluster.gpu
    budget = token_budget or float(TOKENS_PER_PARAMETER * comparison.model.num_parameters)
    return {
        "model": {
            "name": comparison.model.name,
            "num_parameters": comparison.model.num_parameters,
            "num_active_parameters": comparison.model.num_active_parameters,
        },
        "cluster": {
            "name": comparison.cluster.name,
            "gpu": gpu.name,
            "num_gpus": comparison.num_gpus,
            "gpus_per_node": comparison.cluster.gpus_per_node,
            "memory_bytes": gpu.memory_bytes,
            "assumptions": assumptions(comparison.model, comparison.cluster),
            "measured": list(_measured(comparison)),
        },
        "outside_calibration": _outside(comparison),
        "convention": comparison.convention,
        "seq_len": comparison.seq_len,
        "tokens_per_gpu": comparison.tokens_per_gpu,
        "num_tokens": budget,
        "chosen": list(comparison.chosen),
        "layer_traffic": [asdict(row) for row in comparison.layer_traffic],
        "rows": [row_as_json(row, gpu.memory_bytes) | {"days": days(row, budget)} for row in comparison.rows],
        "left_out": comparison.left_out,
    }


def row_as_json(row: Row, memory_bytes: float) -> dict[str, Any]:
    """One forecast as a row of the document, on GPUs of ``memory_bytes``."""
    return {**asdict(row), "bound_by": bound_by(row, memory_bytes)}


def render(comparison: Comparison, token_budget: float | None) -> Iterator[RenderableType]:
    """What the terminal shows, in order: the question, the answer, the tables, the reasons, what is assumed."""
    model, cluster = comparison.model, comparison.cluster
    rows = ranked(comparison.rows)
    budget = token_budget or TOKENS_PER_PARAMETER * model.num_parameters
    yield from _question(comparison, budget, token_budget is None)
    yield Text(f"\n{verdict(rows, cluster.gpu.memory_bytes)}\n", style="bold")
    yield _strategies(rows, budget)
    yield _heading("Communication of one node's GPUs, and what bounds each strategy")
    yield _communication(rows, cluster.gpu.memory_bytes)
    yield _heading("Memory per GPU, GB")
    yield _memory(rows)
    if comparison.layer_traffic:
        yield _heading("To execute one Transformer layer (forward, 16 bits)")
        yield _layer_traffic(comparison)
    if comparison.left_out:
        yield _heading("Left out")
    for strategy, reason in comparison.left_out.items():
        yield Text(f"{strategy}: {reason}")
    sections = {
        "Measured on this machine": _measured(comparison),
        "Outside what was calibrated": _outside(comparison),
        "Rests on assumptions": assumptions(model, cluster),
    }
    for heading, notes in sections.items():
        if notes:
            yield _heading(heading)
        for note in notes:
            yield Text(note)


def _measured(comparison: Comparison) -> Sequence[str]:
    """What of the machine a profile measured."""
    return () if comparison.cluster.measured is None else comparison.cluster.measured.what


def _outside(comparison: Comparison) -> list[str]:
    """Where the rows' plans leave the range of the runs that the machine was calibrated on."""
    if comparison.cluster.calibration is None:
        return []
    plans = Plans.of([Plan(**row.plan) for row in comparison.rows])
    return comparison.cluster.calibration.notes(comparison.model, plans)


def _heading(words: str) -> Text:
    return Text(f"\n{words}", style="bold")


def _question(comparison: Comparison, budget: float, assumed: bool) -> Iterator[Text]:
    model, cluster = comparison.model, comparison.cluster
    batch = comparison.tokens_per_gpu * comparison.num_gpus
    sequences = batch // comparison.seq_len
    yield Text(
        f"{model.name} ({num_parameters(model)}) on {comparison.num_gpus:,} x "
        f"{cluster.gpu.name}, {cluster.name}: {nodes_in_words(cluster, comparison.num_gpus)}",
        style="bold",
    )
    yield Text(
        f"{counted(comparison.tokens_per_gpu, 'token')} per GPU and step, {comparison.seq_len:,} per sequence: "
        f"{counted(sequences, 'sequence')}, {millions(batch)} M tokens per step"
    )
    yield from map(Text, batch_notes(comparison))
    why = f", {TOKENS_PER_PARAMETER} per parameter (--tokens sets it)" if assumed else ""
    unit, _ = _unit(comparison.rows, budget)
    yield Text(f"{unit.capitalize()} are for {tokens(budget)}{why}, without failures.")
    yield Text(
        f"{efficiency_words(cluster.gpu.tensor_flop_per_s, comparison.rows[0])} by --convention "
        f"{comparison.convention}: {CONVENTIONS[comparison.convention]}."
    )


def assumptions(model: Model, cluster: Cluster, hidden_exchange: bool = False, replayed: bool = False) -> list[str]:
    """What a forecast of the model on the cluster rests on that is not published.

    ``hidden_exchange``: tokens go to experts beside other micro-batches (``Plan.overlap_expert``). ``replayed``: CUDA
    graphs launch all passes (``Plan.cuda_graphs``).
    """
    evenly = EVENLY.format(alone="" if hidden_exchange else " and nothing to hide their exchange")
    kinds = [evenly + (REPLAYED if replayed else LAUNCHED)] if model.num_experts else []
    if cluster.gpu.architecture not in FITTED and cluster.calibration is None:
        kinds.append(UNFITTED.format(name=cluster.gpu.name))
    return [*cluster.assumptions, *model.assumptions, *kinds]


def batch_notes(comparison: Comparison) -> list[str]:
    """What is unusual about the batch that was left to the comparison."""
    notes = []
    if "seq_len" in comparison.chosen and (note := long_context(comparison.model)):
        notes.append(note)
    batch = comparison.tokens_per_gpu * comparison.num_gpus
    if "tokens_per_gpu" in comparison.chosen and batch > MOST_GLOBAL_BATCH_TOKENS:
        notes.append(
            "That is a large batch, for these strategies give every GPU a sequence of its own; flopcast search splits "
            f"sequences and layers as well (cp, pp) and takes at most {MOST_GLOBAL_BATCH_TOKENS / 1e6:.0f} M tokens."
        )
    return notes


def long_context(model: Model) -> str:
    """A word of warning where the sequence length left to the model is longer than most training runs on; or ""."""
    if model.context <= LONG_CONTEXT:
        return ""
    return f"Sequences of {model.context:,}, the longest the model takes; most training runs on shorter: set --seq-len."


def nodes_in_words(cluster: Cluster, num_gpus: int) -> str:
    """Which nodes the GPUs are: ``60 nodes of 8``, ``1 node of 8``, ``2 of the 8 GPUs of a node``."""
    if num_gpus < cluster.gpus_per_node:
        return f"{num_gpus} of the {cluster.gpus_per_node} GPUs of a node"
    return f"{counted(num_gpus // cluster.gpus_per_node, 'node')} of {cluster.gpus_per_node}"


def num_parameters(model: Model) -> str:
    """How many, and of a mixture of experts how many of them one token uses."""
    total, active = model.num_parameters, model.num_active_parameters
    words = f"{format_count(total)} parameters"
    return words if active == total else f"{words}, {format_count(active)} active"


def days(row: Row, budget: float) -> float:
    """Days that so many tokens take without failures."""
    return float(budget / (row.tokens_per_s_per_gpu * row.plan["num_gpus"]) / 86400)


def _unit(rows: Sequence[Row], budget: float) -> tuple[str, float]:
    """What the run's time is told in, by the fastest plan that fits, and how many of it a day has."""
    return time_unit(min((days(row, budget) for row in rows if row.fits), default=1.0))


def _strategies(rows: list[Row], budget: float) -> Table:
    unit, per_day = _unit(rows, budget)
    headings = ("step, s\n(80 % band)", "tokens/s\nper GPU", "MFU\n%", "HFU\n%", "memory\nGB per GPU", unit)
    table = terminal_table(["strategy"], headings)
    table.add_column("micro-batch x passes,\nrecompute", overflow="fold")
    for row in rows:
        table.add_row(
            row.strategy,
            f"{_seconds(row.step_s)} ({_seconds(row.low_s)}-{_seconds(row.high_s)})",
            f"{row.tokens_per_s_per_gpu:,.0f}",
            f"{100 * row.mfu:.1f}",
            f"{100 * row.hfu:.1f}",
            f"{format_gigabytes(row.memory_bytes)} {_room(row)}",
            _time(days(row, budget), per_day) if row.fits else "-",
            runs_as(row),
            style="" if row.fits else "dim",
        )
    return table


def _communication(rows: list[Row], memory_bytes: float) -> Table:
    headings = ("GB per step\nbetween nodes", "GB per step\nin the node", "exposed\nof step, s")
    table = terminal_table(["strategy"], headings)
    table.add_column("what bounds it", overflow="fold")
    for row in rows:
        table.add_row(
            row.strategy,
            f"{row.inter_node_bytes / 1e9:,.1f}",
            f"{row.intra_node_bytes / 1e9:,.1f}",
            f"{row.exposed_communication_s:.2f}" if row.step_s >= 1 else digits(row.exposed_communication_s),
            bound_by(row, memory_bytes),
            style="" if row.fits else "dim",
        )
    return table


def _memory(rows: list[Row]) -> Table:
    """By what holds it; a layer's activations while it is recomputed count as activations, NF4 payloads as gathered."""
    headings = ("params", "gradients", "optimizer", "activations", "gathered", "logits", "slack", "total")
    table = terminal_table(["strategy"], headings)
    for row in rows:
        held = row.memory
        parts = [
            *(held["parameters"], held["gradients"], held["optimizer"]),
            *(held["activations"] + held["workspace"], held["gathered"] + held["quantised"]),
            *(held["logits"], held["slack"], row.memory_bytes),
        ]
        table.add_row(row.strategy, *(format_gigabytes(part) for part in parts), style="" if row.fits else "dim")
    return table


def _time(number_of_days: float, per_day: float) -> str:
    return f"{number_of_days:,.1f}" if per_day == 1 else digits(number_of_days * per_day)


def _seconds(value: float) -> str:
    """A time at the decimals a reader can use: none from 100 on, below 1 as many as three digits take."""
    return f"{value:,.0f}" if value >= 100 else digits(value) if value < 1 else f"{value:.2f}"


def _room(row: Row) -> str:
    if not row.fits:
        return "TOO BIG"
    return "tight" if row.tight else "fits"


def _layer_traffic(comparison: Comparison) -> Table:
    table = terminal_table(["strategy"])
    table.add_column("collective")
    for heading in ("elements", "tensor, MiB", "moved, MiB"):
        table.add_column(heading, justify="right")
    for row in comparison.layer_traffic:
        table.add_row(
            row.strategy,
            row.collective.replace("_", "-"),
            f"{row.elements:,}",
            f"{row.tensor_bytes / 2**20:,.0f}",
            f"{row.moved_bytes / 2**20:,.0f}",
        )
    return table
