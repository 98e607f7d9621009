"""The answer of a report: what to run, what it costs, how sure that is."""

from dataclasses import dataclass

import numpy as np

from flopcast.reports.document.further import faster
from flopcast.reports.document.numbers import digits, gigabytes, percent, rounded, thousands, tokens
from flopcast.reports.document.study import Study
from flopcast.reports.explain import meaning
from flopcast.reports.frames import rows_of
from flopcast.reports.search import described, settings
from flopcast.simulator.forecast import Row
from flopcast.simulator.goodput import run_cost

JOULES_PER_MWH = 3.6e9
NBSP = "\N{NO-BREAK SPACE}"


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
    best, cost, low, high = study.best, study.cost, study.low, study.high
    days = f"{digits(cost.days)} days"
    span = f"{digits(low.days)} to {digits(high.days)}"
    hours = f"{rounded(cost.gpu_hours)} GPU-hours"
    price = study.cluster.costs.gpu_hour_price
    money = "" if cost.money is None else f"{rounded(cost.money)} at {price:g} per GPU-hour"
    sentence = (
        f"Run {best.strategy} with {in_words(study)}: {tokens(study.num_tokens)} take {days} ({span}) and "
        f"{hours}{f' ({money})' if money else ''}, failures and checkpoints included."
    )
    if other := faster(study.further, best):
        its_days = run_cost(study.model, study.cluster, other, study.num_tokens).days
        sentence += f" Among all plans flopcast search finds {described(other)}: {digits(its_days)} days."
    energy = f"{digits(cost.energy_j / JOULES_PER_MWH)} MWh; {money or 'the cluster file has no price'}"
    also = f"not told apart from {', '.join(study.equals)}" if study.equals else "clearly faster than the others"
    if len(study.ranked) == 1:
        also = "the only strategy asked for"
    if study.faster_but_tight:
        also += f"; {', '.join(study.faster_but_tight)} would be faster but tight in memory"
    if best.tight:
        also = f"tight in memory; {also}"
    return Recommendation(
        sentence,
        (
            Answer("What to run", best.strategy, f"{meaning(best.strategy)}; {in_words(study)}; {also}"),
            Answer("How long", days, f"{digits(best.step_s)} s per step, {percent(best.mfu)}{NBSP}% MFU"),
            Answer("What it costs", hours, energy),
            Answer("How sure", f"{span} days", f"holds four in five comparable runs; {nearest(study)}"),
        ),
    )


def in_words(study: Study) -> str:
    """The plan as one would set it up."""
    plan = study.best.plan
    experts = f"experts over {plan['ep']} ranks, " if plan["ep"] > 1 else ""
    recompute = "no" if plan["recompute"] == "none" else plan["recompute"]
    passes = "pass" if plan["grad_accum"] == 1 else "passes"
    split = "sequence parallelism, " if plan["sequence_parallel"] else ""
    batch = f"micro-batch {plan['micro_batch']}, {plan['grad_accum']} {passes} per step"
    return f"{batch}, {experts}{split}{recompute} recomputation"


def nearest(study: Study) -> str:
    """How far off the forecast is on the published runs nearest to this one."""
    if study.nearest.empty:
        return "no published run is near"
    if study.model.num_experts:
        return "no published run of a mixture of experts checks that"
    return f"{percent(median_error(study))}{NBSP}% median error on those nearest to this one"


def median_error(study: Study) -> float:
    """Median over the nearest published runs of |predicted / measured - 1|."""
    return float(np.median(np.abs(study.nearest["ratio"] - 1)))


def _nothing_fits(study: Study) -> Recommendation:
    best, card = study.best, study.cluster.gpu.memory_bytes
    need = f"{gigabytes(best.memory_bytes)} GB per GPU of {gigabytes(card)} GB"
    if other := faster(study.further, best):
        return _search_instead(study, other, need)
    larger = study.fastest[study.fastest["num_gpus"] > study.num_gpus]
    mend = "more memory per GPU, a shorter sequence or larger tensor parallelism would help"
    if not larger.empty:
        first = rows_of(larger)[0]
        mend = f"{first.strategy} fits on {thousands(first.num_gpus)} GPUs"
    sentence = f"Nothing fits: {best.strategy} needs least, {need}; {mend}."
    return Recommendation(
        sentence,
        (
            Answer("What to run", "nothing fits", mend),
            Answer("What is missing", f"{gigabytes(best.memory_bytes - card)} GB", f"{best.strategy}: {need}"),
        ),
    )


def _search_instead(study: Study, row: Row, need: str) -> Recommendation:
    """None of the strategies fits, but a plan of the search does."""
    low, cost, high = (
        run_cost(study.model, study.cluster, row, study.num_tokens, step_s)
        for step_s in (row.low_s, row.step_s, row.high_s)
    )
    days, span = f"{digits(cost.days)} days", f"{digits(low.days)} to {digits(high.days)}"
    sentence = (
        f"No strategy fits by itself ({study.best.strategy} needs least, {need}). Run {described(row)}: "
        f"{tokens(study.num_tokens)} take {days} ({span}), failures and checkpoints included."
    )
    return Recommendation(
        sentence,
        (
            Answer("What to run", described(row), f"micro-batch x passes: {settings(row)}; found by flopcast search"),
            Answer("How long", days, f"{digits(row.step_s)} s per step, {percent(row.mfu)}{NBSP}% MFU"),
            Answer(
                "What it costs", f"{rounded(cost.gpu_hours)} GPU-hours", f"{gigabytes(row.memory_bytes)} GB per GPU"
            ),
            Answer("How sure", f"{span} days", f"holds four in five comparable runs; {nearest(study)}"),
        ),
    )
