"""Which ranks a group holds and how they sit on the nodes."""

from itertools import pairwise

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


def num_dealt(num_layers: int | IntArray, pp: IntArray | int, counts_ends: NDArray[np.bool_] | bool) -> IntArray:
    """What is dealt out over the stages: the layers, or embedding and head as one more each where only so all have as
    many (Llama 3's 126 layers on 16 stages, arXiv:2407.21783, section 3.3.2) and the software counts them so.
    """
    return np.asarray(num_layers + 2 * (counts_ends & (num_layers % pp != 0) & ((num_layers + 2) % pp == 0)))


def layers_of_fullest_stage(num_layers: int | IntArray, pp: IntArray) -> IntArray:
    """Layers of the pipeline stage that has most: ceil(L / pp)."""
    return np.asarray(-(-num_layers // pp))


def layers_of_last_stage(num_layers: int | IntArray, pp: IntArray) -> IntArray:
    """Layers of the last stage: one fewer than the fullest where L does not divide by pp, for it also has the head."""
    fullest = layers_of_fullest_stage(num_layers, pp)
    return np.where(np.asarray(num_layers % pp) == 0, fullest, fullest - 1)


def layers_of_chunks(num_layers: int, pp: int, virtual_pp: int, counts_ends: bool) -> list[range]:
    """The layers of each of pp x v model chunks, in order; where they do not divide, the first chunks have one more.

    Chunk k is on stage k mod pp. Of the first and the last one embedding and head may be all.
    """
    dealt = int(num_dealt(num_layers, pp, counts_ends))
    before = (dealt - num_layers) // 2
    whole, more = divmod(dealt, pp * virtual_pp)
    starts = [chunk * whole + min(chunk, more) - before for chunk in range(pp * virtual_pp + 1)]
    return [range(max(a, 0), min(b, num_layers)) for a, b in pairwise(starts)]
