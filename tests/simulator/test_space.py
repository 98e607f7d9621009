"""The space of a search against plans put together one by one, and each of its forecasts against the plan's own."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from builders import H100, cluster, small_model

from flopcast import InputError
from flopcast.simulator.catalogue import load_cluster, load_model
from flopcast.simulator.compare import compare
from flopcast.simulator.forecast import forecast
from flopcast.simulator.plan import CHOICES, Plan, Plans, placement
from flopcast.simulator.request import Request
from flopcast.simulator.search import SearchRequest, search
from flopcast.simulator.space import BUCKETS, Space, divisors, micro_batches

SMALL = Space(small_model(), cluster(H100), 16, 2048, 16, {"recompute": ["none", "full"]})


def listed(space: Space, limit: int = 10**9) -> list[dict[str, object]]:
    """Every legal plan of the space, field by field."""
    found: list[dict[str, object]] = []
    for region in space.regions():
        for piece in region.parts(limit):
            plans = piece.plans.pick(np.nonzero(piece.legal))
            found += [plans.describe(index) for index in range(len(plans))]
    return found


def by_hand(space: Space) -> set[Plan]:
    """The rules of the space, plan by plan, where Plan itself says what is legal."""
    found = set()
    model, gpus, length = space.model, space.num_gpus, space.seq_len
    for tp, cp, pp in product((1, 2, 4, 8), (1, 2, 4), (1, 2, 4)):
        world = gpus // (tp * pp)
        if tp * cp * pp > gpus:
            continue
        node = max(8 // tp, 1)
        strategies = ["ddp"]
        if world > 1:
            strategies += ["zero1", "zero2", "zero3", "zero3+q4"]
        if 1 < node < world:
            strategies += ["zero3-node", "zero3-node+q4", "hsdp", "hsdp+q4"]
        if 1 < 2 * node < world:
            strategies += [f"hsdp{2 * node}", f"hsdp{2 * node}+q4"]
        stage = -(-model.num_layers // pp)
        schedules = [("1f1b", 1)]
        if pp > 1:
            schedules += [("gpipe", 1), ("zero-bubble", 1)]
            schedules += [("interleaved", v) for v in range(2, stage + 1) if stage % v == 0 and pp * v <= 4]
        for name, (schedule, v), micro in product(strategies, schedules, range(1, 65)):
            dp = world // cp
            if space.num_sequences % (dp * micro):
                continue
            accum = space.num_sequences // (dp * micro)
            if accum == 1 and schedule != "1f1b":
                continue
            shards = placement(name, gpus, 8, tp, pp)
            replicated = shards["parameter_shard"] == 1
            tuned = product(BUCKETS, (1,)) if replicated else product(BUCKETS[:1], (0, 1))
            for (bucket, prefetch), bits, split, recompute in product(
                tuned, (16, 32), (False, True), space.values["recompute"]
            ):
                if accum == 1 and name == "zero2" and bits == 16:
                    continue  # as zero1
                if schedule == "zero-bubble" and recompute != "none":
                    continue  # FSDP2's autograd would recompute for each weight
                try:
                    found.add(
                        Plan(
                            **shards, cp=cp, seq_len=length, micro_batch=micro, grad_accum=accum, schedule=schedule,
                            virtual_pp=v, bucket_bytes=bucket, prefetch=prefetch, gradient_bits=bits,
                            sequence_parallel=split, recompute=recompute,
                        )
                    )  # fmt: skip
                except InputError:
                    continue
    return found


@pytest.mark.parametrize("sequences", [16, 48])
def test_the_space_is_the_set_of_legal_plans(sequences: int) -> None:
    whole = replace(SMALL, num_sequences=sequences)
    space = [Plan(**fields) for fields in listed(whole)]  # type: ignore[arg-type]
    assert len(space) == len(set(space))
    assert set(space) == by_hand(whole)


def test_zero_bubble_recomputes_under_engines_that_keep_inputs_alone() -> None:
    values = {"engine": ["megatron"], "schedule": ["zero-bubble"], "recompute": ["none", "full"]}
    found = listed(replace(SMALL, values=values))
    assert {fields["recompute"] for fields in found} == {"none", "full"}


@pytest.mark.parametrize("name", ["overlap_update", "sliced_update", "compiled", "fused_kernels"])
def test_what_is_fixed_besides_is_what_every_plan_has(name: str) -> None:
    for value in (False, True):
        assert {fields[name] for fields in listed(replace(SMALL, values={name: [value], "tp": [1], "cp": [1]}))} == {
            value
        }


def test_cut_in_pieces_it_is_the_same_space() -> None:
    whole, pieces = listed(SMALL), listed(SMALL, limit=300)
    assert sorted(map(str, whole)) == sorted(map(str, pieces))
    assert max(piece.size for region in SMALL.regions() for piece in region.parts(300)) <= 300


@pytest.mark.parametrize(
    ("model", "cluster_name", "num_gpus", "seq_len", "num_sequences", "values"),
    [
        ("llama-65b", "dgx-a100-80gb", 2048, 2048, 2048, {}),
        ("plamo-13b", "abci-a", 480, 4096, 960, {}),
        ("llama-3.1-8b", "dgx-h100", 64, 8192, 512, {"precision": ["bf16", "fp8"], "compiled": [False, True]}),
    ],
)
def test_every_forecast_is_the_plans_own(
    model: str, cluster_name: str, num_gpus: int, seq_len: int, num_sequences: int, values: dict[str, list[object]]
) -> None:
    """Time and memory of plans drawn from each piece, one by one through the path that compare takes."""
    found, machine = load_model(model), load_cluster(cluster_name)
    rng = np.random.default_rng(0)
    checked = 0
    for region in Space(found, machine, num_gpus, seq_len, num_sequences, values).regions():
        piece = next(region.parts(20_000), None)
        if piece is None:
            continue
        cast = forecast(found, machine, piece.plans)
        step_s, memory = (np.broadcast_to(a, piece.plans.shape) for a in (cast.step_s, cast.memory.total))
        legal = np.flatnonzero(piece.legal)
        places = legal[rng.integers(0, legal.size, 3)]
        where = np.unravel_index(places, piece.plans.shape)
        plans = piece.plans.pick(where)
        for index in range(len(plans)):
            alone = forecast(found, machine, Plan(**plans.describe(index))).rows()[0]
            assert alone.step_s == pytest.approx(step_s[where][index], rel=1e-12)
            assert alone.memory_bytes == pytest.approx(memory[where][index], rel=1e-12)
            checked += 1
    assert checked > 20


def test_a_field_that_is_varied_has_every_value_and_a_derived_one_keeps_what_has_it() -> None:
    varied = replace(SMALL, values={"compiled": [False, True], "tp": [2], "grad_accum": [4], "recompute": ["full"]})
    plans = listed(varied)
    assert {plan["compiled"] for plan in plans} == {False, True}
    assert {(plan["tp"], plan["grad_accum"], plan["recompute"]) for plan in plans} == {(2, 4, "full")}


def test_uneven_stages_are_in_the_space() -> None:
    space = replace(SMALL, model=small_model(num_layers=7), values={"pp": [4]})
    assert {plan["pp"] for plan in listed(space)} == {4}
    # Two layers on the fullest stage would be two chunks, but the others have one.
    assert "interleaved" not in {plan["schedule"] for plan in listed(space)}
    # Six layers, the embedding and the head are two for each chunk of four stages.
    counted = replace(SMALL, model=small_model(num_layers=6), values={"pp": [4]})
    assert 2 in {plan["virtual_pp"] for plan in listed(counted)}
    not_counted = replace(counted, values={**counted.values, "engine": ["deepspeed"]})
    assert {plan["virtual_pp"] for plan in listed(not_counted)} == {1}


def test_plans_of_many_axes_pick_what_describe_says() -> None:
    region = next(SMALL.regions())
    plans = region.plans.pick(np.nonzero(region.legal))
    again = Plans.of([Plan(**plans.describe(index)) for index in range(len(plans))])
    for name in ("tp", "micro_batch", "optimizer_shard", "recompute"):
        np.testing.assert_array_equal(getattr(again, name), getattr(plans, name))


def test_divisors() -> None:
    assert divisors(480) == [d for d in range(1, 481) if 480 % d == 0]
    assert divisors(1) == [1]


def test_the_choices_are_those_of_a_plan() -> None:
    assert {plan["schedule"] for plan in listed(SMALL)} == set(CHOICES["schedule"])


def test_micro_batches_divide_the_batch() -> None:
    assert micro_batches(4096, 1024) == micro_batches(131072, 1024) == [1, 2, 4, 8, 16, 32]
    assert micro_batches(4096, 171) == [1, 3, 9, 19]
    assert micro_batches(4096, 12) == [1, 2, 3, 4, 6, 12]
    model, machine = load_model("gpt2-xl"), load_cluster("dgx-h100")
    request = SearchRequest([24], global_batch_tokens=24 * 171 * 1024, fixed={"strategy": ["zero1"], "tp": [1]})
    best = search(model, machine, request).found[0].rows[0]
    assert best.plan["micro_batch"] in (9, 18, 19)
    assert best.mfu > 0.4


def test_short_sequences_are_tried_in_larger_passes() -> None:
    assert micro_batches(128, 4096)[-1] == 1024
    request = Request(8, strategies=["ddp"], seq_len=128, tokens_per_gpu=2**19)
    row = compare(load_model("gpt2"), load_cluster("dgx-h100"), request).best
    pinned = compare(load_model("gpt2"), load_cluster("dgx-h100"), replace(request, micro_batch=32)).best
    assert row.plan["micro_batch"] > 32
    assert row.step_s < 0.6 * pinned.step_s
