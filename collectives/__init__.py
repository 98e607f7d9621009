"""What a collective costs: one module per collective, NumPy arrays in and out.

Every module of ``COLLECTIVES`` has ``cost(tensor_bytes, group, fabric, constants) -> Cost`` and
``sent_bytes(tensor_bytes, group) -> (inside the node, between nodes)``.
"""

from types import ModuleType

from flopcast.collectives import (
    all_gather,
    all_reduce,
    all_to_all,
    broadcast,
    point_to_point,
    reduce,
    reduce_scatter,
)
from flopcast.collectives.constants import DEFAULT, Constants
from flopcast.collectives.cost import ALGORITHMS, PROTOCOLS, Cost
from flopcast.collectives.group import (
    ARCHITECTURES,
    FABRICS,
    Fabric,
    Group,
    architecture_code,
    fabric_code,
)

COLLECTIVES: dict[str, ModuleType] = {
    "all_gather": all_gather,
    "reduce_scatter": reduce_scatter,
    "all_reduce": all_reduce,
    "all_to_all": all_to_all,
    "broadcast": broadcast,
    "reduce": reduce,
    "point_to_point": point_to_point,
}

__all__ = [
    "ALGORITHMS",
    "ARCHITECTURES",
    "COLLECTIVES",
    "DEFAULT",
    "FABRICS",
    "PROTOCOLS",
    "Constants",
    "Cost",
    "Fabric",
    "Group",
    "architecture_code",
    "fabric_code",
]
