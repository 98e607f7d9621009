"""All-reduce: every rank holds a whole tensor and ends with the whole sum."""

import numpy as np

from flopcast.collectives import hierarchical, nvls, torus
from flopcast.collectives.collnet import collnet
from flopcast.collectives.constants import DEFAULT, Constants
from flopcast.collectives.cost import ALGORITHMS, LL, Candidate, Cost, Evaluation, Floats, evaluate
from flopcast.collectives.group import Fabric, FloatArray, Group
from flopcast.collectives.links import Links, links
from flopcast.collectives.ring import ring
from flopcast.collectives.tree import tree
from flopcast.collectives.volume import ring_bytes, split
from flopcast.errors import InputError, nearest


def cost(
    tensor_bytes: FloatArray,
    group: Group,
    fabric: Fabric,
    constants: Constants = DEFAULT,
    *,
    algorithm: str | None = None,
) -> Cost:
    """Cheapest of ring, tree, NVLS, NVLS-tree and CollNet, or the ``algorithm`` asked for; S is the buffer.

    "hierarchical" and "torus" run only when asked for; NCCL has neither.
    """
    if algorithm is None:
        return evaluate(_candidates, tensor_bytes, group, fabric, constants)
    if algorithm == "hierarchical":
        return evaluate(hierarchical.candidates, tensor_bytes, group, fabric, constants)
    if algorithm == "torus":
        return evaluate(torus.candidates, tensor_bytes, group, fabric, constants)
    found = forced(tensor_bytes, group, fabric, constants, algorithm)
    if np.any(np.isinf(found.time_s)):
        raise InputError(
            f"algorithm '{algorithm}' cannot run an all-reduce of this group here: leave the algorithm to the model"
        )
    return found


def forced(tensor_bytes: FloatArray, group: Group, fabric: Fabric, constants: Constants, algorithm: str) -> Cost:
    """The cost with "ring", "tree", "nvls", "nvls-tree" or "collnet"; infinite where that cannot run."""
    return evaluate(_only(algorithm), tensor_bytes, group, fabric, constants)


def sent_bytes(tensor_bytes: FloatArray, group: Group) -> tuple[Floats, Floats]:
    """(inside, between): bytes one node's ranks send; together 2 g (n-1)/n S."""
    return split(ring_bytes(tensor_bytes, group, 2), group)


def _candidates(tensor_bytes: Floats, group: Group, fabric: Fabric, constants: Constants) -> list[Candidate]:
    """All that NCCL may choose: where its tables put an NVLS-tree before a ring, the ring is left only its LL."""
    on = links(group, fabric, constants)
    rings, others = _able(tensor_bytes, on, group, fabric, constants)
    behind = nvls.before_rings(on, fabric)
    kept = [one if one.protocol == LL else one.where(~behind) for one in rings]
    return [*kept, *others]


def _able(
    tensor_bytes: Floats, on: Links, group: Group, fabric: Fabric, constants: Constants
) -> tuple[list[Candidate], list[Candidate]]:
    """Rings, and all else that can run."""
    return ring(ring_bytes(tensor_bytes, group, 2), 2, on, constants), [
        *tree(tensor_bytes, on, constants),
        *nvls.nvls(tensor_bytes, on, fabric, constants),
        *collnet(tensor_bytes, on, fabric, constants),
    ]


def _only(algorithm: str) -> Evaluation:
    """The candidates of one algorithm."""
    known = ["ring", "tree", "nvls", "nvls-tree", "collnet"]
    if algorithm not in known:
        raise InputError(f"algorithm '{algorithm}' is unknown; {nearest(algorithm, [*known, 'hierarchical', 'torus'])}")
    code = ALGORITHMS.index(algorithm)

    def evaluation(size: Floats, group: Group, fabric: Fabric, constants: Constants) -> list[Candidate]:
        rings, others = _able(size, links(group, fabric, constants), group, fabric, constants)
        return [one.where(np.asarray(one.algorithm) == code) for one in (*rings, *others)]

    return evaluation
