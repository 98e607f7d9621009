"""Sections that compare: the strategies, why they take their time, memory, traffic, and what the two remedies bring."""

from collections.abc import Mapping

import pandas as pd

from flopcast.reports.document.effects import exact, quantised
from flopcast.reports.document.further import further_table, further_words, placements_table
from flopcast.reports.document.numbers import digits, gigabytes, percent, thousands, time_unit
from flopcast.reports.document.section import Picture, Section
from flopcast.reports.document.study import Study, room
from flopcast.reports.document.table import Table, band, number, text
from flopcast.reports.explain import bound_by, efficiency_words
from flopcast.reports.figures.effects import effects_figure
from flopcast.reports.figures.memory import memory_figure
from flopcast.reports.figures.strategies import strategies_figure
from flopcast.reports.figures.traffic import traffic_figure
from flopcast.reports.figures.waterfall import waterfall_figure
from flopcast.reports.frames import rows_of
from flopcast.simulator.conventions import CONVENTIONS
from flopcast.simulator.forecast import Row


def strategies(study: Study) -> Section:
    """Every strategy at its best."""
    frame, convention = study.strategies, study.comparison.convention
    unit, per_day = time_unit(study.cost.days)
    headings = ("strategy", "step, s", "band, s", "tokens/s per GPU", "MFU %", "HFU %", "GB per GPU", unit, "runs as")
    rows = tuple(
        (
            text(row.strategy),
            number(row.step_s),
            band(row.low_s, row.step_s, row.high_s),
            number(row.tokens_per_s_per_gpu, thousands(row.tokens_per_s_per_gpu)),
            number(100 * row.mfu, percent(row.mfu)),
            number(100 * row.hfu, percent(row.hfu)),
            number(row.memory_bytes / 1e9, gigabytes(row.memory_bytes) + room(row)),
            number(row.days * per_day, digits(row.days * per_day) if row.fits else "-"),
            text(row.runs_as),
        )
        for row in rows_of(frame)
    )
    first, fitting = rows_of(frame)[0], rows_of(frame[frame["fits"]])
    alternative = f"Step time of {len(frame)} strategies, {len(fitting)} of which fit. " + (
        f"Recommended is {first.strategy} at {digits(first.step_s)} seconds, slowest of those that fit "
        f"{fitting[-1].strategy} at {digits(fitting[-1].step_s)}."
        if fitting
        else "None fits."
    )
    return Section(
        "strategies",
        "Strategies side by side",
        (
            "Each runs with the micro-batch and recomputation that fit and are fastest, unless they were given. "
            + further_words(study.further, study.best_strategy),
        ),
        (Picture("strategies-figure", strategies_figure(frame), "Seconds per step and their band.", alternative),),
        (
            Table("strategies-table", "The strategies, best first", headings, rows, (0,) if study.best.fits else ()),
            *([further_table(study.further, study.num_tokens)] if study.further else []),
            *([_on_more(study, study.on_more)] if study.on_more else []),
        ),
        (
            "Runs as: micro-batch x passes per step, recomputation. The time includes failures and checkpoints.",
            f"{efficiency_words(study.cluster.gpu.tensor_flop_per_s, study.best)}, counting "
            f"{CONVENTIONS[convention]}; HFU counts what full recomputation does again.",
            *_left_out(study.comparison.left_out),
        ),
    )


def _left_out(reasons: Mapping[str, str]) -> list[str]:
    """Why strategies have no row, those of one reason together."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason.removeprefix(f"strategy '{name}': "), []).append(name)
    return [f"Left out: {', '.join(names)} ({reason})." for reason, names in by_reason.items()]


def _on_more(study: Study, row: Row) -> Table:
    caption = f"What fits on {thousands(row.plan['num_gpus'])} GPUs"
    return placements_table("on-more-table", caption, study.model, study.cluster, [row], study.num_tokens)


def why(study: Study) -> Section:
    """From peak to achieved, and the communication that is waited for."""
    frame, best = study.waterfall, study.costed
    step = frame["seconds"].sum()
    losses = frame.iloc[1:].nlargest(3, "seconds")
    largest = ", ".join(f"{row.part} {percent(row.seconds / step)} %" for row in rows_of(losses))
    parts = tuple(
        (
            text(row.part),
            number(row.seconds, f"{row.seconds:.3f}"),
            number(100 * row.seconds / step, percent(row.seconds / step)),
        )
        for row in rows_of(frame)
    )
    exposed = tuple(
        (
            text(f"{row.collective.replace('_', '-')} over {row.group}, {row.phase}"),
            number(row.busy_s, f"{row.busy_s:.3f}"),
            number(row.exposed_s, f"{row.exposed_s:.3f}"),
        )
        for row in rows_of(study.collectives)
    )
    bounds = tuple(
        (
            text(row.strategy),
            number(row.exposed_communication_s, f"{row.exposed_communication_s:.2f}"),
            text(row.bound_by),
        )
        for row in rows_of(study.strategies[study.strategies["fits"]] if best.fits else study.strategies)
    )
    tables = [Table("waterfall-table", "From peak to achieved", ("part of the step", "s", "%"), parts)]
    if exposed:
        headings = ("collective", "under way, s", "waited for, s")
        tables.append(Table("collectives-table", f"Collectives of {best.strategy} in one step", headings, exposed))
    headings = ("strategy", "exposed communication, s", "what bounds it")
    if bounds:
        tables.append(Table("bounds-table", "What bounds each strategy", headings, bounds))
    played = f"Played event by event, the step takes {digits(study.timeline.step_s)} s"
    departs = study.timeline.departs_from_closed_form
    on = "" if best is study.best else f" on {thousands(best.plan['num_gpus'])} GPUs"
    return Section(
        "why",
        f"Why {best.strategy}{on} takes {digits(best.step_s)} s",
        (f"{best.strategy}: {bound_by(best, study.cluster.gpu.memory_bytes)}.",),
        (
            Picture(
                "waterfall-figure",
                waterfall_figure(frame),
                "From the model's FLOPs at peak to the step as it runs, on the average GPU.",
                f"The ideal at peak is {percent(frame['seconds'].iloc[0] / step)} % of the step; the largest losses "
                f"are {largest}.",
            ),
        ),
        tuple(tables),
        (
            "Exposed communication is what is waited for, and what communication slows computation beside it by.",
            f"{played}; the closed form says {digits(best.step_s)} s" + (f": {departs}." if departs else "."),
        ),
    )


def memory(study: Study) -> Section:
    """What holds the memory of one GPU."""
    frame, card = study.memory, study.cluster.gpu.memory_bytes
    totals = frame.sum(axis=1)
    rows = tuple(
        (
            text(str(name)),
            *(number(size / 1e9, f"{size / 1e9:,.1f}") for size in held),
            number(totals[name] / 1e9, f"{totals[name] / 1e9:,.1f}"),
            number(100 * totals[name] / card, f"{100 * totals[name] / card:,.0f}"),
        )
        for name, held in zip(frame.index, frame.to_numpy(), strict=True)
    )
    over = [str(name) for name in frame.index if totals[name] > card]
    fitting = f"{', '.join(over)} do not fit" if len(over) > 1 else f"{over[0]} does not fit" if over else "All fit"
    headings = ("strategy", *(str(column) for column in frame.columns), "total", "% of the card")
    return Section(
        "memory",
        "Memory per GPU",
        (f"A card has {gigabytes(card)} GB ({digits(card / 2**30)} GiB). {fitting}.",),
        (
            Picture(
                "memory-figure",
                memory_figure(frame, card),
                "The peak of a step, by what holds it.",
                f"Memory per GPU by strategy, {gigabytes(totals.min())} to {gigabytes(totals.max())} GB beside a card "
                f"of {gigabytes(card)} GB. {fitting}.",
            ),
        ),
        (Table("memory-table", "GB per GPU by what holds them", headings, rows),),
        (
            "Activations include those of the layer that is computed again; gathered includes 4-bit payloads and "
            "gradients before their reduction; slack is the CUDA context, NCCL's buffers and what the allocator cannot "
            "use.",
        ),
    )


def traffic(study: Study) -> Section:
    """Bytes in the node and between nodes, and the report's table of one layer."""
    frame = study.strategies
    if study.num_gpus == 1:
        return Section("traffic", "Traffic", ("One GPU exchanges nothing.",))
    rows = tuple(
        (
            text(row.strategy),
            number(row.inter_node_bytes / 1e9, f"{row.inter_node_bytes / 1e9:,.1f}"),
            number(row.intra_node_bytes / 1e9, f"{row.intra_node_bytes / 1e9:,.1f}"),
        )
        for row in rows_of(frame)
    )
    headings = ("strategy", "between nodes, GB per step", "in the node, GB per step")
    tables = [Table("traffic-table", "What the GPUs of one node send in a step", headings, rows)]
    layers = tuple(
        (
            text(row.strategy),
            text(row.collective.replace("_", "-")),
            *(number(value, f"{value:,}") for value in (row.elements, row.tensor_bytes, row.moved_bytes)),
            number(row.moved_bytes / 2**20, f"{row.moved_bytes / 2**20:,.2f}"),
        )
        for row in study.layer_traffic
    )
    if layers:
        of_layer = ("strategy", "collective", "elements", "tensor, bytes", "moved, bytes", "moved, MiB")
        caption = "To execute one Transformer layer forward, 16 bits, exact"
        tables.append(Table("layer-table", caption, of_layer, layers))
    least, *_, most = sorted(rows_of(frame) * 2, key=lambda row: row.inter_node_bytes)
    return Section(
        "traffic",
        "Traffic",
        (
            "Bytes are exact under ring accounting: of every call (n-1)/n of the tensor per rank, twice for an "
            "all-reduce.",
        ),
        (
            Picture(
                "traffic-figure",
                traffic_figure(frame),
                "What the GPUs of one node send in one step.",
                f"Between nodes {least.strategy} sends least, {gigabytes(least.inter_node_bytes)} GB per node "
                f"and step, and {most.strategy} most, {gigabytes(most.inter_node_bytes)} GB.",
            ),
        ),
        tuple(tables),
    )


def remedies(study: Study) -> Section:
    """What the 4-bit all-gather and the hand-written kernels bring."""
    frame = study.effects
    base = exact(study.best.strategy)
    cases = {(row.strategy, row.gather_bits, row.fused_kernels): row for row in rows_of(frame)}
    rows = []
    for (strategy, bits, fused), row in cases.items():
        if not fused:
            continue
        by_kernels = 1 - row.step_s / cases[strategy, bits, False].step_s
        by_gather = 1 - row.step_s / cases[strategy, 16, True].step_s
        rows.append(
            (
                text(quantised(strategy) if bits == 4 else strategy),
                number(row.step_s),
                number(cases[strategy, bits, False].step_s),
                number(100 * by_kernels, percent(by_kernels)),
                number(100 * by_gather, percent(by_gather)) if bits == 4 else text(""),
                text("" if row.fits else "does not fit"),
            )
        )
    choices = _choices(frame[frame["strategy"] == base])
    shown = rows_of(choices)
    first, last = shown[0], shown[-1]
    gain = 1 - last.step_s / first.step_s
    headings = ("strategy", "step, s", "with eager kernels, s", "kernels save %", "4-bit gather saves %", "remark")
    return Section(
        "remedies",
        "The 4-bit all-gather and the kernels",
        (
            f"For {base}, {last.choice} take {percent(gain)} % off the step ({digits(first.step_s)} to "
            f"{digits(last.step_s)} s)."
            if gain > 0
            else f"For {base} they do not shorten the step.",
        ),
        (
            Picture(
                "remedies-figure",
                effects_figure(choices),
                f"{base} with and without {'each' if len(shown) > 2 else 'them'}.",
                f"Seconds per step of {base}: "
                + ", ".join(f"{row.choice} {digits(row.step_s)}" for row in rows_of(choices))
                + ".",
            ),
        ),
        (Table("remedies-table", "What each saves of the step", headings, tuple(rows)),),
        (
            "Each case runs with the micro-batch and recomputation that are best for it. Kernels: RMSNorm and rotary "
            "positions by hand instead of eager PyTorch. The 4-bit gather moves parameters as NF4.",
        ),
    )


def _choices(frame: pd.DataFrame) -> pd.DataFrame:
    """Of one strategy: neither, one, the other, both. Columns: choice, step_s, fits."""
    names = {
        (16, False): "neither",
        (4, False): "4-bit gather",
        (16, True): "kernels",
        (4, True): "both",
    }
    found = {(row.gather_bits, row.fused_kernels): row for row in rows_of(frame)}
    if len(found) == 2:
        names = {(16, False): "eager kernels", (16, True): "the kernels"}
    return pd.DataFrame(
        [(names[key], found[key].step_s, found[key].fits) for key in names if key in found],
        columns=["choice", "step_s", "fits"],
    )
