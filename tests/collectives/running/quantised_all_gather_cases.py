"""Cases of the 4-bit all-gather on four ranks."""

import math

import pytest
import torch
import torch.distributed as dist

from flopcast.collectives.running.agreement import agree
from flopcast.collectives.running.payload import Layout, Segment
from flopcast.collectives.running.quantised_all_gather import (
    Pending,
    gather_and_keep,
    gather_kept,
    quantised_all_gather,
)
from flopcast.errors import InputError
from flopcast.kernels.nf4.reference import dequantise, quantise

ERROR = 0.092


def mine(numel: int, dtype: torch.dtype, rank: int | None = None) -> torch.Tensor:
    seed = dist.get_rank() if rank is None else rank
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed)).to(dtype)


def everyone(numel: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.cat([mine(numel, dtype, rank) for rank in range(dist.get_world_size())])


def same_bits_everywhere(tensor: torch.Tensor) -> bool:
    first = tensor.clone()
    dist.broadcast(first, src=0)
    return bool(torch.equal(first.view(torch.uint8), tensor.view(torch.uint8)))


def case_every_rank_ends_with_the_round_trip_of_every_part() -> None:
    n = dist.get_world_size()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for numel in (1, 63, 64, 65, 1000, 16385, 70000):
            output = torch.full((n * numel,), 9.0, dtype=dtype)
            quantised_all_gather(output, mine(numel, dtype))
            expected = [dequantise(quantise(mine(numel, dtype, r)), numel, dtype) for r in range(n)]
            assert torch.equal(output, torch.cat(expected))
            assert same_bits_everywhere(output)
    error = (output.float() - everyone(numel, dtype).float()).norm() / everyone(numel, dtype).float().norm()
    assert abs(float(error) / ERROR - 1) < 0.02


def case_parameters_are_memory_like_any_other() -> None:
    n = dist.get_world_size()
    output = torch.nn.Parameter(torch.empty(n * 100))
    quantised_all_gather(output, torch.nn.Parameter(mine(100, torch.float32)))
    assert torch.equal(output[:100], dequantise(quantise(mine(100, torch.float32, 0)), 100, torch.float32))


def case_a_rank_outside_the_group_is_told() -> None:
    pair = dist.new_group([0, 1])
    output = torch.empty(200)
    if dist.get_rank() < 2:
        quantised_all_gather(output, mine(100, torch.float32), pair)
    else:
        with pytest.raises(InputError, match=f"rank {dist.get_rank()} is not in the group"):
            quantised_all_gather(output, mine(100, torch.float32), pair)


def case_segments_travel_raw_or_quantised_in_one_payload() -> None:
    n = dist.get_world_size()
    layout = Layout((Segment(100), Segment(7, raw=True), Segment(3000), Segment(1, raw=True)), torch.bfloat16)
    output = torch.empty(n, layout.numel, dtype=torch.bfloat16)
    quantised_all_gather(output, mine(layout.numel, torch.bfloat16), layout=layout)
    source = everyone(layout.numel, torch.bfloat16).view(n, -1)
    assert torch.equal(output[:, 100:107], source[:, 100:107])
    assert torch.equal(output[:, 3107:], source[:, 3107:])
    assert torch.equal(output[1, :100], dequantise(quantise(source[1, :100]), 100, torch.bfloat16))
    assert same_bits_everywhere(output)


def case_in_place_and_asynchronous() -> None:
    n, numel = dist.get_world_size(), 500
    expected = torch.empty(n * numel)
    quantised_all_gather(expected, mine(numel, torch.float32))
    output = torch.zeros(n * numel)
    part = output[dist.get_rank() * numel :][:numel]
    part.copy_(mine(numel, torch.float32))
    pending = quantised_all_gather(output, part, async_op=True)
    assert isinstance(pending, Pending)
    assert isinstance(pending, dist.Work)
    assert pending.wait()
    assert pending.wait()
    assert torch.equal(output, expected)


def case_not_finite_values_reach_every_rank() -> None:
    n, numel = dist.get_world_size(), 200
    values = mine(numel, torch.float32)
    if dist.get_rank() == 2:
        values[3], values[150] = math.nan, math.inf
    output = torch.empty(n, numel)
    quantised_all_gather(output, values)
    assert output[2, 3].isnan()
    assert output[2, 150] == math.inf
    assert int(output.isfinite().sum()) == n * numel - 2


def case_kept_payloads_give_the_same_bits_in_the_node() -> None:
    n, numel = dist.get_world_size(), 777
    layout = Layout((Segment(700), Segment(77, raw=True)), torch.bfloat16)
    nodes = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    first = torch.empty(n * numel, dtype=torch.bfloat16)
    kept = gather_and_keep(first, mine(numel, torch.bfloat16), layout, None, node_size=2)
    assert kept.payloads.shape == (n // 2, layout.num_bytes)
    again = torch.empty_like(first)
    gather_kept(again, kept, nodes[dist.get_rank() // 2])
    assert torch.equal(first, again)
    with pytest.raises(InputError, match="divisor of the 4 ranks"):
        gather_and_keep(first, mine(numel, torch.bfloat16), layout, None, node_size=3)


def case_a_group_of_one_copies() -> None:
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    values = mine(100, torch.float32)
    output = torch.empty(100)
    quantised_all_gather(output, values, groups[dist.get_rank()])
    assert torch.equal(output, values)


def case_bad_input_is_the_same_error_on_every_rank() -> None:
    n, rank = dist.get_world_size(), dist.get_rank()

    def refused(match: str, numel: int = 64, dtype: torch.dtype = torch.float32, **options: object) -> None:
        with pytest.raises(InputError, match=match):
            quantised_all_gather(torch.empty(n * numel, dtype=dtype), torch.ones(numel, dtype=dtype), **options)

    refused("rank 1 brings 65 elements of torch.float32 and rank 0 64 elements", numel=65 if rank == 1 else 64)
    refused("rank 3 brings 64 elements of torch.bfloat16", dtype=torch.bfloat16 if rank == 3 else torch.float32)
    refused("empty" if rank == 2 else "rank 2 has bad input", numel=0 if rank == 2 else 64)
    refused("empty", numel=0)
    refused("takes float32", dtype=torch.int64)
    layout = Layout((Segment(60), Segment(4, raw=True)), torch.float32) if rank == 0 else None
    refused("another layout or operation", layout=layout)
    with pytest.raises(InputError, match="output has 5 elements" if rank == 1 else "rank 1 has bad input"):
        quantised_all_gather(torch.empty(5 if rank == 1 else n * 64), torch.ones(64))
    # And afterwards the group still works.
    quantised_all_gather(torch.empty(n * 64), torch.ones(64))


def case_agreement_across_rows_and_columns() -> None:
    mesh = dist.init_device_mesh("cpu", (2, 2))
    groups = [mesh.get_group(1), mesh.get_group(0)]
    agree("test", torch.ones(3), groups)
    with pytest.raises(InputError, match="rank 3 brings 4 elements"):
        agree("test", torch.ones(4 if dist.get_rank() == 3 else 3), groups)
