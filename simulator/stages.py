"""The stages of a pipeline, or the one there is without: seconds of their passes, and what they gather and reduce."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator import placement
from flopcast.simulator.broadcast import Sum
from flopcast.simulator.busy_links import Links
from flopcast.simulator.constants import Constants
from flopcast.simulator.engines import has_habit
from flopcast.simulator.operation import Array, Collective, Operation
from flopcast.simulator.overlap import Compute, Traffic, Waits, exposed_beside
from flopcast.simulator.pipeline import Layers, Sent, Stage
from flopcast.simulator.plan import Plans

CAUSES = ("gemm", "attention", "pointwise", "tensor", "expert")
SECTIONS = ("layer", "embedding", "head")
# "inputs" and "weight" make up a backward pass: zero bubble puts off what gives the gradients of the weights.
DIRECTIONS = ("forward", "inputs", "weight")
BACKWARD = ("inputs", "weight")


class Pass:
    """Seconds of one pass over one micro-batch on one section of the model: by cause, to launch, and recomputed.

    ``beside``: what is left exposed of exchanges with experts that run beside another micro-batch, if any do.
    """

    beside: Array | None = None

    def __init__(self, zeros: Array) -> None:
        self.sums = {name: Sum([zeros]) for name in (*CAUSES, "launch", "recompute")}

    @cached_property
    def device(self) -> Array:
        """Seconds of the device, once all is added."""
        return Sum(self.sums[cause].total for cause in CAUSES).total

    @cached_property
    def launch(self) -> Array:
        """Seconds of the host, once all is added."""
        return self.sums["launch"].total


class Part:
    """One direction of one micro-batch on one pipeline stage: the sections it has, each with its share."""

    def __init__(self, sections: Sequence[tuple[Pass, Array]]) -> None:
        self._sections = sections
        self._beside = [section.beside * share for section, share in sections if section.beside is not None]
        self.device = Sum([*(section.device * share for section, share in sections), *self._beside]).total
        self.busy = busy_seconds(self.device, Sum(section.launch * share for section, share in sections).total)

    def spent(self, cause: str) -> Array:
        """Seconds of one of CAUSES or "recompute"."""
        exposed = self._beside if cause == "expert" else []
        return Sum([*(section.sums[cause].total * share for section, share in self._sections), *exposed]).total


class Stages:
    """The kinds of stage of each plan's pipeline; without one, the first is all there is."""

    def __init__(
        self,
        passes: dict[tuple[str, str], Pass],
        plans: Plans,
        num_layers: NDArray[np.int64],
    ) -> None:
        self._passes, self._nothing, self._pp = passes, plans.zeros, plans.pp
        self._parts: dict[tuple[str, ...], Part] = {}
        one, single = plans.zeros + 1, (plans.pp == 1) * 1.0
        fullest = placement.layers_of_fullest_stage(num_layers, plans.pp)
        self._dealt = placement.num_dealt(num_layers, plans.pp, has_habit("counts_ends", plans.engine))
        self._shorter = (self._dealt > num_layers) / fullest
        last_share = placement.layers_of_last_stage(num_layers, plans.pp) / fullest
        self.last_share = last_share
        self._shares = {
            "first": {"layer": one - self._shorter, "embedding": one, "head": single},
            # As the first with a layer more, where the stages between have that.
            "fullest": {"layer": one, "embedding": one, "head": single},
            "middle": {"layer": one},
            "last": {"layer": last_share, "embedding": single, "head": one},
            "head": {"head": one},
        }
        full = np.where(self._dealt % plans.pp == 0, plans.pp, self._dealt % plans.pp)
        middles = np.maximum(plans.pp - 2, 0)
        num_full = np.clip(full - 1, 0, middles)
        self._num_full, self._num_short = num_full, middles - num_full
        self._fullest = fullest
        self.mean_share = 1 - (middles - num_full) / np.maximum(middles, 1) / fullest
        self.ends = [(self.part(end, "forward"), self.part(end, *BACKWARD)) for end in ("last", "fullest")]
        last, fullest_stage = (forward.busy + backward.busy for forward, backward in self.ends)
        self.head_paces = last > fullest_stage

    def layer_busy(self, *directions: str) -> Array:
        """Seconds of one direction of a pass through a layer, the average one."""
        return np.asarray(self.part("middle", *directions).busy / self._fullest)

    def layers(self, num_chunks: NDArray[np.int64] | int) -> Layers:
        """How the layers lie on the stages, each of so many model chunks."""
        number = self._pp * num_chunks
        # The rounds of chunks before the mixed one, if there is one, have a layer more each than those after it.
        more, mixed = self._dealt // self._pp % num_chunks, self._dealt % self._pp
        stall = np.maximum(self._pp - 2 - self._dealt // number, 0)
        return Layers(
            num_full=self._num_full,
            num_short=self._num_short,
            first_chunk=-(-self._dealt // number) / self._fullest,
            last_chunk=self._dealt // number / self._fullest,
            shorter=self._shorter,
            longer=np.where(more < num_chunks - 1, mixed, 0) / self._fullest,
            uneven=np.where((mixed == 0) & (more > 0), stall, 0) / self._fullest,
        )

    def part(self, stage: str, *directions: str) -> Part:
        """One direction of a pass, "inputs" and "weight" together being a whole backward."""
        key = (stage, *directions)
        if key not in self._parts:
            shares = self._shares[stage].items()
            sections = [(self._passes[name, d], share) for name, share in shares for d in directions]
            self._parts[key] = Part(sections)
        return self._parts[key]

    def pace(self, last: Array, first: Array) -> Array:
        """That of the two which sets the pace."""
        return np.where(self.head_paces, last, first)

    def waits_of_pace(self, waits: dict[str, Waits]) -> Waits:
        """Those of the first and the last stage, of the one that sets the pace."""
        columns = {
            f.name: self.pace(getattr(waits["last"], f.name), getattr(waits["first"], f.name))
            for f in fields(Waits)
            if f.name != "apart"
        }
        return Waits(**columns, apart=waits["first"].apart)

    def kinds(
        self,
        forth: Sent,
        back: Sent,
        num_chunks: NDArray[np.int64] | int,
        split: bool,
        waits: dict[str, Waits],
    ) -> tuple[Stage, Stage, Stage | None, Stage]:
        """The first, a full, a short and the last stage of a pipeline, with the sends that each waits out.

        The short one is None where no plan has such a stage.
        ``forth`` and ``back``: what one takes of the sender, to the next stage and to the one before; from the last
        stage on to the first it is far, and so from the first back to the last.
        ``waits``: of the first, of one in the "middle", which has neither embedding nor head, and of the last.
        """
        more, once = num_chunks, num_chunks - 1

        def stage(name: str, there: Array, again: Array, share: Array | float = 1.0) -> Stage:
            forward = self.part(name, "forward").busy * share + there
            if not split:
                return Stage(forward, self.part(name, *BACKWARD).busy * share + again, self._nothing, waits[name])
            inputs, weight = (self.part(name, d).busy * share for d in BACKWARD)
            return Stage(forward, inputs + again, weight, waits[name])

        return (
            stage("first", more * forth.near, once * back.far),
            stage("middle", more * forth.mean, more * back.mean),
            stage("middle", more * forth.mean, more * back.mean, (self._fullest - 1) / self._fullest)
            if np.any(self._num_short)
            else None,
            stage("last", once * forth.far, more * back.near),
        )


class Moves:
    """Gathers and reductions by the passes they occur in: of all layers of the fullest stage, and of the root."""

    def __init__(self, moved: Sequence[tuple[Operation, Array]], plans: Plans) -> None:
        nothing = plans.zeros
        kinds: defaultdict[tuple[str, bool], dict[str, Links]] = defaultdict(dict)
        sent: dict[tuple[str, bool], Array] = {}
        for operation, time in moved:
            work = operation.work
            assert isinstance(work, Collective)
            backward = work.purpose == "gather" and operation.phase == "backward"
            key = "backward" if backward else f"{work.purpose} {operation.when}", operation.section == "head"
            links = kinds[key].setdefault(operation.name.partition(".")[0], Links(nothing))
            links.add(time, operation.count, work.group.num_nodes > 1)
            sent[key] = sent.get(key, nothing) + work.tensor_bytes * operation.count

        def mixed(key: tuple[str, bool]) -> Links:
            in_one_piece = (
                (plans.parameter_shard == 1) & key[0].startswith("reduce") & (sent[key] <= plans.bucket_bytes)
            )
            return Links.mixed([*kinds[key].values()], in_one_piece)

        self._of: defaultdict[tuple[str, bool], Links] = defaultdict(lambda: Links(nothing))
        self._of.update({key: mixed(key) for key in kinds})

    def of_first(self, plans: Plans) -> Traffic:
        """Those of the first stage: the embedding opens a forward pass and closes a backward one."""
        several = plans.pp > 1
        if not np.any(several):
            return self._traffic(lambda key: self._of[key, False] + self._of[key, True])
        return self._traffic(
            lambda key: self._of[key, False] + self._of[key, True].of_root(~several | (key != "backward"))
        )

    def of_last(self, stages: Stages) -> Traffic:
        """Those of the last stage: the head stands at the end of a forward pass and opens a backward one."""

        def both(key: str) -> Links:
            back = key == "backward"
            return self._of[key, False].of_layers(stages.last_share, not back) + self._of[key, True].of_root(back)

        return self._traffic(both)

    def of_middle(self, layers: Array) -> Traffic:
        """Those of a stage with a share of the fullest one's layers and nothing else."""
        return self._traffic(lambda key: self._of[key, False].of_layers(layers))

    @staticmethod
    def _traffic(links: Callable[[str], Links]) -> Traffic:
        every, reduce = links("gather every"), links("reduce every")
        return Traffic(
            first=links("gather first") + every,
            later=links("gather later") + every,
            backward=links("backward"),
            reduce=reduce,
            reduce_last=reduce + links("reduce last"),
        )


def hide_exchanges(
    passes: dict[tuple[str, str], Pass], exchanges: Links, moves: Moves, plans: Plans, constants: Constants
) -> Array:
    """Leave of the passes' exchanges with experts what is exposed; returns seconds of a step exposed besides.

    A forward runs together with a backward of another micro-batch, so that the exchanges of both have the computation
    of both to hide behind, less what the gathers and reductions of both take of it. Of each stage's passes those before
    its first pair and after its last have none beside them. In the chain down the stages, along the last one and back
    up they make p whole micro-batches; without a pipeline, the first forward and the last backward, one.
    """
    if not np.any(plans.overlap_expert) or not exchanges.any:
        return plans.zeros
    layers = {direction: passes["layer", direction] for direction in DIRECTIONS}
    whole = {direction: layer.sums["expert"].total for direction, layer in layers.items()}
    for layer, seconds in zip(layers.values(), whole.values(), strict=True):
        layer.sums["expert"] = Sum([np.where(plans.overlap_expert, 0.0, seconds)])
    ways = [[layers["forward"]], [layers[direction] for direction in BACKWARD]]
    busy = Sum(
        busy_seconds(Sum(part.device for part in way).total, Sum(part.launch for part in way).total) for way in ways
    ).total
    beside, usual = Compute(busy, constants, plans.zeros, plans.zeros), moves.of_middle(plans.zeros + 1)
    others = usual.later + usual.backward + usual.reduce
    left = exposed_beside(exchanges + others, beside, constants) - exposed_beside(others, beside, constants)
    total = exchanges.alone
    share = np.where(plans.overlap_expert, left / np.where(total > 0, total, 1.0), 0.0)
    for direction, layer in layers.items():
        layer.beside = share * whole[direction]
    return np.where(plans.overlap_expert, np.minimum(plans.pp, plans.grad_accum) * (total - left), 0.0)


def busy_seconds(device: Array, dispatch: Array) -> Array:
    """Time of a pass in which stretches are bound by the device and others by the host: (d^p + h^p)^(1/p), p = 4."""
    larger = np.maximum(np.maximum(device, dispatch), 1e-30)
    ratio = np.minimum(device, dispatch) / larger
    return np.asarray(larger * np.sqrt(np.sqrt(1 + (ratio * ratio) ** 2)))
