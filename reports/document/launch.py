"""How to run the recommended plan: what training programs are told."""

from dataclasses import replace

from flopcast.reports.document.section import Section
from flopcast.reports.document.study import Study
from flopcast.reports.document.table import Cell, Table, text
from flopcast.reports.launch import Launch, launches
from flopcast.reports.verdict import ENGINE
from flopcast.simulator.plan import Plan


def running(study: Study) -> Section:
    """The options of every program that can run the plan, and what the others lack."""
    row = study.best if study.best.fits or study.on_more is None else study.on_more
    found = _launches(study, Plan(**row.plan))
    able = [launch for launch in found if launch.options]
    rows = tuple((text(launch.software), Cell(launch.options, code=True)) for launch in able)
    notes = [f"{launch.software}: {launch.note}" for launch in found if launch.note]
    return Section(
        "launch",
        "How to run it",
        tables=(Table("launch-table", f"Options for {row.strategy}", ("program", "options"), rows),) if rows else (),
        remarks=(
            *([f"{'; '.join(notes)}."] if notes else []),
            "Sizes of the model, data and optimizer are to be added. Options change: these are of August 2026.",
            *([ENGINE.format("flopcast search ")] if row.plan["engine"] == "fsdp2" else []),
        ),
    )


def _launches(study: Study, plan: Plan) -> list[Launch]:
    """What the programs are told; those without the 4-bit gather, to run the fastest plan that fits without it."""
    found = launches(study.model, study.cluster, plan)
    exact = [row for row in study.contenders if row.fits and row.plan["gather_bits"] == 16]
    if plan.gather_bits == 16 or not exact:
        return found
    instead = launches(study.model, study.cluster, Plan(**exact[0].plan))
    return [
        replace(other, software=f"{other.software}, as {exact[0].strategy}")
        if other.options and not launch.options
        else launch
        for launch, other in zip(found, instead, strict=True)
    ]
