"""Filling the sharded parameters: drawn from a seed, or copied from whole tensors, the same under every strategy."""

import hashlib
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard

from flopcast.errors import InputError
from flopcast.simulator.model import Model
from flopcast.trainer.engine.mesh import SHARDS, TENSOR, Ranks
from flopcast.trainer.engine.split import placements
from flopcast.trainer.model import parameter_tensors

# Rows drawn from one random stream: a rank draws only those that hold a row of its own.
ROWS_PER_STREAM = 64
# Of matrices; those that write to the residual stream are drawn with 1/sqrt(2 L) of it (Radford et al. 2019, GPT-2,
# section 2.3).
INITIAL_STD = 0.02

# Rows [first, last) of a whole parameter, all columns.
Rows = Callable[[int, int], torch.Tensor]


def initialise(module: nn.Module, model: Model, ranks: Ranks, seed: int) -> None:
    """Matrices from N(0, std^2), norms one, biases zero; every strategy and number of ranks gets the same model."""
    shapes = {name: tensor.shape for name, tensor in parameter_tensors(model).items()}

    def rows_of(name: str) -> Rows:
        return lambda first, last: _drawn(name, shapes[name], first, last, model, seed)

    _fill(module, model, ranks, rows_of)


def draw(model: Model, seed: int) -> dict[str, torch.Tensor]:
    """The whole tensors that :func:`initialise` deals out, by parameter name."""
    tensors = parameter_tensors(model).items()
    return {name: _drawn(name, t.shape, 0, t.shape[0], model, seed) for name, t in tensors}


def load(module: nn.Module, model: Model, ranks: Ranks, whole: Mapping[str, torch.Tensor]) -> None:
    """Copy this rank's part of every whole tensor, by parameter name. Raises InputError where one lacks or misfits."""
    shapes = {name: tensor.shape for name, tensor in parameter_tensors(model).items()}

    def rows_of(name: str) -> Rows:
        if name not in whole:
            raise InputError(f"the weights hold no '{name}'; give all {model.num_layers} layers of {model.name}")
        tensor = whole[name]
        if tuple(tensor.shape) != shapes[name]:
            found, expected = list(tensor.shape), list(shapes[name])
            raise InputError(f"the weights' '{name}' has shape {found}; {model.name} has {expected}")
        return lambda first, last: tensor[first:last]

    _fill(module, model, ranks, rows_of)


@torch.no_grad()
def _fill(module: nn.Module, model: Model, ranks: Ranks, rows_of: Callable[[str], Rows]) -> None:
    where = placements(model, ranks.plan.tp)
    tensor_rank, shard_rank = ranks.place(TENSOR), ranks.place(SHARDS)
    for name, parameter in module.named_parameters():
        own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if own.numel() == 0:
            continue
        placement, num_rows = where[name], parameter.shape[0]
        first, last = 0, num_rows
        if ranks.plan.tp > 1 and isinstance(placement, Shard) and placement.dim == 0:
            first, last = _chunk(first, last, ranks.plan.tp, tensor_rank)
        first, last = _chunk(first, last, ranks.plan.optimizer_shard, shard_rank)
        rows = rows_of(name)(first, last)
        if ranks.plan.tp > 1 and isinstance(placement, Shard) and placement.dim == 1:
            rows = rows[:, slice(*_chunk(0, parameter.shape[1], ranks.plan.tp, tensor_rank))]
        own.copy_(rows)


def _chunk(first: int, last: int, num: int, index: int) -> tuple[int, int]:
    """Part ``index`` of [first, last) cut as torch.chunk cuts: ceil(length / num) each, the last ones shorter."""
    size = math.ceil((last - first) / num)
    return min(first + index * size, last), min(first + (index + 1) * size, last)


def _drawn(name: str, shape: tuple[int, ...], first: int, last: int, model: Model, seed: int) -> torch.Tensor:
    if len(shape) == 1:
        return torch.full((last - first,), 0.0 if name.endswith(".bias") else 1.0)
    writes_residual = name.endswith(("o.weight", "down.weight"))
    std = INITIAL_STD / (math.sqrt(2 * model.num_layers) if writes_residual else 1.0)
    start = first // ROWS_PER_STREAM
    keys = (f"{seed} {name} {stream}" for stream in range(start, math.ceil(last / ROWS_PER_STREAM)))
    # PyTorch draws on one core; a thread for each of the others, as a billion numbers take it half a minute.
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        streams = list(threads.map(lambda key: _stream(key, ROWS_PER_STREAM, shape[1]), keys))
    offset = start * ROWS_PER_STREAM
    return torch.cat(streams)[first - offset : last - offset] * std


def _stream(key: str, rows: int, columns: int) -> torch.Tensor:
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "little")
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
