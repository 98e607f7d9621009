"""What FSDP2 has no public name for: the order and sizes of the parameters in a module's all-gather buffer.

Written against PyTorch 2.11 to 2.15 (torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py); a version that moved
them is refused in a sentence, and a test asserts that the layout read here is the buffer that FSDP2 passes to its hook.
"""

from dataclasses import dataclass

import torch
from torch.distributed.fsdp import FSDPModule

from flopcast.collectives.running.payload import Layout, Segment
from flopcast.errors import InputError


@dataclass(frozen=True)
class GatherBuffer:
    """The buffer that one FSDP2 module gathers over ``num_shards`` ranks: ``segments`` as one rank holds them."""

    segments: tuple[Segment, ...]
    num_shards: int

    def layout(self, dtype: torch.dtype) -> Layout:
        """The payload's layout when the buffer is of ``dtype``."""
        return Layout(self.segments, dtype)


def gather_buffer(module: FSDPModule) -> GatherBuffer | None:
    """The all-gather buffer of ``module``'s own parameters, or None where it has none.

    A parameter's share is dim 0 padded to a multiple of the ranks; one-dimensional parameters are raw segments.
    """
    try:
        from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo

        group = module._get_fsdp_state()._fsdp_param_group
        if group is None:
            return None
        segments = tuple(
            Segment(parameter.padded_sharded_param_size.numel(), raw=len(parameter._orig_size) == 1)
            for parameter in group.fsdp_params
        )
        mesh_info = group.mesh_info
        return GatherBuffer(segments, mesh_info.shard_mesh_size if isinstance(mesh_info, FSDPMeshInfo) else 1)
    except (AttributeError, ImportError) as error:
        raise InputError(
            f"torch {torch.__version__} keeps FSDP2's parameters elsewhere ({error}); "
            "install torch 2.13 to 2.15, or train without the 4-bit gather"
        ) from None
