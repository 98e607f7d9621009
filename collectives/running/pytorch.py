"""The two calls of torch.distributed whose names changed: PyTorch 2.13 deprecates the old ones, 2.9 lacks the new."""

from collections.abc import Callable
from typing import TypeAlias

import torch.distributed as dist

Call: TypeAlias = "Callable[..., dist.Work | None]"


def _first(new: str, old: str) -> Call:
    call: Call = getattr(dist, new, None) or getattr(dist, old)
    return call


# (output, input, group=None, async_op=False): output holds every rank's input, in rank order.
all_gather_single = _first("all_gather_single", "all_gather_into_tensor")
# (output, input, op=SUM, group=None, async_op=False): output is this rank's part of the reduced input.
reduce_scatter_single = _first("reduce_scatter_single", "reduce_scatter_tensor")
