"""Which ranks a group holds and how they sit on the nodes."""

import numpy as np
from numpy.typing import NDArray

from flopcast.collectives.group import Group

IntArray = NDArray[np.int64]


def group(size: IntArray, stride: IntArray, gpus_per_node: IntArray, num_gpus: IntArray) -> Group:
    """The group of ``size`` ranks that lie ``stride`` ranks apart, beside all others like it.

    A node of G GPUs (fewer if the job is smaller) holds max(1, G/stride) such ranks of a group, or the largest
    number that divides the group evenly; the rest of the node belongs to other groups that speak at the same time.
    """
    in_node = np.minimum(gpus_per_node, num_gpus)
    per_node = np.gcd(size, np.maximum(in_node // stride, 1))
    return Group(size, per_node, np.maximum(in_node // per_node, 1))


def stages_per_node(pp: IntArray, gpus_per_node: IntArray, num_gpus: IntArray) -> IntArray:
    """Whole pipeline stages that share a node: 1 where a stage fills nodes, or does not divide one evenly."""
    in_node, stage = np.minimum(gpus_per_node, num_gpus), num_gpus // pp
    return np.where(in_node % stage == 0, np.maximum(in_node // stage, 1), 1)


def neighbouring_stages(pp: IntArray, gpus_per_node: IntArray, num_gpus: IntArray) -> tuple[Group, Group]:
    """Pairs of ranks that hand on a micro-batch, from a node's last stage to the next node and between stages in it.

    As many of them speak at once as a stage has GPUs in the node, or as the node has pairs.
    """
    in_node = np.minimum(gpus_per_node, num_gpus)
    pair = np.full_like(pp, 2)
    across = Group(pair, np.ones_like(pp), np.minimum(num_gpus // pp, in_node))
    return across, Group(pair, np.minimum(pair, in_node), np.maximum(in_node // 2, 1))


def layers_of_fullest_stage(num_layers: int | IntArray, pp: IntArray) -> IntArray:
    """Layers of the pipeline stage that has most: ceil(L / pp)."""
    return np.asarray(-(-num_layers // pp))


def stage_layers(num_layers: int, num_stages: int, stage: int) -> range:
    """The layers of a stage, dealt out evenly, the first stages one more where they do not divide."""
    each, more = divmod(num_layers, num_stages)
    first = stage * each + min(stage, more)
    return range(first, first + each + (stage < more))


def layers_of_last_stage(num_layers: int | IntArray, pp: IntArray) -> IntArray:
    """Layers of the last stage: one fewer than the fullest where L does not divide by pp, for it also has the head."""
    fullest = layers_of_fullest_stage(num_layers, pp)
    return np.where(np.asarray(num_layers % pp) == 0, fullest, fullest - 1)
