"""The search: its winner against plans drawn at random, what it keeps, what it says where there is nothing to find."""

import math
import pickle
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import A100, H100, cluster, small_model

from flopcast import InputError
from flopcast.simulator import search as searching
from flopcast.simulator.catalogue import load_cluster, load_model
from flopcast.simulator.cluster import Costs
from flopcast.simulator.compare import compare
from flopcast.simulator.fixed import checked, parse_fixed
from flopcast.simulator.forecast import MEMORY_MARGIN, Row, forecast
from flopcast.simulator.plan import Plan, Plans
from flopcast.simulator.ranking import on_front
from flopcast.simulator.request import Request
from flopcast.simulator.search import SearchRequest, SearchResult, default_batch_sequences, search
from flopcast.simulator.space import Space

MODEL = small_model(hidden=2048, num_heads=16, num_kv_heads=16, intermediate=5632, num_layers=8)
MACHINE = cluster(H100)


def found(**fields: Any) -> SearchResult:
    return search(MODEL, MACHINE, SearchRequest(**{"num_gpus": [16], "global_batch_tokens": 32 * 2048, **fields}))


def test_llama_65b_on_2048_gpus_has_a_million_plans_and_no_random_one_beats_the_winner() -> None:
    model, machine = load_model("llama-65b"), load_cluster("dgx-a100-80gb")
    result = search(model, machine, SearchRequest([2048]))
    assert result.num_plans >= 1_000_000
    _, winner = result.winner
    space = Space(model, machine, 2048, 2048, 2048, {"attention": ["flash2"]})
    rng = np.random.default_rng(1)
    drawn = []
    for region in space.regions():
        for piece in region.parts(200_000):
            legal = np.flatnonzero(piece.legal)
            number = math.ceil(legal.size * 10_500 / result.num_plans)
            places = rng.choice(legal, min(number, legal.size), replace=False)
            drawn.append(piece.plans.pick(np.unravel_index(places, piece.plans.shape)))
    num_drawn = 0
    for plans in drawn:
        # Each as a plan of its own, in a list, as compare forecasts them.
        listed = Plans.of([Plan(**plans.describe(index)) for index in range(len(plans))])
        cast = forecast(model, machine, listed)
        num_drawn += len(plans)
        assert np.all(cast.step_s[cast.fits & ~cast.tight] >= winner.step_s * (1 - 1e-12))
    assert num_drawn >= 10_000


def test_the_winner_is_at_least_as_good_as_what_compare_chooses() -> None:
    request = SearchRequest([16], global_batch_tokens=16 * 4096, fixed={"gradient_bits": [32]})
    _, winner = search(MODEL, MACHINE, request).winner
    rows = compare(MODEL, MACHINE, Request(16, tokens_per_gpu=4096)).rows
    assert winner.step_s <= min(row.step_s for row in rows if row.fits) * (1 + 1e-12)


def test_rows_are_distinct_placements_in_order_and_forecast_alike_alone() -> None:
    rows = found().found[0].rows
    kinds = {(r.strategy, r.plan["tp"], r.plan["cp"], r.plan["pp"], r.plan["ep"]) for r in rows}
    assert len(kinds) == len(rows) > 20
    assert all(r.plan["cp"] == 1 or r.plan["micro_batch"] % r.plan["cp"] for r in rows)
    assert [row.step_s for row in rows] == sorted(row.step_s for row in rows)
    assert all(row.fits for row in rows)
    for row in rows[:5]:
        assert forecast(MODEL, MACHINE, Plan(**row.plan)).rows()[0] == row


def test_a_row_is_told_apart_by_what_it_is_named_by() -> None:
    """cp 8 splits 2 sequences over 4 ranks each, and 1 over 8: one row of cp 8, the faster of them."""
    fixed: dict[str, list[Any]] = {"strategy": ["zero1"], "tp": [1], "pp": [1], "ep": [8], "cp": [8]}
    fixed |= {"dispatcher": ["deepep"], "overlap_expert": [True], "engine": ["megatron"]}

    def rows(micro_batches: list[int]) -> tuple[Row, ...]:
        request = SearchRequest([64], seq_len=4096, fixed={**fixed, "micro_batch": micro_batches})
        return tuple(search(load_model("mixtral-8x7b"), load_cluster("dgx-h100"), request).found[0].rows)

    alone = [*rows([1]), *rows([2])]
    assert len(alone) == 2
    assert rows([1, 2]) == (min(alone, key=lambda row: row.step_s),)


def everything(num_gpus: int = 16, num_sequences: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Time and memory of every legal plan, one list."""
    space = Space(MODEL, MACHINE, num_gpus, 2048, num_sequences, {"attention": ["cudnn"]})
    pieces = [piece for region in space.regions() for piece in region.parts(10**9)]
    casts = [forecast(MODEL, MACHINE, piece.plans.pick(np.nonzero(piece.legal))) for piece in pieces]
    return np.concatenate([c.step_s for c in casts]), np.concatenate([c.memory.total for c in casts])


def test_winner_front_and_counts_are_those_of_the_whole_list() -> None:
    step_s, memory = everything()
    machine = replace(MACHINE, gpu=replace(H100, memory_bytes=float(np.quantile(memory, 0.4))))
    request = SearchRequest([16], global_batch_tokens=32 * 2048)
    result = search(MODEL, machine, request).found[0]
    fits = memory <= (1 - MEMORY_MARGIN) * machine.gpu.memory_bytes
    assert result.num_plans == len(step_s)
    assert result.num_fitting == np.count_nonzero(fits)
    assert result.rows[0].step_s == pytest.approx(step_s[fits].min(), rel=1e-12)
    within = memory <= 2 * (1 - MEMORY_MARGIN) * machine.gpu.memory_bytes
    assert result.with_twice_the_memory.step_s == pytest.approx(step_s[within].min(), rel=1e-12)
    order = np.lexsort((memory[fits], step_s[fits]))
    front, least = [], np.inf
    for time, held in zip(step_s[fits][order], memory[fits][order], strict=True):
        if held < least:
            front.append((time, held))
            least = held
    assert len(result.front.plans) == len(front)
    np.testing.assert_allclose(result.front.step_s, [time for time, _ in front], rtol=1e-12)
    np.testing.assert_allclose(result.front.memory.total, [held for _, held in front], rtol=1e-12)
    smallest = search(MODEL, machine, replace(request, objective="memory")).found[0].rows[0]
    assert smallest.memory_bytes == pytest.approx(memory.min(), rel=1e-12)


def test_a_plan_leaves_memory_free_where_one_can() -> None:
    least = found(objective="memory").found[0].rows[0].memory_bytes
    usual = float(np.median([row.memory_bytes for row in found().found[0].rows]))
    tight = replace(MACHINE, gpu=replace(H100, memory_bytes=least * 1.04))
    request = SearchRequest([16], global_batch_tokens=32 * 2048)
    only = search(MODEL, tight, request).found[0]
    assert only.memory_margin == 0
    assert only.rows[0].tight
    roomy = replace(MACHINE, gpu=replace(H100, memory_bytes=usual))
    kept = search(MODEL, roomy, request).found[0]
    assert kept.memory_margin == MEMORY_MARGIN
    assert not any(row.tight for row in kept.rows)
    everything_fits = search(MODEL, roomy, replace(request, memory_margin=0.0)).found[0]
    assert everything_fits.num_fitting > kept.num_fitting


def test_the_best_that_leaves_the_arithmetic_alone() -> None:
    result = found().found[0]
    alone = found(fixed={"gradient_bits": [32], "gather_bits": [16]}).found[0]
    assert result.full_precision == alone.rows[0]
    assert found(fixed={"gradient_bits": [16]}).found[0].full_precision is None


def test_the_batch_that_is_not_given() -> None:
    assert default_batch_sequences(2048, 2048) == 2048
    assert default_batch_sequences(8, 8192) == 512
    assert default_batch_sequences(16384, 131072) == 128  # as Llama 3 405B was extended to that context
    assert default_batch_sequences(480, 131072) == 120


def test_fp8_needs_a_gpu_that_has_it() -> None:
    with pytest.raises(InputError, match="precision=fp8: a100"):
        search(MODEL, cluster(A100), SearchRequest([16], fixed={"precision": ["fp8"]}))


def test_the_front_of_a_few_points() -> None:
    step_s, memory = np.array([3.0, 1.0, 2.0, 2.0, 4.0]), np.array([1.0, 9.0, 5.0, 4.0, 2.0])
    assert sorted(on_front(step_s, memory).tolist()) == [0, 1, 3]


def test_memory_is_bounded_by_the_piece_not_the_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the plans take hardly more memory."""
    monkeypatch.setattr(searching, "CHUNK", 5_000)

    def peak(**fixed: Any) -> tuple[int, float]:
        tracemalloc.start()
        number = found(fixed=fixed).num_plans
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return number, most

    few, small = peak(gradient_bits=[32])
    varied = {"compiled": [False, True], "fused_kernels": [False, True]}
    many, large = peak(gradient_bits=[32], **varied)
    assert many == 4 * few
    assert large < 1.5 * small


def test_several_gpu_counts_share_a_batch_and_the_frame_has_all() -> None:
    result = found(num_gpus=[8, 16, 32], global_batch_tokens=64 * 2048)
    assert [f.num_gpus for f in result.found] == [8, 16, 32]
    frame = result.to_frame()
    assert set(frame["num_gpus"]) == {8, 16, 32}
    assert {"strategy", "tp", "step_s", "memory_bytes", "bubble_s"} <= set(frame.columns)
    tokens = frame["micro_batch"] * frame["grad_accum"] * frame["num_gpus"] // frame["tp"] // frame["pp"] // frame["cp"]
    assert set(tokens) == {64}
    assert result.winner[0].num_gpus == 32


def test_cost_and_energy_weigh_the_gpus() -> None:
    machine = replace(MACHINE, costs=Costs(gpu_hour_price=2.0, node_power_w=10_000.0))
    for objective, factor in (("cost", 2.0 / 3600), ("energy", 10_000.0 / 8)):
        request = SearchRequest([8, 16, 32], objective=objective, global_batch_tokens=64 * 2048)  # type: ignore[arg-type]
        result = search(MODEL, machine, request)
        winner, row = result.winner
        values = {f.num_gpus: factor * f.num_gpus * f.rows[0].step_s for f in result.found}
        assert result.objective(row) == pytest.approx(min(values.values()))
        assert winner.num_gpus == min(values, key=lambda count: values[count])


def test_an_interrupted_search_gives_the_best_so_far() -> None:
    def interrupt(share: float, num_plans: int) -> None:
        if num_plans:
            raise KeyboardInterrupt

    request = SearchRequest([16, 32], global_batch_tokens=64 * 2048)
    result = search(MODEL, MACHINE, request, interrupt)
    assert not result.complete
    assert result.found[0].rows
    assert [found.num_gpus for found in result.found] == [16]
    assert result.num_plans < search(MODEL, MACHINE, request).num_plans
    assert result.left_out == {32: "32 GPUs were not searched: interrupted before"}

    def at_once(share: float, num_plans: int) -> None:
        raise KeyboardInterrupt

    tiny = replace(MACHINE, gpu=replace(A100, memory_bytes=1e6))
    with pytest.raises(KeyboardInterrupt):
        search(MODEL, tiny, request, at_once)


def test_progress_ends_at_one_and_counts_plans() -> None:
    heard: list[tuple[float, int]] = []
    result = search(MODEL, MACHINE, SearchRequest([16]), lambda share, number: heard.append((share, number)))
    assert heard == sorted(heard)
    assert 0.5 < heard[-1][0] <= 1
    assert heard[-1][1] == result.num_plans


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"fixed": {"tp": [3]}}, "tp=3 does not divide num_heads=16"),
        ({"fixed": {"pp": [9]}}, "pp=9 does not divide 16 GPUs or exceeds the 8 layers"),
        ({"fixed": {"pp": [3]}}, "nearest number of GPUs with a legal plan is 24"),
        ({"fixed": {"strategy": ["hsdp"], "tp": [8]}}, "hsdp does what ddp does there; use strategy=ddp"),
        ({"num_gpus": [8], "fixed": {"strategy": ["zero3-node"]}}, "zero3-node does what zero3 does there"),
        ({"fixed": {"tp": [1], "sequence_parallel": [True]}}, "sequence_parallel=true is for several tensor-parallel"),
        ({"fixed": {"whole_experts": [True]}}, "has no experts, so there are none to hold whole"),
        ({"fixed": {"overlap_expert": [True]}}, "no experts, so there is no exchange with them for overlap_expert"),
        ({"fixed": {"dispatcher": ["deepep"]}}, "has no experts, so there are no tokens for a dispatcher"),
        ({"fixed": {"dispatch_bits": [8]}}, "has no experts, so there are no tokens to send to them in dispatch_bits"),
        ({"fixed": {"pp": [1], "schedule": ["gpipe"]}}, "no pipeline size left has that schedule"),
        ({"global_batch_tokens": 33 * 2048, "fixed": {"tp": [1], "pp": [1], "cp": [1]}}, "global batch divides"),
        ({"fixed": {"micro_batch": [1], "grad_accum": [64]}}, "no plan is left where grad_accum is 64"),
        ({"fixed": {"ep": [2]}}, "has no experts, so ep is 1"),
        ({"global_batch_tokens": 10**18}, "at most 1,000,000,000,000,000"),
        ({"global_batch_tokens": 3000}, "a whole number is needed, e.g. 32768"),
        ({"global_batch_tokens": -1}, "at least 1"),
        ({"objective": "cost"}, "no gpu_hour_price"),
        ({"objective": "energy"}, "no node_power"),
        ({"objective": "joy"}, "choose of time, cost, memory, energy"),
        ({"num_gpus": [12]}, "multiple of 8"),
        ({"num_gpus": []}, "at least one number"),
        ({"num_gpus": 16}, r"--gpus is 16; give a list of at least one number, e.g. \[512\]"),
        ({"top": 0}, "--top is 0"),
        ({"memory_margin": 1.0}, "--memory-margin is 1.0"),
        ({"fixed": {"tp": [0]}}, "at least 1"),
        ({"seq_len": 0}, "--seq-len is 0"),
    ],
)
def test_bad_requests(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        found(**fields)


def test_too_large_says_by_how_much_and_what_would_mend_it() -> None:
    model, machine = load_model("llama-65b"), load_cluster("dgx-a100-80gb")
    with pytest.raises(InputError, match=r"\d\d\.\d GB more than the 85\.9 there are; 16 GPUs would hold it"):
        search(model, machine, SearchRequest([8]))
    with pytest.raises(InputError, match="leave strategy to the search and it fits"):
        search(model, machine, SearchRequest([64], fixed={"strategy": ["ddp"], "tp": [1], "pp": [1]}))


def test_a_count_given_twice_is_searched_once() -> None:
    once = search(load_model("gpt2"), load_cluster("dgx-h100"), SearchRequest([8, 4, 8]))
    assert [found.num_gpus for found in once.found] == [8, 4]


def test_a_result_crosses_processes() -> None:
    result = search(load_model("gpt2"), load_cluster("dgx-h100"), SearchRequest([4]))
    copy = pickle.loads(pickle.dumps(result))  # noqa: S301
    assert copy.found[0].rows == result.found[0].rows
    assert copy.found[0].front.to_frame().equals(result.found[0].front.to_frame())


def test_the_kernel_that_a_gpu_runs_anyway_is_no_advice() -> None:
    """A V100 has no flash attention 2: left to the search, attention is unfused too."""
    fixed = {"attention": ["unfused"], "tp": [1], "cp": [1], "pp": [1]}
    request = SearchRequest([4], seq_len=7168, global_batch_tokens=4 * 7168, fixed=fixed)
    with pytest.raises(InputError, match="under none of") as error:
        search(load_model("llama-3.2-1b"), load_cluster("abci-v"), request)
    assert "leave attention" not in str(error.value)


def test_one_count_without_a_plan_is_left_out_beside_others() -> None:
    result = found(num_gpus=[8, 16], fixed={"strategy": ["zero3-node"]})
    assert [f.num_gpus for f in result.found] == [16]
    assert "zero3-node does what zero3 does there" in result.left_out[8]


def test_what_is_fixed() -> None:
    assert parse_fixed(["pp=1", "tp=2,4", "recompute=full", "compiled=true,false"]) == {
        "pp": [1],
        "tp": [2, 4],
        "recompute": ["full"],
        "compiled": [True, False],
    }
    assert checked({"strategy": ["hsdp16+q4"]}) == {"strategy": ["hsdp16+q4"]}


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("pp", "write a field of a plan"),
        ("pp=", "write a field of a plan"),
        ("pp=a", "whole number"),
        (f"micro_batch={10**23}", "it must be at most 1,000,000"),
        (f"bucket_bytes={10**30}", "it must be at most 1,000,000,000,000"),
        ("pp=0", "at least 1"),
        ("num_gpus=8", "use --gpus"),
        ("seq_len=8", "use --seq-len"),
        ("pq=1", "no such field"),
        ("tensor-model-parallel-size=8", "no such field; it is called 'tp' here"),
        ("recompute=some", "none, selective, full"),
        ("strategy=tp8", "tp=8 strategy=zero1"),
        ("strategy=zero9", "unknown"),
        ("compiled=1", "true or false"),
        ("gradient_bits=8", "16 or 32"),
    ],
)
def test_bad_fixes(item: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_fixed([item])
    with pytest.raises(InputError, match="given twice"):
        parse_fixed(["pp=1", "pp=2"])


@pytest.mark.parametrize(
    ("num_gpus", "strategy", "plainer"),
    [(1, "zero3", "ddp"), (8, "hsdp", "zero3"), (8, "zero3-node+q4", r"zero3\+q4"), (8, "zero2", "ddp")],
)
def test_a_strategy_that_is_another_there_is_said_to_be(num_gpus: int, strategy: str, plainer: str) -> None:
    fixed = {"strategy": [strategy]} | ({"tp": [8]} if strategy == "zero2" else {})
    with pytest.raises(InputError, match=f"does what {plainer} does there; use strategy={plainer}"):
        search(small_model(), cluster(), SearchRequest([num_gpus], seq_len=2048, fixed=fixed))


@pytest.mark.parametrize(
    ("fixed", "words"),
    [
        ({"compiled": ["false"]}, "--fix compiled='false': choose True or False"),
        ({"compiled": [2]}, "--fix compiled=2: choose True or False"),
        ({"overlap_expert": [True, "x"]}, "--fix overlap_expert='x': choose True or False"),
        ({"tp": [True]}, "--fix tp=True: it must be a whole number of at least 1"),
    ],
)
def test_text_and_numbers_are_no_flags_and_flags_no_numbers(fixed: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        found(fixed=fixed)


def test_engine_changes_memory_and_a_little_time() -> None:
    """Megatron's buffers stay where FSDP2 drops them; its loss takes more passes and its sums kernels of their own."""
    fixed = {"strategy": ["zero1"], "micro_batch": [1], "recompute": ["full"], "sequence_parallel": [False]}

    def winner(engine: str) -> tuple[float, float]:
        request = SearchRequest(
            [16], global_batch_tokens=16 * 2048, fixed={**fixed, "engine": [engine], "tp": [1], "pp": [1]}
        )
        _, row = search(MODEL, MACHINE, request).winner
        return row.step_s, row.memory_bytes

    (seconds, smaller), (same, larger) = winner("fsdp2"), winner("megatron")
    assert seconds < same < 1.1 * seconds
    assert larger > smaller
