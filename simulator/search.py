"""The search: every legal plan forecast, the best of each placement kept, and the front of time and memory."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flopcast.errors import InputError
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.compare import MOST_GLOBAL_BATCH_TOKENS, default_tokens_per_gpu
from flopcast.simulator.fixed import checked
from flopcast.simulator.forecast import (
    MEMORY_MARGIN,
    Forecast,
    Row,
    check_specifications,
    forecast,
    shown_in_a_notebook,
)
from flopcast.simulator.model import Model
from flopcast.simulator.no_plan import has_plan, too_large, why_empty
from flopcast.simulator.plain import make_plain
from flopcast.simulator.plan import MOST_TOKENS_PER_STEP, Plans
from flopcast.simulator.ranking import Ranking
from flopcast.simulator.region import Region
from flopcast.simulator.request import check_attention, check_whole, checked_seq_len, usual_attention
from flopcast.simulator.space import Space, divisors

if TYPE_CHECKING:
    import pandas as pd

Objective = Literal["time", "cost", "memory", "energy"]
OBJECTIVES: dict[str, str] = {
    "time": "seconds per step",
    "cost": "price of a step",
    "memory": "bytes per GPU",
    "energy": "joules per step",
}
# Plans forecast at once: enough to make the calls into NumPy cheap, few enough for the cache.
CHUNK = 150_000


@dataclass(frozen=True)
class SearchRequest:
    """What to search: one or several GPU counts at one global batch; ``fixed`` gives fields of a plan values to try.

    ``objective``: what to have least of, time, cost or energy of a step, or memory per GPU. ``global_batch_tokens``:
    tokens per optimizer step over all GPUs, by default about 4 Mi, at most 16 Mi. ``seq_len``: tokens per sequence.
    ``memory_margin``: share of the GPU's memory that a plan leaves free. ``top``: how many placements a reader wants
    to see. ``convention``: what MFU and HFU count, 6n, causal or full. None is left to the search.
    """

    num_gpus: Sequence[int]
    objective: Objective = "time"
    global_batch_tokens: int | None = None
    seq_len: int | None = None
    fixed: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    memory_margin: float = MEMORY_MARGIN
    top: int = 5
    convention: str = "causal"

    def __post_init__(self) -> None:
        make_plain(self)


@dataclass(frozen=True)
class Found:
    """What the search found on one number of GPUs.

    ``num_plans`` legal plans were forecast, of which ``num_fitting`` fit with ``memory_margin`` of the GPU's memory to
    spare: what the request asks for, or 0 where no plan leaves that much. ``best``: of every placement (tp, cp, pp, ep
    and strategy) the best plan that fits, best first. ``front``: the plans that no other beats in both time and memory,
    fastest first. ``full_precision``: the best that reduces gradients in 32 bits and gathers parameters in 16, if any.
    ``with_twice_the_memory``: the fastest plan on such GPUs. ``complete``: not interrupted.
    """

    num_gpus: int
    num_plans: int
    num_fitting: int
    memory_margin: float
    best: Forecast
    front: Forecast
    full_precision: Row | None
    with_twice_the_memory: Row
    complete: bool

    @cached_property
    def rows(self) -> list[Row]:
        """The forecast of ``best``, as :func:`flopcast.simulator.compare.compare` gives it."""
        return self.best.rows()


@dataclass(frozen=True, repr=False)
class SearchResult:
    """One :class:`Found` for every GPU count that has a plan that fits; ``left_out`` says why the others have none."""

    model: Model
    cluster: Cluster
    request: SearchRequest
    seq_len: int
    global_batch_tokens: int
    found: tuple[Found, ...]
    left_out: Mapping[int, str]
    elapsed_s: float

    @property
    def num_plans(self) -> int:
        """Plans forecast, over all GPU counts."""
        return sum(found.num_plans for found in self.found)

    @property
    def complete(self) -> bool:
        """Whether the whole space was searched."""
        return all(found.complete for found in self.found)

    def objective(self, row: Row) -> float:
        """What the request asked to have least of, of one step: seconds, the price's currency, bytes, or joules."""
        num_gpus = int(row.plan["num_gpus"])
        costs = self.cluster.costs
        return {
            "time": row.step_s,
            "memory": row.memory_bytes,
            "cost": (costs.gpu_hour_price or 0.0) * num_gpus * row.step_s / 3600,
            "energy": (costs.node_power_w or 0.0) * num_gpus / self.cluster.gpus_per_node * row.step_s,
        }[self.request.objective]

    @cached_property
    def winner(self) -> tuple[Found, Row]:
        """The best plan of all GPU counts."""
        return min(((found, found.rows[0]) for found in self.found), key=lambda pair: self.objective(pair[1]))

    def to_frame(self) -> "pd.DataFrame":
        """The best plan of every placement on every GPU count, best first for each: the plan's fields, the forecast."""
        import pandas as pd

        return pd.concat([found.best.to_frame() for found in self.found], ignore_index=True)

    def __repr__(self) -> str:
        counts = ", ".join(f"{found.num_gpus:,}" for found in self.found)
        return (
            f"<SearchResult: {self.num_plans:,} plans of {self.model.name} on {counts} x {self.cluster.gpu.name}, "
            f"{self.cluster.name}>"
        )

    def _repr_html_(self) -> str:
        return shown_in_a_notebook(repr(self), [row for found in self.found for row in found.rows[: self.request.top]])


def search(
    model: Model,
    cluster: Cluster,
    request: SearchRequest,
    progress: Callable[[float, int], None] = lambda share, num_plans: None,
    mend: bool = True,
) -> SearchResult:
    """Forecast every legal plan and keep the best. ``progress`` hears the share done and the plans forecast so far.

    ``mend``: where nothing fits, look for what would make room, which takes longer than the search.

    A KeyboardInterrupt ends the search with the best so far. Raises InputError where no plan is legal or none fits.
    """
    check_specifications(model, cluster)
    started = time.perf_counter()
    spaces, left_out = _spaces(model, cluster, request)
    sizes = [sum(region.size for region in space.regions()) for space in spaces]
    found: list[Found] = []
    for place, space in enumerate(spaces):
        before, forecast_before = sum(sizes[:place]), sum(f.num_plans for f in found)

        def heard(done: int, num_plans: int, before: int = before, forecast_before: int = forecast_before) -> None:
            progress((before + done) / sum(sizes), forecast_before + num_plans)

        ranking, margin, complete = _fitting(space, request, heard)
        if not complete and not (ranking.num_fitting or found):
            raise KeyboardInterrupt
        if ranking.num_fitting:
            found.append(_found(space, request, ranking, margin, complete))
        elif complete:
            smallest = _smallest(space, request, ranking)
            left_out[space.num_gpus] = too_large(space, smallest, ranking.num_plans, mend)
        if not complete:
            left_out |= {
                later.num_gpus: f"{later.num_gpus:,} GPUs were not searched: interrupted before"
                for later in spaces[place + 1 :]
            }
            break
    if not found:
        raise InputError("; ".join(left_out.values()))
    return SearchResult(
        model=model,
        cluster=cluster,
        request=request,
        seq_len=spaces[0].seq_len,
        global_batch_tokens=spaces[0].num_sequences * spaces[0].seq_len,
        found=tuple(found),
        left_out=left_out,
        elapsed_s=time.perf_counter() - started,
    )


def fastest_plan(space: Space, convention: str) -> Row | None:
    """The fastest plan of a space that leaves the usual margin of the GPU's memory, or failing that fits; or None."""
    ranking, _, complete = _fitting(space, SearchRequest([space.num_gpus], convention=convention))
    if not complete:
        raise KeyboardInterrupt
    if not ranking.num_fitting:
        return None
    return forecast(space.model, space.cluster, ranking.best_of_placements(), convention).rows()[0]


def _fitting(
    space: Space,
    request: SearchRequest,
    heard: Callable[[int, int], None] = lambda done, num_plans: None,
) -> tuple[Ranking, float, bool]:
    """The plans that leave the margin of memory asked for, or where none does all that fit; the margin; all ranked."""
    memory_bytes = space.cluster.gpu.memory_bytes
    for margin in (request.memory_margin, 0.0):
        ranking, complete = _ranked(space, request, (1 - margin) * memory_bytes, heard)
        if ranking.num_fitting or not complete or ranking.least_bytes > memory_bytes:
            break
    return ranking, margin, complete


def _ranked(
    space: Space, request: SearchRequest, limit_bytes: float, heard: Callable[[int, int], None]
) -> tuple[Ranking, bool]:
    """The space's plans ranked within a limit of memory, and whether all were: a KeyboardInterrupt ends it early."""
    ranking = Ranking(limit_bytes, request.objective == "memory")
    try:
        for region, done in _pieces(space):
            cast = forecast(space.model, space.cluster, region.plans, request.convention)
            shape = region.plans.shape
            step_s, memory_bytes = (np.broadcast_to(a, shape) for a in (cast.step_s, cast.memory.total))
            ranking.add(region.plans, region.legal, step_s, memory_bytes)
            heard(done, ranking.num_plans)
    except KeyboardInterrupt:
        return ranking, False
    return ranking, True


def _spaces(model: Model, cluster: Cluster, request: SearchRequest) -> tuple[list[Space], dict[int, str]]:
    """A space for every GPU count that has a legal plan, and why the others have none."""
    _check(cluster, request)
    counts = [int(num_gpus) for num_gpus in request.num_gpus]
    seq_len = checked_seq_len(model, request.seq_len)
    tokens = request.global_batch_tokens or default_batch_sequences(max(counts), seq_len) * seq_len
    sequences, rest = divmod(tokens, seq_len)
    if rest or not sequences:
        step = math.lcm(*counts)
        near = max(round(tokens / seq_len / step), 1) * step
        raise InputError(
            f"--global-batch-tokens is {tokens}: {tokens / seq_len:.2f} sequences of {seq_len} tokens; "
            f"a whole number is needed, e.g. {near * seq_len} ({near} sequences)"
        )
    fixed = checked(request.fixed)
    for kernel in fixed.get("attention", ()):
        check_attention(kernel, cluster)
    spaces, left_out = [], {}
    for num_gpus in dict.fromkeys(counts):
        values = {"attention": [usual_attention(cluster)], **fixed}
        space = Space(model, cluster, num_gpus, seq_len, sequences, values, (*fixed,))
        if has_plan(space):
            spaces.append(space)
        else:
            left_out[num_gpus] = why_empty(space)
    if not spaces:
        raise InputError("; ".join(left_out.values()))
    return spaces, left_out


def default_batch_sequences(num_gpus: int, seq_len: int) -> int:
    """Sequences per step where none are given: as :func:`compare` has them, less where that is more than 16 Mi tokens.

    A whole share of the GPUs, then, for several of them work on one sequence (tp, cp, pp).
    """
    usual = default_tokens_per_gpu(num_gpus, seq_len) * num_gpus // seq_len
    most = max(MOST_GLOBAL_BATCH_TOKENS // seq_len, 1)
    return usual if usual <= most else max(share for share in divisors(num_gpus) if share <= most)


def _check(cluster: Cluster, request: SearchRequest) -> None:
    if not isinstance(request, SearchRequest):
        raise InputError(f"request is {request!r}; give a SearchRequest, e.g. SearchRequest([512])")
    if not isinstance(request.objective, str) or request.objective not in OBJECTIVES:
        raise InputError(f"--objective is '{request.objective}'; choose of {', '.join(OBJECTIVES)}")
    costs = cluster.costs
    needs = {"cost": ("gpu_hour_price", costs.gpu_hour_price), "energy": ("node_power", costs.node_power_w)}
    name, value = needs.get(request.objective, ("", 0.0))
    if value is None:
        raise InputError(
            f"--objective {request.objective}: {cluster.name} gives no {name}; name a cluster file that does, under "
            "[operation], or choose --objective time"
        )
    if not isinstance(request.num_gpus, Sequence) or isinstance(request.num_gpus, str) or not request.num_gpus:
        raise InputError(f"--gpus is {request.num_gpus!r}; give a list of at least one number, e.g. [512]")
    for num_gpus in request.num_gpus:
        cluster.check_num_gpus(num_gpus)
    if not isinstance(request.memory_margin, int | float) or not 0 <= request.memory_margin < 1:
        raise InputError(f"--memory-margin is {request.memory_margin!r}; give a share of the memory, e.g. 0.08")
    check_whole("top", request.top)
    if request.top < 1:
        raise InputError(f"--top is {request.top}; ask for at least 1")
    if request.global_batch_tokens is not None:
        check_whole("global-batch-tokens", request.global_batch_tokens)
        if request.global_batch_tokens < 1:
            raise InputError(f"--global-batch-tokens is {request.global_batch_tokens}; it must be at least 1")
        if request.global_batch_tokens > MOST_TOKENS_PER_STEP:
            raise InputError(
                f"--global-batch-tokens is {request.global_batch_tokens}; it must be at most {MOST_TOKENS_PER_STEP:,}"
            )


def _pieces(space: Space) -> Iterator[tuple[Region, int]]:
    """The space in pieces to be forecast at once, each with the size of what is then done."""
    before = 0
    for region in space.regions():
        for piece in region.parts(CHUNK):
            before += piece.size
            yield piece, before


def _smallest(space: Space, request: SearchRequest, ranking: Ranking) -> Row:
    smallest = ranking.smallest.plans([int(np.argmin(ranking.smallest.memory_bytes))])
    return forecast(space.model, space.cluster, smallest, request.convention).rows()[0]


def _found(space: Space, request: SearchRequest, ranking: Ranking, margin: float, complete: bool) -> Found:
    def cast(plans: Plans) -> Forecast:
        return forecast(space.model, space.cluster, plans, request.convention)

    fastest = ranking.fastest.plans([int(np.argmin(ranking.fastest.step_s))])
    exact = ranking.best_in_full_precision()
    return Found(
        num_gpus=space.num_gpus,
        num_plans=ranking.num_plans,
        num_fitting=ranking.num_fitting,
        memory_margin=margin,
        best=cast(ranking.best_of_placements()),
        front=cast(ranking.front_plans()),
        full_precision=None if exact is None else cast(exact).rows()[0],
        with_twice_the_memory=cast(fastest).rows()[0],
        complete=complete,
    )
