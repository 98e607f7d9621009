"""Everything a report says, as numbers: one model on one cluster, studied from every side."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import pandas as pd

from flopcast.errors import InputError
from flopcast.reports.comparison import TOKENS_PER_PARAMETER
from flopcast.reports.document.effects import effects
from flopcast.reports.document.further import (
    SHOWN,
    at_another_count,
    choice,
    further,
    named,
    split_alike,
    worth_splitting,
)
from flopcast.reports.document.nearest_runs import nearest_runs
from flopcast.reports.document.on_more import fits_on_more
from flopcast.reports.explain import bound_by, equals, faster_but_tight, ranked, recommended, runs_as, same_plan
from flopcast.reports.scaling import compare_fewer, scaling, unlimited
from flopcast.reports.sensitivity import sensitivity
from flopcast.reports.timeline import LABELS
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.compare import MOST_GLOBAL_BATCH_TOKENS, Comparison, compare
from flopcast.simulator.forecast import Row
from flopcast.simulator.goodput import RunCost, check_tokens, run_cost
from flopcast.simulator.model import Model
from flopcast.simulator.plan import Plan
from flopcast.simulator.request import Request
from flopcast.simulator.search import SearchResult, default_batch_sequences
from flopcast.simulator.timeline import Timeline, exposed_collectives, play, waterfall
from flopcast.simulator.traffic import LayerTraffic, layer_traffic

# What a reader is shown together: category -> the forecast's parts. Others stand under their own names.
MEMORY_CATEGORIES = {
    "parameters": ("parameters",),
    "gradients": ("gradients",),
    "optimizer": ("optimizer",),
    "activations": ("activations", "workspace"),
    "gathered": ("gathered", "quantised"),
    "logits": ("logits",),
    "slack": ("slack",),
}


@dataclass(frozen=True)
class Study:
    """The numbers of a report. ``best`` is the plan it recommends: the best strategy that fits, or the best plan of a
    search, named by its placement (``searched``), where no strategy fits or that plan is worth the further splits;
    where nothing fits, the smallest strategy.

    ``scaling`` and ``sensitivity``: the columns of :func:`scaling` and :func:`sensitivity`; ``scaling_left_out`` says
    why a GPU count has no row. ``effects`` and ``nearest`` likewise; ``further``: what a search of all plans found.
    ``on_more``: where nothing fits, what does on more GPUs.
    ``low``, ``cost``, ``high``: the run of ``costed`` at the band's ends and at the forecast.
    """

    comparison: Comparison
    num_tokens: float
    tokens_given: bool
    best: Row
    low: RunCost
    cost: RunCost
    high: RunCost
    timeline: Timeline
    effects: pd.DataFrame
    scaling: pd.DataFrame
    scaling_left_out: dict[int, str]
    sensitivity: pd.DataFrame
    nearest: pd.DataFrame
    further: SearchResult | None
    on_more: Row | None

    @property
    def model(self) -> Model:
        """The model studied."""
        return self.comparison.model

    @property
    def cluster(self) -> Cluster:
        """The cluster studied."""
        return self.comparison.cluster

    @property
    def num_gpus(self) -> int:
        """GPUs asked for."""
        return self.comparison.num_gpus

    @property
    def costed(self) -> Row:
        """The plan whose step and bill are told: the best, or where it does not fit what does on more GPUs."""
        return self.on_more or self.best

    @property
    def searched(self) -> bool:
        """Whether the plan recommended comes from the search."""
        return self.best not in self.comparison.rows

    @property
    def best_strategy(self) -> Row:
        """What would be recommended were there no search."""
        return recommended(self.comparison.rows)

    @cached_property
    def ranked(self) -> list[Row]:
        """The plan recommended and the strategies, best first; those that do not fit last."""
        return self._first(ranked(self.comparison.rows))

    @property
    def contenders(self) -> list[Row]:
        """The best and what it won against: strategies, or the placements shown of the search."""
        if self.searched and self.further is not None:
            return self._first([named(row) for row in self.further.found[0].rows[:SHOWN]])
        return self.ranked

    def _first(self, rows: list[Row]) -> list[Row]:
        """The plan recommended, then the others in their order."""
        return [self.best, *(row for row in rows if row != self.best)]

    @property
    def equals(self) -> list[str]:
        """Strategies, or placements of the search, that the forecast cannot tell from the best."""
        return [row.strategy for row in equals(self.contenders)] if self.best.fits else []

    @property
    def same_plan(self) -> list[str]:
        """Strategies that here do what the best does."""
        return [row.strategy for row in same_plan(self.ranked)] if self.best.fits else []

    @property
    def faster_but_tight(self) -> list[str]:
        """Strategies that would be faster if their memory held."""
        return [row.strategy for row in faster_but_tight(self.ranked)] if self.best.fits else []

    @cached_property
    def strategies(self) -> pd.DataFrame:
        """One row per strategy, ranked; efficiencies as fractions, the rest in SI units, days with failures."""
        return pd.DataFrame.from_records(
            [
                {
                    "strategy": row.strategy,
                    "step_s": row.step_s,
                    "low_s": row.low_s,
                    "high_s": row.high_s,
                    "tokens_per_s_per_gpu": row.tokens_per_s_per_gpu,
                    "mfu": row.mfu,
                    "hfu": row.hfu,
                    "memory_bytes": row.memory_bytes,
                    "fits": row.fits,
                    "tight": row.tight,
                    "days": run_cost(self.model, self.cluster, row, self.num_tokens).days,
                    "runs_as": runs_as(row),
                    "inter_node_bytes": row.inter_node_bytes,
                    "intra_node_bytes": row.intra_node_bytes,
                    "exposed_communication_s": row.exposed_communication_s,
                    "bound_by": bound_by(row, self.cluster.gpu.memory_bytes),
                }
                for row in self.ranked
            ]
        )

    @cached_property
    def memory(self) -> pd.DataFrame:
        """Bytes per GPU: strategies by category."""
        known = {part for parts in MEMORY_CATEGORIES.values() for part in parts}
        records = {}
        for row in self.ranked:
            held = {name: sum(row.memory.get(p, 0.0) for p in parts) for name, parts in MEMORY_CATEGORIES.items()}
            records[row.strategy] = held | {name: size for name, size in row.memory.items() if name not in known}
        return pd.DataFrame.from_dict(records, orient="index")

    @cached_property
    def layer_traffic(self) -> list[LayerTraffic]:
        """One layer's collective forward, of the strategies that have one and of the plan recommended."""
        plan, rows = self.best.plan, list(self.comparison.layer_traffic)
        if self.searched and (plan["tp"] > 1 or plan["parameter_shard"] > 1):
            # The GPUs of one stage see the tokens of all stages.
            tokens = self.comparison.tokens_per_gpu * plan["pp"]
            rows.insert(0, layer_traffic(self.model, self.best.strategy, plan["tp"], tokens, plan["ep"]))
        return rows

    @cached_property
    def waterfall(self) -> pd.DataFrame:
        """From peak to achieved, the average GPU under the best plan. Columns: part (in words), seconds."""
        parts = [(LABELS.get(p.name, p.name.replace("_", " ")), p.seconds) for p in waterfall(self.timeline)]
        return pd.DataFrame(parts, columns=["part", "seconds"])

    @cached_property
    def collectives(self) -> pd.DataFrame:
        """The best plan's collectives, the most exposed first. Columns: collective, group, phase, busy_s, exposed_s."""
        return pd.DataFrame([vars(row) for row in exposed_collectives(self.timeline)])

    @property
    def at_each_count(self) -> pd.DataFrame:
        """Of ``scaling``, the plan to run at each GPU count that fits one."""
        return self.scaling[self.scaling["recommended"]]


def room(row: Any) -> str:
    """Of a plan's memory, by ``fits`` and ``tight``: " too big", " tight" (its own error may decide), or nothing."""
    return " tight" if row.tight else "" if row.fits else " too big"


def _compared(model: Model, cluster: Cluster, request: Request) -> Comparison:
    """The strategies; where the batch is left open and a sequence for each GPU is more than is published, at a search's
    batch, or the next that some strategy can run.
    """
    found = compare(model, cluster, request)
    if request.tokens_per_gpu or found.tokens_per_gpu * found.num_gpus <= MOST_GLOBAL_BATCH_TOKENS:
        return found
    fewer = compare_fewer(model, cluster, request, default_batch_sequences(found.num_gpus, found.seq_len))
    return replace(fewer, chosen=found.chosen)


def study(
    model: Model,
    cluster: Cluster,
    request: Request,
    num_tokens: float | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Study:
    """Forecast everything that a report says, in a few seconds.

    ``num_tokens``: what the training sees, by default 20 per parameter. Raises InputError as :func:`compare` does,
    for a token budget that is not positive, and for a cluster on which the run would make no progress.
    """
    if num_tokens is not None:
        check_tokens(num_tokens)
    tokens = num_tokens or float(TOKENS_PER_PARAMETER * model.num_parameters)
    progress("comparing strategies")
    comparison = _compared(model, cluster, request)
    batch = comparison.tokens_per_gpu * comparison.num_gpus
    if num_tokens is None and tokens < batch:
        raise InputError(
            f"{TOKENS_PER_PARAMETER} tokens per parameter are {tokens:,.0f}, less than one step of {batch:,}; "
            "give --tokens, or lower --tokens-per-gpu"
        )
    best = recommended(comparison.rows)
    progress("searching beyond the strategies")
    found = further(comparison, request)
    searched = None
    if found is not None and (not best.fits or worth_splitting(found, best)):
        best = searched = named(choice(found))
    alike = partial(split_alike, found if searched else None)
    more = None if best.fits else fits_on_more(comparison, request)
    costed = more or best
    low, cost, high = (
        run_cost(model, cluster, costed, tokens, step_s) for step_s in (costed.low_s, costed.step_s, costed.high_s)
    )
    progress(f"playing a step of {costed.strategy}")
    timeline = play(model, unlimited(cluster), Plan(**costed.plan))
    progress("scaling, sensitivity and the nearest published runs")

    def elsewhere(compared: Comparison) -> Row | None:
        if more is not None and compared.num_gpus == more.plan["num_gpus"]:
            return more
        return at_another_count(found if searched else None, best, request, compared)

    counts = () if more is None else (int(more.plan["num_gpus"]),)
    grown, left_out = scaling(model, cluster, request, comparison, tokens, elsewhere, counts)
    return Study(
        comparison=comparison,
        num_tokens=tokens,
        tokens_given=num_tokens is not None,
        best=best,
        low=low,
        cost=cost,
        high=high,
        timeline=timeline,
        effects=effects(model, cluster, request, comparison, tokens, searched),
        scaling=grown,
        scaling_left_out=left_out,
        sensitivity=sensitivity(model, cluster, request, comparison, tokens, searched, alike),
        nearest=nearest_runs(model, cluster, costed),
        further=found,
        on_more=more,
    )
