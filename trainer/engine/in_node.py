"""ZeRO-3 kept inside the node: what FSDP2 (PyTorch 2.11 to 2.15) does not offer by a public name.

``fully_shard(..., reshard_after_forward=<node size>)`` keeps a node's copy from the forward to the backward and drops
it after, so that with several micro-batches every forward gathers over all ranks again. Here the copy is kept until
the last backward of the step, so that one micro-batch pays the gather over all ranks and every other pass stays in
the node. All private names stand in this file; a PyTorch that moved them is refused in a sentence.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from flopcast.errors import InputError


@contextmanager
def one_node_mesh() -> Iterator[None]:
    """While it holds, ``fully_shard`` of many modules shares one set of node groups, not one set per module."""
    fully_shard_module = _internals()["module"]
    original = fully_shard_module._get_post_forward_mesh_info
    made: list[Any] = []

    def made_once(*arguments: Any) -> Any:
        if not made:
            made.append(original(*arguments))
        return made[0]

    fully_shard_module._get_post_forward_mesh_info = made_once
    try:
        yield
    finally:
        fully_shard_module._get_post_forward_mesh_info = original


class NodeCopies:
    """The node's copies of the parameters of every FSDP2 module in ``module``.

    ``quantised``: the all-gather hook keeps the node's copy in 4 bits, so that FSDP2's own 16-bit one is not made.
    """

    def __init__(self, module: nn.Module, quantised: bool) -> None:
        names = _internals()
        self._state: Any = names["state"]
        self._training_state: Any = names["training_state"]
        self.keep = False
        groups: list[Any] = [
            group
            for part in module.modules()
            if isinstance(part, FSDPModule) and (group := part._get_fsdp_state()._fsdp_param_group) is not None
        ]
        for group in groups:
            self._replace_reshard(group)
            if quantised:
                group._to_sharded_post_forward = partial(self._drop, group)

    def _replace_reshard(self, group: Any) -> None:
        reshard = group.reshard

        def keeping() -> None:
            if not (self.keep and group._training_state is self._training_state.POST_BACKWARD):
                reshard()
                return
            group._to_sharded_post_forward()
            group._reshard_after_forward_event = group.device_handle.Event()
            group._reshard_after_forward_event.record()

        group.reshard = keeping

    def _drop(self, group: Any) -> None:
        """To the state in which FSDP2 gathers over the node, without a copy of its own to gather."""
        if group.is_sharded_post_forward:
            return
        ranks = group.post_forward_mesh_info.shard_mesh_size
        for parameter in group.fsdp_params:
            (gathered,) = parameter.all_gather_outputs
            # Same size and no memory: the hook gathers what it kept and does not read this.
            nothing = torch.zeros(1, dtype=gathered.dtype, device=gathered.device)
            parameter._sharded_post_forward_param_data = nothing.expand(gathered.numel() // ranks)
            parameter._setattr_on_modules(parameter.sharded_param)
            parameter.free_unsharded_param()
            parameter.sharded_state = self._state.SHARDED_POST_FORWARD
        group._sharded_state = self._state.SHARDED_POST_FORWARD


def _internals() -> dict[str, Any]:
    """The private names, or InputError where this PyTorch has them elsewhere."""
    try:
        from torch.distributed.fsdp._fully_shard import (
            _fsdp_common,
            _fsdp_param,
            _fsdp_param_group,
            _fully_shard,
        )

        group = _fsdp_param_group.FSDPParamGroup
        parameter = _fsdp_param.FSDPParam
        for owner, names in (
            (_fully_shard, ("_get_post_forward_mesh_info",)),
            (group, ("reshard", "_to_sharded_post_forward", "is_sharded_post_forward")),
            (parameter, ("_setattr_on_modules", "free_unsharded_param", "to_sharded_post_forward")),
        ):
            for name in names:
                getattr(owner, name)
        return {
            "module": _fully_shard,
            "state": _fsdp_param.ShardedState,
            "training_state": _fsdp_common.TrainingState,
        }
    except (AttributeError, ImportError) as error:
        raise InputError(
            f"torch {torch.__version__} keeps FSDP2's parameter groups elsewhere ({error}); install torch 2.13 to "
            "2.15, or train with zero3 or hsdp in place of zero3-node"
        ) from None
