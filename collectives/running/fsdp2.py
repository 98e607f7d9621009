"""The 4-bit all-gather as the custom all-gather of FSDP2 (``FSDPModule.set_custom_all_gather``, PyTorch 2.13).

FSDP2 hands over each module's flat padded buffer, already in the parameters' dtype. The sharded fp32 parameters, the
gradients and the optimizer are untouched. Where parameters are resharded to the node after the forward
(``reshard_after_forward=<node size>``), the quantised data that arrived in the forward is what the node keeps, so that
every later gather in the node gives the same weights; quantising again would add error a second time.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from flopcast.collectives.running.fsdp2_internals import GatherBuffer, gather_buffer
from flopcast.collectives.running.quantised_all_gather import KeptPayloads, Pending, gather_payloads, keep
from flopcast.errors import InputError


class FSDP2AllGather:
    """FSDP2's ``AllGather`` interface for one module: ``allocate`` the output, then call.

    ``node_size`` is that of ``reshard_after_forward``, or None where nothing is kept between forward and backward.
    """

    def __init__(self, buffer: GatherBuffer, node_size: int | None) -> None:
        if node_size is not None and buffer.num_shards % node_size:
            raise InputError(f"node_size is {node_size}; give a divisor of the {buffer.num_shards} ranks of the shard")
        self.buffer = buffer
        self.node_size = node_size
        self.kept: KeptPayloads | None = None

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """An output of its own for every gather, freed by FSDP2 after the copy-out."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        async_op: bool = False,
    ) -> dist.Work | None:
        """Gather over all shards by quantising, over the node by what was kept."""
        if not input_tensor.dtype.is_floating_point:
            raise InputError(
                "the parameters of one FSDP2 module travel in different types; "
                "give fully_shard an mp_policy with one param_dtype"
            )
        layout = self.buffer.layout(input_tensor.dtype)
        together = self.buffer.num_shards // group.size()
        if input_tensor.numel() != together * layout.numel:
            raise InputError(
                f"FSDP2 gathers {input_tensor.numel()} elements per rank where {together * layout.numel} "
                "were expected; attach the 4-bit gather after the last fully_shard"
            )
        if together == 1:
            payloads, gathering = gather_payloads(layout.quantise(input_tensor), group)
        elif self.kept is not None and together == len(self.kept.payloads):
            payloads, gathering = gather_payloads(self.kept.payloads, group)
        else:
            raise InputError(
                f"a gather over {group.size()} ranks came where {self.node_size} were announced as the node; "
                "give quantise_gathers the node_size of reshard_after_forward"
            )

        def finish() -> None:
            layout.dequantise(payloads, output_tensor.view(-1), together)
            if together == 1 and self.node_size is not None:
                self.kept = keep(payloads, layout, group.rank(), self.node_size)

        pending = Pending(gathering, finish)
        if async_op:
            return pending
        pending.wait()
        return None


def quantise_gathers(model: nn.Module, node_size: int | None = None) -> list[FSDP2AllGather]:
    """Make every FSDP2 module in ``model`` gather its parameters in 4 bits; returns the hooks, in module order.

    Call it after the last ``fully_shard``. ``node_size`` is the integer given as ``reshard_after_forward``, if one
    was; HSDP needs none. Raises InputError where the model has no FSDP2 module or PyTorch no such hook.
    """
    hooks = []
    for module in model.modules():
        if not isinstance(module, FSDPModule):
            continue
        if not hasattr(module, "set_custom_all_gather"):
            raise InputError(f"torch {torch.__version__} has no set_custom_all_gather; install torch 2.13")
        buffer = gather_buffer(module)
        if buffer is None:
            continue
        hook = FSDP2AllGather(buffer, node_size)
        module.set_custom_all_gather(hook)  # type: ignore[arg-type]
        hooks.append(hook)
    if not hooks:
        raise InputError("the model has no FSDP2 module; call fully_shard before quantise_gathers")
    return hooks
