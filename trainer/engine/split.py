"""How tensor-parallel ranks split each parameter, before FSDP2 shards what each of them holds."""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from flopcast.simulator.blocks.transformer import TransformerBlock
from flopcast.simulator.model import Model, ParameterTensor
from flopcast.trainer.block import kv_replicated
from flopcast.trainer.model import parameter_tensors


def placements(model: Model, tp: int) -> dict[str, Placement]:
    """Of every parameter by name: over which dimension ``tp`` ranks split it, if they do."""
    return {name: _placement(model, name, tensor, tp) for name, tensor in parameter_tensors(model).items()}


def _placement(model: Model, name: str, tensor: ParameterTensor, tp: int) -> Placement:
    if tensor.split == "rows":
        return Shard(0)
    if tensor.split == "columns":
        return Shard(1)
    if tensor.split == "kv" and not kv_replicated(_block(model, name), tp):
        return Shard(0)
    return Replicate()


def unfinished_gradients(model: Model, tp: int, sequence_parallel: bool) -> set[str]:
    """Replicated parameters of which every tensor-parallel rank computes only its own share of the gradient.

    Key/value heads that every rank holds for its own query heads, norms of heads, norms behind the entry of a parallel
    block, and under sequence parallelism all that see only this rank's tokens.
    """
    names = set()
    for name, tensor in parameter_tensors(model).items():
        if tp == 1 or not isinstance(_placement(model, name, tensor, tp), Replicate):
            continue
        inside = name.startswith("layers.") and (
            tensor.split == "kv"
            or tensor.name in ("q_norm", "k_norm")
            or (tensor.name.startswith("norm") and _norms_inside(_block(model, name)))
        )
        if inside or sequence_parallel:
            names.add(name)
    return names


def split_over(module: nn.Module, model: Model, mesh: DeviceMesh) -> None:
    """Replace every parameter of ``module``, on the meta device, by this rank's part as a DTensor over ``mesh``."""
    where = placements(model, mesh.size())
    for name, parameter in list(module.named_parameters()):
        placement = where[name]
        own = parameter.data
        if isinstance(placement, Shard):
            parts = own.chunk(mesh.size(), dim=placement.dim)
            rank = mesh.get_local_rank()
            own = parts[rank] if rank < len(parts) else own.narrow(placement.dim, 0, 0)
        part = DTensor.from_local(
            torch.empty_like(own, memory_format=torch.contiguous_format),
            mesh,
            [placement],
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )
        owner, _, attribute = name.rpartition(".")
        module.get_submodule(owner).register_parameter(attribute, nn.Parameter(part))


def _block(model: Model, name: str) -> TransformerBlock:
    block = model.layers[int(name.split(".")[1])]
    assert isinstance(block, TransformerBlock)
    return block


def _norms_inside(block: TransformerBlock) -> bool:
    return block.parallel and block.num_norms == 2
