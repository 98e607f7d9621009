"""Sections that look beyond the question: more and fewer GPUs, other hardware, and the whole run's bill."""

from typing import Any

from flopcast.reports.document.numbers import (
    JOULES_PER_MWH,
    digits,
    gigabytes,
    millions,
    percent,
    rounded,
    thousands,
    time_unit,
    tokens,
)
from flopcast.reports.document.section import Picture, Section
from flopcast.reports.document.study import Study
from flopcast.reports.document.table import Cell, Table, number, text
from flopcast.reports.figures.scaling import scaling_figure
from flopcast.reports.figures.sensitivity import sensitivity_figure
from flopcast.reports.frames import rows_of
from flopcast.simulator.compare import MOST_GLOBAL_BATCH_TOKENS
from flopcast.simulator.goodput import RunCost

SHOWN_STRATEGIES = 5


def scaling(study: Study) -> Section:
    """The same training on other numbers of GPUs."""
    best, (unit, per_day) = study.at_each_count, time_unit(study.cost.days)
    refused = tuple(f"{count:,} GPUs: {reason}" for count, reason in study.scaling_left_out.items())
    counts = sorted(set(study.scaling["num_gpus"]) - set(best["num_gpus"]))
    if counts:
        on = ", ".join(thousands(count) for count in counts)
        width = study.best.plan["gradient_bits"]
        refused += (f"No plan with gradients in {width} bits fits on {on} GPU{'s' if counts != [1] else ''}.",)
    if best.empty:
        return Section("scaling", "On fewer and on more GPUs", ("No strategy fits at any count.",), remarks=refused)
    shown = rows_of(best)
    first, last, cheapest = shown[0], shown[-1], min(shown, key=lambda row: row.gpu_hours)
    dearest = max(row.gpu_hours for row in shown)
    rows = tuple(
        (
            number(row.num_gpus, thousands(row.num_gpus)),
            text(row.strategy),
            number(row.step_s),
            number(100 * row.mfu, percent(row.mfu)),
            number(row.tokens_per_step / 1e6, millions(row.tokens_per_step)),
            number(row.days * per_day),
            number(row.gpu_hours, rounded(row.gpu_hours)),
            text(_remark(row)),
        )
        for row in shown
    )
    whole = study.comparison.tokens_per_gpu >= study.comparison.seq_len
    near = "rounded to whole sequences per GPU, at least one" if whole else "or the next that a strategy runs on"
    asked = tuple(index for index, row in enumerate(shown) if row.num_gpus == study.num_gpus)
    headings = ("GPUs", "best plan", "step, s", "MFU %", "M tokens per step", unit, "GPU-hours", "remark")
    names = list(study.strategies[study.strategies["fits"]]["strategy"]) or list(dict.fromkeys(best["strategy"]))
    return Section(
        "scaling",
        "On fewer and on more GPUs",
        (
            f"From {thousands(first.num_gpus)} to {thousands(last.num_gpus)} GPUs the run "
            f"{'shortens' if last.days < first.days else 'goes'} from {digits(first.days * per_day)} to "
            f"{digits(last.days * per_day)} {unit} and costs {rounded(cheapest.gpu_hours)} to {rounded(dearest)} "
            f"GPU-hours, least on {thousands(cheapest.num_gpus)}."
            if len(shown) > 1
            else f"On {thousands(first.num_gpus)} GPUs the run takes {digits(first.days * per_day)} {unit} and "
            f"{rounded(first.gpu_hours)} GPU-hours.",
        ),
        (
            Picture(
                "scaling-figure",
                scaling_figure(
                    study.scaling,
                    best.assign(time=best["days"] * per_day),
                    study.num_gpus,
                    names[:SHOWN_STRATEGIES],
                    unit,
                ),
                f"{unit.capitalize()} of training and MFU; the dotted line is at {thousands(study.num_gpus)}.",
                f"The run takes {digits(first.days * per_day)} {unit} on {thousands(first.num_gpus)} GPUs and "
                f"{digits(last.days * per_day)} on {thousands(last.num_gpus)}; MFU of the best plan goes from "
                f"{percent(first.mfu)} to {percent(last.mfu)} %.",
            ),
        ),
        (Table("scaling-table", "The best plan found that fits, at each count", headings, rows, asked),),
        (
            f"The batch is that of the question {near}. Tried at each "
            "count: the strategies, and all placements where none fits or, up to twice the GPUs, they lose a fifth per "
            "GPU.",
            *refused,
        ),
    )


def _remark(row: Any) -> str:
    """What a row of the scaling table needs to be read with."""
    batch = f"a larger batch than is published ({MOST_GLOBAL_BATCH_TOKENS / 1e6:.0f} M tokens)"
    said = (
        (row.available, "more than the cluster has"),
        (row.tokens_per_step <= MOST_GLOBAL_BATCH_TOKENS, batch),
        (not row.tight, "tight in memory"),
    )
    return "; ".join(words for as_usual, words in said if not as_usual)


def sensitivity(study: Study) -> Section:
    """Half and twice of each figure."""
    frame, (unit, per_day) = study.sensitivity, time_unit(study.cost.days)
    reach = (frame["days"] - study.cost.days).abs().fillna(0).groupby(frame["figure"]).max()
    ordered = frame.assign(order=frame["figure"].map(reach)).sort_values("order", ascending=False, kind="stable")
    rows = tuple(
        (
            text(row.figure),
            text(f"{row.change}: {row.value}"),
            text(row.strategy if not row.why_not else row.why_not),
            number(row.days * per_day),
            number(
                100 * (row.ratio - 1),
                f"{round(100 * (row.ratio - 1), 1) + 0.0:+.1f}" if row.ratio == row.ratio else "-",
            ),
        )
        for row in rows_of(ordered)
    )
    headings = ("what", "at", "best plan", unit, "change %")
    table = Table("sensitivity-table", f"{unit.capitalize()} of training under each change", headings, rows)
    title = "What would change it"
    known = frame.dropna(subset=["days"])
    if known.empty or not study.best.fits:
        return Section("sensitivity", title, ("Each figure at half and at twice what it is.",), tables=(table,))
    most = min((row for row in rows_of(known) if row.figure == reach.idxmax()), key=lambda row: row.days)
    asked = digits(study.cost.days * per_day)
    return Section(
        "sensitivity",
        title,
        (
            f"The {most.figure} matters most. With {most.change} of it ({most.value}) the run would take "
            f"{digits(most.days * per_day)} {unit} instead of {asked}.",
        ),
        (
            Picture(
                "sensitivity-figure",
                sensitivity_figure(frame.assign(time=frame["days"] * per_day), study.cost.days * per_day, unit),
                f"{unit.capitalize()} of training with half and with twice of each figure; the best plan is chosen "
                "again each time.",
                f"{unit.capitalize()} by figure, half and twice: "
                + "; ".join(f"{row.figure} {row.change} {digits(row.days * per_day)}" for row in rows_of(known))
                + f". As asked: {asked}.",
            ),
        ),
        (table,),
    )


def bill(study: Study) -> Section:
    """Days, GPU-hours, energy and money, with failures and checkpoints."""
    runs = (study.low, study.cost, study.high)
    unit, per_day = time_unit(study.cost.days)
    best = study.costed
    on = "" if best is study.best else f" on {thousands(best.plan['num_gpus'])} GPUs"

    def line(name: str, values: tuple[float, ...], shown: tuple[str, ...]) -> tuple[Cell, ...]:
        return (text(name), *(number(value, words) for value, words in zip(values, shown, strict=True)))

    def of_runs(name: str, values: list[float], show: object = digits) -> tuple[Cell, ...]:
        return line(name, tuple(values), tuple(show(value) for value in values))  # type: ignore[operator]

    rows = [
        of_runs("seconds per step", [best.low_s, best.step_s, best.high_s]),
        of_runs(unit, [run.days * per_day for run in runs]),
        of_runs(f"{unit} of training alone", [run.compute_s / 86400 * per_day for run in runs]),
        of_runs("GPU-hours", [run.gpu_hours for run in runs], rounded),
        of_runs("energy, MWh", [run.energy_j / JOULES_PER_MWH for run in runs], rounded),
    ]
    price = study.cluster.costs.gpu_hour_price
    about_price = " The cluster file has no gpu_hour_price, so no money."
    if price is not None:
        source = study.cluster.sources.get("operation.gpu_hour_price")
        about_price = f" The price: {source}." if source else ""
        rows.append(of_runs(f"money, at {price:g} per GPU-hour", [run.money or 0.0 for run in runs], rounded))
    rows += [
        of_runs("failures to expect", [run.num_failures for run in runs]),
        of_runs("time that trains, %", [100 * run.goodput for run in runs], lambda share: f"{share:.1f}"),
    ]
    budget = tokens(study.num_tokens)
    headings = (budget, "low", "forecast", "high")
    return Section(
        "cost",
        "Days, GPU-hours, energy and money",
        (
            _goodput(study.cost)
            + ("" if best.fits else " The plan does not fit: this is what it would cost if it did."),
        ),
        (),
        (
            Table("cost-table", f"Training on {budget} with {best.strategy}{on}", headings, tuple(rows)),
            _checkpoints(study.cost),
        ),
        (
            "Low and high are the ends of the band that holds four in five comparable runs. Energy is at the nodes' "
            f"full power, without switches, storage and cooling.{about_price}",
        ),
    )


def _goodput(run: RunCost) -> str:
    return (
        f"A failure is to be expected every {digits(run.job_mtbf_s / 3600)} hours. With a checkpoint after every "
        f"{digits(run.interval_s / 60)} minutes {percent(run.goodput)} % of the time trains."
    )


def _checkpoints(run: RunCost) -> Table:
    rows = (
        (text("mean time between failures of the job, hours"), number(run.job_mtbf_s / 3600)),
        (text("a checkpoint, GB"), number(run.checkpoint_bytes / 1e9, gigabytes(run.checkpoint_bytes))),
        (text("writing it, s"), number(run.checkpoint_s)),
        (text("between checkpoints (Daly), minutes"), number(run.interval_s / 60)),
        (text("restarting, reading it included, s"), number(run.restart_s)),
    )
    return Table("checkpoint-table", "Failures and checkpoints", ("figure", "value"), rows)
