"""Cases of the 4-bit gather inside FSDP2 on four ranks."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from flopcast.collectives.running import fsdp2, quantised_all_gather
from flopcast.collectives.running.fsdp2 import FSDP2AllGather, quantise_gathers
from flopcast.errors import InputError
from flopcast.kernels.nf4.reference import dequantise, quantise

HIDDEN = 33  # uneven on any number of ranks
POLICY = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


class Block(nn.Module):
    """A norm and a matrix, recomputed in the backward; notes the matrix that every pass sees."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.rand(HIDDEN) + 0.5)
        self.linear = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + checkpoint(self.inner, x, use_reentrant=False)

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(torch.cat([self.linear.weight.detach().flatten(), self.norm.detach()]).clone())
        return self.linear(x * self.norm)


def model(reshard: bool | int = True, quantised: bool = True, mesh: object = None) -> tuple[nn.Module, list[Block]]:
    torch.manual_seed(0)
    blocks = [Block(), Block()]
    whole = nn.Sequential(*blocks, nn.Linear(HIDDEN, 5))
    options = {
        "mesh": mesh or dist.init_device_mesh("cpu", (4,)),
        "reshard_after_forward": reshard,
        "mp_policy": POLICY,
    }
    for block in blocks:
        fully_shard(block, **options)
    fully_shard(whole, **options)
    if quantised:
        hooks = quantise_gathers(whole, node_size=reshard if type(reshard) is int else None)
        assert len(hooks) == 3
        assert all(isinstance(hook, FSDP2AllGather) for hook in hooks)
    return whole, blocks


def train(whole: nn.Module, steps: int = 8) -> list[float]:
    optimizer = torch.optim.AdamW(whole.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(dist.get_rank())
    x = torch.randn(16, HIDDEN, generator=generator)
    y = x[:, :5] * 2
    losses = []
    for _ in range(steps):
        loss = (whole(x).float() - y).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def expected(parameter: DTensor, ranks: int) -> torch.Tensor:
    """A matrix as it must arrive: every rank's rows, padded, through the 4-bit round trip."""
    full = parameter.full_tensor().detach().bfloat16()
    rows = -(-full.shape[0] // ranks)
    padded = torch.zeros(ranks * rows, *full.shape[1:], dtype=torch.bfloat16)
    padded[: full.shape[0]] = full
    if full.dim() == 1:
        return full
    parts = [dequantise(quantise(part), part.numel(), torch.bfloat16) for part in padded.split(rows)]
    return torch.cat(parts).view(-1, *full.shape[1:])[: full.shape[0]]


def case_parameters_arrive_as_their_round_trip() -> None:
    for mesh, ranks in ((None, 4), (dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("nodes", "node")), 2)):
        _, (block, _) = model(mesh=mesh)
        matrix, norm = expected(block.linear.weight, ranks), expected(block.norm, ranks)
        assert isinstance(block, FSDPModule)
        block.unshard()
        assert torch.equal(block.linear.weight, matrix)
        assert torch.equal(block.norm, norm)
        block.reshard()
        handle = block.unshard(async_op=True)
        assert handle is not None
        handle.wait()
        assert torch.equal(block.linear.weight, matrix)
        block.reshard()


def case_training_follows_the_16_bit_gather() -> None:
    raw, quantised = train(model(quantised=False)[0]), train(model()[0])
    assert quantised[-1] < 0.95 * quantised[0]
    assert all(abs(q / r - 1) < 0.1 for q, r in zip(quantised, raw, strict=True)), (quantised, raw)
    hybrid = train(model(mesh=dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("nodes", "node")))[0])
    assert hybrid[-1] < 0.95 * hybrid[0]


def case_the_node_keeps_the_payloads_and_sees_the_same_weights_again() -> None:
    whole, blocks = model(reshard=2)
    sizes: list[tuple[int, int]] = []
    original = fsdp2.gather_payloads

    def spy(payload: torch.Tensor, group: dist.ProcessGroup) -> object:
        sizes.append((group.size(), payload.numel()))
        return original(payload, group)

    fsdp2.gather_payloads = spy  # type: ignore[assignment]
    try:
        train(whole, steps=2)
    finally:
        fsdp2.gather_payloads = original
    assert original is quantised_all_gather.gather_payloads
    over_all, in_node = ([size for ranks, size in sizes if ranks == n] for n in (4, 2))
    # Two steps of two blocks and the root over all four ranks; every block again in the node, two shares each.
    assert len(over_all) == 6
    assert len(in_node) >= 4
    assert set(in_node) <= {2 * size for size in over_all}
    for block in blocks:
        assert len(block.seen) == 4
        assert torch.equal(block.seen[0], block.seen[1])
        assert torch.equal(block.seen[2], block.seen[3])
        assert not torch.equal(block.seen[0], block.seen[2])


def case_in_node_training_equals_full_sharding() -> None:
    assert train(model(reshard=2)[0]) == train(model(reshard=True)[0])


def case_wrong_use_is_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match="no FSDP2 module"):
        quantise_gathers(nn.Linear(3, 3))
    whole, _ = model(reshard=True, quantised=False)
    with pytest.raises(InputError, match="divisor of the 4 ranks"):
        quantise_gathers(whole, node_size=3)
    mixed = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, dtype=torch.bfloat16).requires_grad_(False))
    fully_shard(mixed, mesh=dist.init_device_mesh("cpu", (4,)))
    quantise_gathers(mixed)
    with pytest.raises(InputError, match="one param_dtype"):
        mixed.unshard()
    whole, _ = model(reshard=2, quantised=False)
    quantise_gathers(whole)
    with pytest.raises(InputError, match="node_size of reshard_after_forward"):
        whole(torch.ones(2, HIDDEN)).sum().backward()
