"""What puts a mixture's tokens in their experts' order, by hand."""

from typing import Any

import pytest
from builders import H100, cluster, plan

from flopcast.simulator.blocks.experts import Experts
from flopcast.simulator.blocks.residual import MixedBlock
from flopcast.simulator.blocks.transformer import Attention
from flopcast.simulator.forecast import forecast
from flopcast.simulator.model import Model
from flopcast.simulator.operation import Operation, Pointwise

T, D, E, K = 4096, 1024, 16, 4
MIXTURE = Model("m", D, 512, T, (MixedBlock(Attention(8, 8, 128), Experts(E, K, 512)),))


def operations(phase: str = "forward", **fields: Any) -> dict[str, Operation]:
    found = forecast(MIXTURE, cluster(H100), plan("zero3", seq_len=T, **fields))
    return {o.name.split(".", 1)[1]: o for o in found.operations if o.phase == phase and o.count[0] > 0}


def rows(operation: Operation) -> float:
    assert isinstance(operation.work, Pointwise)
    assert operation.work.counted
    return float(operation.work.bytes[0] / (2 * D))


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_a_row_is_read_once_and_written_for_each_expert(phase: str) -> None:
    for ep in (1, 8):
        found = operations(phase, ep=ep)
        assert rows(found["permute"]) == rows(found["unpermute"]) == T * (1 + K)


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_what_arrives_is_sorted_where_a_rank_has_several_experts(phase: str) -> None:
    found = operations(phase, ep=8)
    assert rows(found["sort"]) == rows(found["unsort"]) == 2 * T * K
    for without in ({"ep": 1}, {"ep": 16}, {"ep": 8, "dispatcher": "deepep"}):
        assert not {"sort", "unsort"} & set(operations(phase, **without))


def test_deepep_brings_a_row_to_a_rank_once() -> None:
    """Of 8 ranks with 2 of 16 experts, those that have any of 4: C(14, 4) / C(16, 4) have none."""
    ranks = 8 * (1 - 1001 / 1820)
    assert rows(operations(ep=8, dispatcher="deepep")["permute"]) == pytest.approx(T * (ranks + K))


def test_an_exchange_is_prepared_kernel_by_kernel() -> None:
    def launches(**fields: Any) -> float:
        return float(operations(ep=8, **fields)["dispatch_counts"].num_kernels[0])

    assert launches() == 1 + 12
    assert launches(dispatcher="deepep") == 1 + 5


def test_a_router_of_megatron_core_launches_each_operation() -> None:
    """Those of Megatron-Bridge's recipes are fused."""

    def launches(engine: str, phase: str) -> float:
        return float(operations(phase, ep=8, engine=engine)["route"].num_kernels[0])

    for engine, forward, backward in (("megatron", 25, 10), ("nemo", 25, 10), ("megatron-bridge", 6, 4)):
        assert (launches(engine, "forward"), launches(engine, "backward")) == (forward, backward)
