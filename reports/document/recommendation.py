"""The answer of a report: what to run, what it costs, how sure that is."""

from dataclasses import dataclass

import numpy as np

from flopcast.reports.document.further import choice, faster
from flopcast.reports.document.numbers import (
    JOULES_PER_MWH,
    counted,
    digits,
    gigabytes,
    percent,
    rounded,
    thousands,
    time_unit,
    tokens,
)
from flopcast.reports.document.study import Study
from flopcast.reports.explain import meaning
from flopcast.reports.placements import described
from flopcast.simulator.forecast import Row
from flopcast.simulator.goodput import run_cost
from flopcast.simulator.recompute import recompute_in_words

NBSP = "\N{NO-BREAK SPACE}"
CHANGED_ARITHMETIC = " The 4-bit gather changes the arithmetic of training"


@dataclass(frozen=True)
class Answer:
    """One of the four answers: a question, its answer in a few words, and a line below."""

    question: str
    answer: str
    note: str


@dataclass(frozen=True)
class Recommendation:
    """``sentence`` says it all; ``answers`` take it apart."""

    sentence: str
    answers: tuple[Answer, ...]


def recommend(study: Study) -> Recommendation:
    """The recommendation of a study; every number in it is in the study's tables as well."""
    return _recommended(study) if study.best.fits else _nothing_fits(study)


def _recommended(study: Study) -> Recommendation:
    best = study.best
    bill = _Bill.of(study, best)
    sentence = f"Run {best.strategy}{',' if study.searched else ' with'} {in_words(best)}: {bill.sentence}"
    if study.searched:
        alone = study.comparison.best
        if alone.fits:
            its = run_cost(study.model, study.cluster, alone, study.num_tokens).days
            unit, per_day = time_unit(its)
            sentence += f" Of the strategies alone {alone.strategy} is the fastest: {digits(its * per_day)} {unit}."
        else:
            sentence = f"No strategy fits by itself ({alone.strategy} needs least, {_need(study, alone)}). {sentence}"
    elif other := faster(study.further, best):
        its_days = run_cost(study.model, study.cluster, other, study.num_tokens).days
        unit, per_day = time_unit(its_days)
        sentence += f" Among all plans flopcast search finds {described(other)}: {digits(its_days * per_day)} {unit}."
    sentence += _full_width(study)
    alike = [*study.equals, *_alike_of_the_search(study)]
    also = f"not told apart from {', '.join(alike)}" if alike else "clearly faster than the other strategies"
    if study.same_plan:
        others = len(study.ranked) > 1 + len(study.same_plan) + len(study.equals)
        said = f"; {also}" if others or alike else ""
        also = f"here {', '.join(study.same_plan)} {'is' if len(study.same_plan) == 1 else 'are'} the same plan{said}"
    if study.searched:
        also = "found by flopcast search" + (f"; {also}" if study.equals else "")
    elif len(study.ranked) == 1:
        also = "the only strategy asked for" + (f"; {also}" if alike else "")
    if study.faster_but_tight:
        also += f"; {', '.join(study.faster_but_tight)} would be faster but tight in memory"
    if best.tight:
        also = f"tight in memory; {also}"
    what = Answer("What to run", best.strategy, f"{_meaning(best)}; {in_words(best)}; {also}")
    return Recommendation(sentence, (what, *bill.answers))


def _alike_of_the_search(study: Study) -> list[str]:
    """The best placement of all where it is another than the recommended strategy and not told apart from it."""
    if study.searched or study.further is None or faster(study.further, study.best):
        return []
    found = choice(study.further)
    splits = ("tp", "cp", "pp", "ep", "parameter_shard", "gradient_shard")
    apart = any(found.plan[name] != study.best.plan[name] for name in splits)
    name = described(found)
    return [name] if apart and name not in study.equals else []


def _full_width(study: Study) -> str:
    """What the fastest plan takes whose gathers leave the arithmetic of training as it is, where the best's do not."""
    if study.best.plan["gather_bits"] == 16:
        return ""
    exact = [row for row in study.contenders if row.fits and row.plan["gather_bits"] == 16]
    if not exact:
        return f"{CHANGED_ARITHMETIC}."
    days = run_cost(study.model, study.cluster, exact[0], study.num_tokens).days
    unit, per_day = time_unit(days)
    return f"{CHANGED_ARITHMETIC}; without it {exact[0].strategy} takes {digits(days * per_day)} {unit}."


@dataclass(frozen=True)
class _Bill:
    """What running a plan takes, in half a sentence, and as answers."""

    sentence: str
    answers: tuple[Answer, ...]

    @classmethod
    def of(cls, study: Study, row: Row) -> "_Bill":
        low, cost, high = (
            run_cost(study.model, study.cluster, row, study.num_tokens, step_s)
            for step_s in (row.low_s, row.step_s, row.high_s)
        )
        unit, per_day = time_unit(cost.days)
        time, least, most = (digits(run.days * per_day) for run in (cost, low, high))
        span = f"{least} to {most}"
        hours = f"{rounded(cost.gpu_hours)} GPU-hours"
        price = study.cluster.costs.gpu_hour_price
        money = "" if cost.money is None else f"{rounded(cost.money)} at {price:g} per GPU-hour"
        energy = f"{rounded(cost.energy_j / JOULES_PER_MWH)} MWh; {money or 'the cluster file has no price'}"
        answers = (
            Answer("How long", f"{time} {unit}", f"{digits(row.step_s)} s per step, {_efficiency(row)}"),
            Answer("What it costs", hours, energy),
            Answer("How sure", f"{span} {unit}", how_sure(study)),
        )
        paid = f"{hours} ({money})" if money else hours
        takes = f"{tokens(study.num_tokens)} take {time} {unit} ({span}) and {paid}"
        return cls(f"{takes}, failures and checkpoints included.", answers)


def _efficiency(row: Row) -> str:
    """MFU, and of what where products run at another peak."""
    return f"{percent(row.mfu)}{NBSP}% MFU" + (" of the 16-bit peak" if row.plan["precision"] == "fp8" else "")


def _meaning(row: Row) -> str:
    """What the plan's strategy is, and what else splits the model."""
    plan = row.plan
    splits = [
        words
        for words, split in (
            (f"layers split over {plan['tp']} GPUs", plan["tp"] > 1 and not row.strategy.startswith("tp")),
            (f"a pipeline of {plan['pp']} stages", plan["pp"] > 1),
            (f"sequences split over {plan['cp']} GPUs", plan["cp"] > 1),
        )
        if split
    ]
    return ", ".join([meaning(plan["strategy"]), *splits])


def in_words(row: Row) -> str:
    """The plan as one would set it up."""
    plan = row.plan
    kept = "whole experts" if plan["whole_experts"] else "experts"
    experts = f"{kept} over {plan['ep']} ranks, " if plan["ep"] > 1 else ""
    recompute = "no" if plan["recompute"] == "none" else recompute_in_words(plan)
    passes = "pass" if plan["grad_accum"] == 1 else "passes"
    split = "sequence parallelism, " if plan["sequence_parallel"] else ""
    batch = f"micro-batch {plan['micro_batch']}, {plan['grad_accum']:,} {passes} per step"
    chunks = f" in {plan['virtual_pp']} chunks" if plan["virtual_pp"] > 1 else ""
    schedule = f"{plan['schedule']} schedule{chunks}, " if plan["pp"] > 1 else ""
    products = ", products in fp8" if plan["precision"] == "fp8" else ""
    return f"{batch}, {schedule}{experts}{split}{recompute} recomputation{products}"


def how_sure(study: Study) -> str:
    """What the band holds, and how far off the forecast is on the published runs nearest to this one."""
    if study.model.num_experts:
        return "holds four in five published runs of mixtures of experts; no constant is fitted to them"
    holds = "holds four in five published runs"
    if study.nearest.empty:
        return f"{holds}; no published run is near"
    inside, number = int(study.nearest["in_band"].sum()), len(study.nearest)
    return (
        f"{holds}; {percent(median_error(study))}{NBSP}% median error on those nearest to this one, "
        f"{inside} of {number} inside"
    )


def median_error(study: Study) -> float:
    """Median over the nearest published runs of |predicted / measured - 1|."""
    return float(np.median(np.abs(study.nearest["ratio"] - 1)))


def _need(study: Study, row: Row) -> str:
    return f"{gigabytes(row.memory_bytes)} GB per GPU of {gigabytes(study.cluster.gpu.memory_bytes)} GB"


def _nothing_fits(study: Study) -> Recommendation:
    """Nothing fits on the GPUs asked for: what would on more, and what that costs, or what is missing."""
    best, card, more = study.best, study.cluster.gpu.memory_bytes, study.on_more
    need = _need(study, best)
    on = f"on {counted(study.num_gpus, 'GPU')}"
    if more is None:
        mend = "more memory per GPU, a shorter sequence or a smaller model would help"
        return Recommendation(
            f"Nothing fits {on}: of the strategies {best.strategy} needs least, {need}; {mend}.",
            (
                Answer("What to run", "nothing fits", mend),
                Answer("What is missing", f"{gigabytes(best.memory_bytes - card)} GB", f"{best.strategy}: {need}"),
            ),
        )
    bill = _Bill.of(study, more)
    where = f"{more.strategy} on {thousands(more.plan['num_gpus'])} GPUs"
    sentence = (
        f"Nothing fits {on} (of the strategies {best.strategy} needs least, {need}). Run {where}, {in_words(more)}: "
        f"{bill.sentence}"
    )
    if more.tight:
        sentence += f" It is tight: it needs {gigabytes(more.memory_bytes)} of {gigabytes(card)} GB."
    if more.plan["gather_bits"] == 4:
        sentence += CHANGED_ARITHMETIC + "."
    tight = "tight in memory; " if more.tight else ""
    note = f"{tight}{_meaning(more)}; {in_words(more)}; {on} {best.strategy} needs {need}"
    return Recommendation(sentence, (Answer("What to run", where, note), *bill.answers))
