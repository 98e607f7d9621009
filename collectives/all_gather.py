"""All-gather: every rank holds a shard and ends with the whole tensor."""

from flopcast.collectives import nccl
from flopcast.collectives.constants import DEFAULT, Constants
from flopcast.collectives.cost import Candidate, Cost, Floats, evaluate
from flopcast.collectives.group import Fabric, FloatArray, Group
from flopcast.collectives.links import links
from flopcast.collectives.pat import pat
from flopcast.collectives.ring import ring
from flopcast.collectives.volume import ring_bytes, split


def cost(tensor_bytes: FloatArray, group: Group, fabric: Fabric, constants: Constants = DEFAULT) -> Cost:
    """Cheapest of ring and PAT; ``tensor_bytes`` is the whole tensor S, of which a rank sends (n-1)/n."""
    return evaluate(_candidates, tensor_bytes, group, fabric, constants)


def sent_bytes(tensor_bytes: FloatArray, group: Group) -> tuple[Floats, Floats]:
    """(inside, between): bytes one node's ranks send; together g (n-1)/n S."""
    return split(ring_bytes(tensor_bytes, group, 1), group)


def _candidates(tensor_bytes: Floats, group: Group, fabric: Fabric, constants: Constants) -> list[Candidate]:
    on = links(group, fabric, constants)
    sent = ring_bytes(tensor_bytes, group, 1)
    # Every rank also writes its own shard to the output: a little less than a reduce-scatter's rate.
    return [
        *ring(
            sent,
            1,
            on,
            constants,
            bus_share=constants.copy_share,
            channel_bytes_per_s=nccl.COPY_CHANNEL_BYTES_PER_S,
            ll_share=0.5,
        ),
        *pat(sent, on),
    ]
