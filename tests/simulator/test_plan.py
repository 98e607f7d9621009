"""What a plan refuses, and what strategies stand for."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from builders import plan

from flopcast import InputError
from flopcast.simulator.plan import Plan, Plans, placement


@pytest.mark.parametrize(
    ("strategy", "shards"),
    [
        ("ddp", (1, 1, 1)),
        ("zero1", (1, 1, 480)),
        ("zero2", (1, 480, 480)),
        ("zero3", (480, 480, 480)),
        ("zero3-node", (8, 480, 480)),
        ("hsdp", (8, 8, 8)),
        ("tp8", (1, 1, 60)),
        ("ZeRO3-node+Q4", (8, 480, 480)),
    ],
)
def test_shards_of_the_strategies(strategy: str, shards: tuple[int, int, int]) -> None:
    p = Plan(seq_len=4096, **placement(strategy, 480, 8))  # type: ignore[arg-type]
    assert (p.parameter_shard, p.gradient_shard, p.optimizer_shard) == shards
    assert p.gather_bits == (4 if "Q4" in strategy else 16)


def test_within_one_node_every_shard_group_is_the_job() -> None:
    fields = placement("zero3-node", 4, 8)
    assert fields["parameter_shard"] == fields["optimizer_shard"] == 4


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ("zero4", "did you mean"),
        ("ddp+q4", "zero3\\+q4"),
        ("tp0", "unknown"),
        ("zero3+q8", "q4"),
        ("", "known"),
    ],
)
def test_unknown_strategies(strategy: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        placement(strategy, 480, 8)


@pytest.mark.parametrize(
    ("fields", "both_named"),
    [
        ({"tp": 3}, ("tp=3", "num_gpus=16")),
        ({"parameter_shard": 5}, ("parameter_shard=5", "16 data-parallel ranks")),
        ({"parameter_shard": 16}, ("parameter_shard=16", "gradient_shard=1")),
        ({"gather_bits": 4}, ("gather_bits=4", "parameter_shard=1")),
        (
            {"num_gpus": 6, "parameter_shard": 2, "gradient_shard": 2, "optimizer_shard": 3},
            ("gradient_shard=2", "optimizer_shard=3"),
        ),
        ({"compiled": "no"}, ("compiled", "True or False")),
        ({"gather_bits": 8}, ("gather_bits=8", "16")),
        ({"gradient_bits": 8}, ("gradient_bits=8", "32")),
        ({"sequence_parallel": True}, ("sequence_parallel", "tp=1")),
        ({"virtual_pp": 2}, ("virtual_pp=2", "pp=1")),
        ({"schedule": "zero-bubble"}, ("schedule=zero-bubble", "pp=1")),
        ({"schedule": "gpipe", "grad_accum": 4}, ("schedule=gpipe", "pp=1")),
        ({"pp": 2, "virtual_pp": 2}, ("schedule=1f1b", "virtual_pp=2")),
        ({"pp": 2, "virtual_pp": 2, "schedule": "interleaved", "grad_accum": 3}, ("grad_accum=3", "pp=2")),
        ({"cp": 2, "seq_len": 2049}, ("seq_len=2049", "cp=2")),
        ({"recompute": "some"}, ("recompute", "selective")),
        ({"micro_batch": 0}, ("micro_batch", "at least 1")),
        ({"micro_batch": float("nan")}, ("micro_batch", "whole number")),
        ({"micro_batch": 2**53}, ("micro_batch", "at most 1,000,000")),
        ({"grad_accum": 10**12, "micro_batch": 10**5}, ("grad_accum=1000000000000", "lower one of them")),
        ({"strategy": 2}, ("strategy is 2", "a name")),
    ],
)
def test_illegal_combinations_name_both_fields(fields: dict[str, Any], both_named: tuple[str, str]) -> None:
    with pytest.raises(InputError) as refused:
        Plan(**{"strategy": "ddp", "num_gpus": 16, "seq_len": 2048, **fields})
    for words in both_named:
        assert words in str(refused.value)


def test_a_plan_survives_the_arrays() -> None:
    p = plan("tp8", 64, recompute="selective", sequence_parallel=True, attention="flash3", grad_accum=4)
    described = Plans.of([plan("ddp"), p]).describe(1)
    assert Plan(**described) == p


def test_errors_can_be_rebuilt_from_their_arguments() -> None:
    with pytest.raises(InputError) as refused:
        placement("zero4", 480, 8)
    assert type(refused.value)(*refused.value.args).args == refused.value.args


def test_hybrid_sharding_over_a_number_of_ranks() -> None:
    fields = placement("hsdp16+q4", 64, 8)
    assert {fields[name] for name in ("parameter_shard", "gradient_shard", "optimizer_shard")} == {16}
    assert fields["gather_bits"] == 4
    with pytest.raises(InputError, match="does not divide the 64 data-parallel ranks"):
        Plan(**placement("hsdp24", 64, 8), seq_len=2048)  # type: ignore[arg-type]


def test_tensor_parallel_ranks_that_fill_a_node_leave_nothing_to_shard_in_it() -> None:
    fields = placement("hsdp", 4, 2, tp=2)
    with pytest.raises(InputError, match=r"tp=2: .*fill a node, .*; take larger nodes, a smaller tp, or zero3"):
        Plan(**fields, seq_len=2048)  # type: ignore[arg-type]
    assert Plan(**placement("hsdp", 8, 4, tp=2), seq_len=2048).parameter_shard == 2  # type: ignore[arg-type]


def test_no_plans_are_refused() -> None:
    with pytest.raises(InputError, match="give at least one Plan"):
        Plans.of([])


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3", "zero3+q4", "zero3-node", "hsdp"])
def test_a_name_whose_shards_are_those_of_another_is_refused(strategy: str) -> None:
    with pytest.raises(InputError, match=r"_shard=1 shards nothing over the 64 data-parallel ranks; take .*placement"):
        Plan(strategy, 64, 2048)
    assert Plan(**placement(strategy, 64, 8), seq_len=2048).shard_ranks == 64  # type: ignore[arg-type]
    assert Plan("ddp", 64, 2048).optimizer_shard == 1
    assert Plan(strategy, 1, 2048).shard_ranks == 1


@pytest.mark.parametrize(
    ("strategy", "fields", "fault"),
    [
        ("tp8", {}, r"tp=1 is not that of the name; take .*placement\('tp8'"),
        ("tp8", {"tp": 4}, "tp=4 is not that of the name"),
        ("hsdp16", {}, "parameter_shard=1 is not that of the name"),
        ("hsdp16", dict.fromkeys(("parameter_shard", "gradient_shard", "optimizer_shard"), 8), "parameter_shard=8 is"),
        (
            "zero3",
            dict.fromkeys(("parameter_shard", "gradient_shard", "optimizer_shard"), 32),
            "parameter_shard=32 shards over some of the 64 data-parallel ranks; .*, or call it hsdp or zero3-node",
        ),
        (
            "zero3+q4",
            dict.fromkeys(("parameter_shard", "gradient_shard", "optimizer_shard"), 64),
            r"gather_bits=16 gathers nothing in 4 bits; take .*placement\('zero3\+q4'.*, or leave out \+q4",
        ),
    ],
)
def test_a_name_that_promises_what_the_fields_do_not_is_refused(
    strategy: str, fields: dict[str, int], fault: str
) -> None:
    with pytest.raises(InputError, match=fault):
        Plan(strategy, 64, 2048, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_numpy_numbers_become_those_of_python(kind: type) -> None:
    """Narrow integers would overflow, and JSON knows none of them."""
    plan = Plan("tp2", kind(64), 2048, micro_batch=kind(2), tp=kind(2), fused_kernels=np.bool_(False))
    assert plan == Plan("tp2", 64, 2048, micro_batch=2, tp=2, fused_kernels=False)
    assert {type(value) for value in asdict(plan).values()} == {str, int, bool}
    fields = placement("hsdp", kind(64), kind(8), tp=kind(2))
    assert {type(value) for value in fields.values()} == {str, int}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((None, 16, 8), "strategy is None; it must be a name"),
        (("zero3", "16", 8), "num_gpus is '16'; it must be a whole number of at least 1"),
        (("zero3", 16.5, 8), "num_gpus is 16.5; it must be"),
        (("zero3", 16, None), "gpus_per_node is None; it must be"),
        (("zero3", 16, 0), "gpus_per_node is 0; it must be"),
    ],
)
def test_a_placement_of_no_number_of_gpus_is_refused(arguments: tuple[Any, Any, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        placement(*arguments)
