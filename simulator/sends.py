"""What the stages of a pipeline send each other, and what they wait for as they do."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator import placement
from flopcast.simulator.blocks.computation import Workload
from flopcast.simulator.constants import Constants
from flopcast.simulator.cost import host_seconds
from flopcast.simulator.engines import has_habit
from flopcast.simulator.operation import Array, Collective, Operation, Phase, Purpose, Work
from flopcast.simulator.pipeline import Sent
from flopcast.simulator.plan import Plans
from flopcast.simulator.stages import busy_seconds


def send_operations(load: Workload, stage: int | None) -> Iterator[Operation]:
    """Activations to the next stage forward, their gradients to the previous one backward, once per model chunk.

    Without ``stage`` both, as a stage between two others sends them; where several share a node, what its last one
    sends to the next node and what they send among each other. Ranks of a tensor-parallel group send the same, or a
    part each and gather what they receive. The last stage tells the others the loss.
    """
    plans = load.plans
    purpose: Purpose = "pipeline"
    in_parts = has_habit("sends_parts", plans.engine) & (plans.tp > 1) & ~plans.sequence_parallel
    sent_bytes = load.residual_bytes / np.where(in_parts, plans.tp, 1)
    of_parts = placement.group(
        np.where(in_parts, plans.tp, 1), np.ones_like(plans.tp), load.gpus_per_node, plans.num_gpus
    )
    gather: Work = Collective("all_gather", load.residual_bytes, of_parts, "tp", purpose)
    layout = (plans.pp, load.gpus_per_node, plans.num_gpus)
    in_node = placement.stages_per_node(*layout)
    neighbours = placement.neighbouring_stages(*layout)
    across, within = (Collective("point_to_point", sent_bytes, group, "pp", purpose) for group in neighbours)
    count = np.asarray(plans.virtual_pp * (plans.pp > 1), dtype=np.float64)
    phases: tuple[Phase, Phase] = ("forward", "backward")
    nothing = plans.zeros
    for phase in phases:
        # One of a node's stages sends to the next node, the others to their neighbour.
        leaves, stays = plans.pp > in_node, (in_node - 1) / in_node
        sends = count
        if stage is not None:
            sends = count * (stage != (plans.pp - 1 if phase == "forward" else 0))
            is_last = (stage + (phase == "forward")) % in_node == 0
            leaves, stays = is_last, ~is_last
        for name, sent, present in (("send", across, leaves), ("send_in_node", within, stays)):
            here = sends * present
            yield Operation(f"pipeline.{name}", "layer", phase, "every", here, nothing + 2.0, sent, nothing, nothing)
        parts = sends * in_parts
        yield Operation("pipeline.gather", "layer", phase, "every", parts, nothing + 2.0, gather, nothing, nothing)
    stages = placement.group(plans.pp, plans.num_gpus // plans.pp, load.gpus_per_node, plans.num_gpus)
    loss = Collective("broadcast", nothing + 4, stages, "pp", "norm")
    told = np.asarray(plans.pp > 1, dtype=np.float64)
    yield Operation("pipeline.loss", "state", "step", "step", told, told, loss, nothing, nothing)


class Sends:
    """The sends of each plan's pipeline, collected from its operations."""

    def __init__(self, plans: Plans, gpus_per_node: NDArray[np.int64], constants: Constants) -> None:
        self._constants = constants
        self._pp = plans.pp
        self._replayed = plans.has(cuda_graphs="full")
        self._in_node = placement.stages_per_node(plans.pp, gpus_per_node, plans.num_gpus)
        nothing = dict.fromkeys(("forward", "backward"), plans.zeros)
        self._near, self._far, self._gathered = dict(nothing), dict(nothing), dict(nothing)
        self._host = plans.zeros

    def add(self, operation: Operation, time: Array) -> None:
        """A send to one kind of neighbour, or what gathers its parts."""
        work = operation.work
        assert isinstance(work, Collective)
        kind = self._gathered
        if work.collective == "point_to_point":
            kind = self._near if np.any(np.asarray(work.group.ranks_per_node) > 1) else self._far
            # Of plans without this kind of send the operation says nothing.
            self._host = host_seconds(replace(operation, replayed=self._replayed), self._constants)
        kind[operation.phase] = kind[operation.phase] + time

    def waited(self, direction: str, share: Array | float = 1.0) -> Sent:
        """What a stage waits for of a send, if of its time it waits for a ``share``."""
        near, far = self._near[direction], self._far[direction]
        near, far = np.where(self._in_node > 1, near, far), np.where(self._pp > self._in_node, far, near)
        near, far = (busy_seconds((s + self._gathered[direction]) * share, self._host) for s in (near, far))
        # With n stages to a node ceil(p/n) - 1 of p - 2 sends leave it.
        crossings = -(-self._pp // self._in_node) - 1
        return Sent(near, far, np.asarray(((self._pp - 2) / 2 - crossings) * (far - near)))

    def latency(self, share: Array | float) -> Array:
        """Of a send forward, what the next stage waits for and the sender does not: the mean over all stages."""
        sent = self.waited("forward")
        return np.asarray((sent.near + (sent.far - sent.near) / self._in_node) * (1 - share))
