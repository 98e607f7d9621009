"""FSDP2 under every data-parallel strategy: one mesh of shards and replicas, and when to gather, reshard and reduce.

| placement (parameters, gradients, optimizer) | mesh                | after forward | after backward                 |
|----------------------------------------------|---------------------|---------------|--------------------------------|
| ddp (1, 1, 1)                                | W replicas, 1 shard | keep          | keep but after the last        |
| zero1 (1, 1, o), zero2 (1, o, o)             | o shards            | keep          | keep but after the last        |
| zero3 (o, o, o), hsdp where o is the node    | o shards            | reshard       | reshard                        |
| zero3-node (node, o, o)                      | o shards            | to the node   | to the node but after the last |

Gradients are reduced in every micro-batch where they are sharded, else after the last; replicas add theirs after the
last.
"""

from contextlib import nullcontext
from typing import cast

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from flopcast.collectives.running.fsdp2 import quantise_gathers
from flopcast.simulator.plan import Plan
from flopcast.trainer.engine.in_node import NodeCopies, one_node_mesh
from flopcast.trainer.engine.mesh import Ranks
from flopcast.trainer.model import Decoder


class Fsdp2:
    """A decoder sharded by ``fully_shard``, layer by layer and what is outside the layers as one more unit."""

    def __init__(self, module: Decoder, plan: Plan, ranks: Ranks, dtype: torch.dtype) -> None:
        self.plan = plan
        p, o = plan.parameter_shard, plan.optimizer_shard
        self._in_node = 1 < p < o
        reshard: bool | int = p if self._in_node else p > 1
        reduce = torch.float32 if plan.gradient_bits == 32 or dtype == torch.float32 else torch.bfloat16
        # Rotary tables stay fp32; everything else is made in the parameters' type.
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=reduce, cast_forward_inputs=False)
        with one_node_mesh() if self._in_node else nullcontext():
            for unit in (*module.layers.values(), module):
                fully_shard(unit, mesh=ranks.data, reshard_after_forward=reshard, mp_policy=policy)
        self.root = cast(FSDPModule, module)
        self._units = [part for part in cast(nn.Module, module).modules() if isinstance(part, FSDPModule)]
        quantised = plan.gather_bits == 4
        if quantised:
            quantise_gathers(module, p if self._in_node else None)
        self._copies = NodeCopies(module, quantised) if self._in_node else None

    def before(self, is_last: bool) -> None:
        """Say whether to reduce, to add over the replicas, and what to keep after this micro-batch's backward."""
        plan = self.plan
        self.root.set_requires_gradient_sync(is_last or plan.gradient_shard > 1)
        self.root.set_requires_all_reduce(is_last)
        if plan.parameter_shard == 1:
            self.root.set_reshard_after_backward(is_last)
        if self._copies is not None:
            self._copies.keep = not is_last

    def release(self) -> None:
        """Free what a forward without a backward left gathered."""
        for unit in self._units:
            unit.reshard()
