"""The comparison: what it chooses, what it leaves out, and what it refuses."""

from dataclasses import replace

import pytest
from builders import cluster, plan, small_model

from flopcast import InputError, Request, compare
from flopcast.simulator.catalogue import load_cluster, load_model
from flopcast.simulator.compare import default_tokens_per_gpu, whole_sequences
from flopcast.simulator.forecast import forecast
from flopcast.simulator.plan import Plan

PLAMO, ABCI = load_model("plamo-13b"), load_cluster("abci-a")
RESULT = compare(PLAMO, ABCI, Request(480))


def test_every_strategy_has_a_row_and_the_layer_table_is_the_reports() -> None:
    names = [row.strategy for row in RESULT.rows]
    assert names == [
        *("ddp", "zero1", "zero2", "zero3", "zero3-node", "hsdp", "tp8"),
        *("zero3+q4", "zero3-node+q4", "hsdp+q4"),
    ]
    assert [(r.strategy, r.elements) for r in RESULT.layer_traffic] == [
        ("tp8", 335544320),
        ("zero3-node", 314577920),
    ]
    assert RESULT.tokens_per_gpu == 8192


def test_each_row_is_the_best_legal_choice_and_forecasts_alike_alone() -> None:
    for row in RESULT.rows:
        again = forecast(PLAMO, ABCI, Plan(**row.plan)).rows()[0]
        assert again.step_s == pytest.approx(row.step_s, rel=1e-12)
        assert again.memory_bytes == pytest.approx(row.memory_bytes, rel=1e-12)
    by_name = {row.strategy: row for row in RESULT.rows}
    for micro_batch, recompute in ((1, "none"), (2, "full"), (1, "selective")):
        fields = {
            "seq_len": 4096,
            "micro_batch": micro_batch,
            "grad_accum": 2 // micro_batch,
            "recompute": recompute,
        }
        other = forecast(PLAMO, ABCI, plan("zero3-node", 480, **fields)).rows()[0]
        assert not other.fits or other.tight or other.step_s >= by_name["zero3-node"].step_s


def test_the_same_tokens_for_every_strategy() -> None:
    for row in RESULT.rows:
        sequences = row.plan["micro_batch"] * row.plan["grad_accum"] * 480 // row.plan["tp"]
        assert sequences * 4096 == 480 * 8192


def test_what_is_pinned_stays() -> None:
    pinned = compare(PLAMO, ABCI, Request(480, micro_batch=1, recompute="full", gradient_bits=16, attention="flash1"))
    for row in pinned.rows:
        assert row.plan["micro_batch"] == 1
        assert row.plan["recompute"] == "full"
        assert row.plan["gradient_bits"] == 16
        assert row.plan["attention"] == "flash1"
    assert pinned.chosen == ("seq_len", "tokens_per_gpu")


def test_products_in_eight_bits_where_the_gpu_has_them() -> None:
    where = load_cluster("dgx-h100")
    wide, narrow = (compare(PLAMO, where, Request(64, precision=width)) for width in ("bf16", "fp8"))  # type: ignore[arg-type]
    assert {row.plan["precision"] for row in narrow.rows} == {"fp8"}
    assert 0.6 < narrow.best.step_s / wide.best.step_s < 0.9
    with pytest.raises(InputError, match="a100-40gb has no 8-bit peak"):
        compare(PLAMO, ABCI, Request(480, precision="fp8"))
    with pytest.raises(InputError, match="--precision is 'fp4'; choose one of bf16, fp8"):
        compare(PLAMO, where, Request(64, precision="fp4"))  # type: ignore[arg-type]


def test_default_batch_is_near_four_mebitokens() -> None:
    assert default_tokens_per_gpu(480, 4096) == 8192
    assert default_tokens_per_gpu(2048, 2048) == 2048
    assert default_tokens_per_gpu(8, 2048) == 2**19
    assert default_tokens_per_gpu(100_000, 4096) == 4096


def test_a_model_has_the_positions_it_learned() -> None:
    """OPT's table has two rows more than the 2,048 positions it trains on."""
    opt, where = load_model("opt-1.3b"), load_cluster("dgx-h100")
    assert compare(opt, where, Request(8, seq_len=2048)).seq_len == 2048
    with pytest.raises(InputError, match=r"seq-len is 2050 but OPT-1\.3B has 2048 learned positions"):
        compare(opt, where, Request(8, seq_len=2050))


def test_any_number_of_gpus_gets_a_batch_that_divides_into_micro_batches() -> None:
    model, where = load_model("gpt2-xl"), load_cluster("dgx-h100")
    efficiency = {n: compare(model, where, Request(n, strategies=["zero1"])).best.mfu for n in (16, 24, 48, 56)}
    assert min(efficiency.values()) > 0.95 * max(efficiency.values())
    assert [whole_sequences(n) for n in (0.3, 2.13, 9, 17, 73, 85, 171)] == [1, 2, 9, 16, 72, 88, 176]


def test_micro_batches_are_divisors_of_whatever_batch_is_asked_for() -> None:
    model, where = load_model("gpt2-xl"), load_cluster("dgx-h100")
    best = compare(model, where, Request(24, tokens_per_gpu=171 * 1024, strategies=["zero1"])).best
    assert best.plan["micro_batch"] == 19  # of 1, 3, 9, 19
    assert best.mfu > 0.4


def test_a_strategy_that_cannot_be_is_left_out_with_the_reason_unless_asked_for() -> None:
    result = compare(small_model(num_heads=6, hidden=768, num_kv_heads=6), cluster(), Request(16))
    assert "tp=8 does not divide num_heads=6" in result.left_out["tp8"]
    with pytest.raises(InputError, match="tp=8 does not divide num_heads=6"):
        compare(small_model(num_heads=6, hidden=768, num_kv_heads=6), cluster(), Request(16, strategies=["tp8"]))


def test_expert_parallelism_is_chosen_and_said_or_pinned() -> None:
    mixtral, h100 = load_model("mixtral-8x7b"), load_cluster("dgx-h100")
    request = Request(64, seq_len=4096, strategies=["zero1", "zero3", "tp8"])
    free = compare(mixtral, h100, request)
    assert "ep" in free.chosen
    chosen = {row.strategy: row.plan["ep"] for row in free.rows}
    assert max(chosen.values()) > 1
    for row in free.rows:
        pinned = compare(mixtral, h100, replace(request, strategies=[row.strategy], ep=1))
        assert "ep" not in pinned.chosen
        assert {r.plan["ep"] for r in pinned.rows} == {1}
        assert row.fits > pinned.rows[0].fits or row.step_s <= pinned.rows[0].step_s
    assert "ep" not in compare(PLAMO, ABCI, Request(480)).chosen


def test_what_excludes_every_strategy_is_said_once() -> None:
    with pytest.raises(InputError) as refused:
        compare(PLAMO, ABCI, Request(480, schedule="gpipe"))
    words = str(refused.value)
    assert words.startswith("schedule=gpipe with pp=1 has no pipeline to schedule")
    assert words.count("no pipeline") == 1
    assert "so for ddp, zero1, zero2" in words


def test_to_recompute_no_number_of_layers_is_to_recompute_all() -> None:
    every, said = (
        compare(PLAMO, ABCI, Request(480, strategies=["zero3"], recompute="full", **layers)).rows[0]
        for layers in ({}, {"recompute_layers": 0})
    )
    assert every == said


@pytest.mark.parametrize(
    ("model", "ep", "words"),
    [
        ("mixtral-8x7b", 3, "ep=3 does not divide the 8 experts"),
        ("plamo-13b", 2, "ep=2 but PLaMo-13B has no experts"),
        ("mixtral-8x7b", 0, "--ep is 0; it must be at least 1"),
    ],
)
def test_expert_parallelism_that_cannot_be(model: str, ep: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        compare(load_model(model), load_cluster("dgx-h100"), Request(64, strategies=["zero3"], ep=ep))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(481), "nearest: 480 or 488"),
        (Request(0), "at least 1"),
        (Request(968), "120 nodes, so at most 960"),
        (Request(480, tokens_per_gpu=5000), "multiple of"),
        (Request(480, tokens_per_gpu=-1), "at least 1"),
        (Request(480, recompute="full", recompute_layers=-1), "--recompute-layers is -1; it must be at least 0"),
        (
            Request(480, recompute="none", recompute_layers=4),
            "--recompute-layers is 4 with --recompute none, which computes no layer again in full; use",
        ),
        (Request(480, micro_batch=3), "does not divide the 2 sequences"),
        (Request(480.0), "give one whole number"),  # type: ignore[arg-type]
        (Request(480, strategies=["zero9"]), "did you mean"),
        (Request(480, strategies=["zero3-q4"]), r"did you mean 'zero3\+q4'"),
        (Request(480, strategies="zero3"), r"give a list, \['zero3'\]"),
        (Request(480, gradient_bits=8), "16 or 32"),
        (Request(480, recompute="some"), "none, selective, full"),  # type: ignore[arg-type]
        (Request(480, attention="fast"), "flash2"),  # type: ignore[arg-type]
        (Request(480, convention="9n"), "6n, causal, full"),
    ],
)
def test_bad_requests(request_: Request, words: str) -> None:
    with pytest.raises(InputError, match=words):
        compare(PLAMO, ABCI, request_)


def test_a_pipeline_keeps_the_tokens_and_interleaves_whole_rounds() -> None:
    """32 Ki tokens per GPU are 16 sequences of 4,096 per replica of two GPUs; 8, 4, 2 or 1 of them at a time."""
    request = Request(16, tokens_per_gpu=32768, pp=2, virtual_pp=2, schedule="interleaved", strategies=["zero1"])
    (row,) = compare(PLAMO, ABCI, request).rows
    assert (row.plan["pp"], row.plan["virtual_pp"], row.plan["schedule"]) == (2, 2, "interleaved")
    assert row.plan["micro_batch"] * row.plan["grad_accum"] == 16
    assert row.plan["grad_accum"] % 2 == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pp": 3}, "tp=1 x pp=3 does not divide --gpus 16"),
        ({"pp": 0}, "--pp is 0"),
        ({"pp": 2, "schedule": "dualpipe"}, "--schedule is 'dualpipe'"),
        ({"schedule": "zero-bubble"}, "schedule=zero-bubble with pp=1 has no pipeline to schedule"),
        ({"virtual_pp": 2, "schedule": "interleaved"}, "no pipeline to interleave"),
        ({"pp": 16, "virtual_pp": 3, "schedule": "interleaved"}, "multiple of pp=16|40 layers"),
    ],
)
def test_pipelines_that_cannot_be(fields: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        compare(PLAMO, ABCI, Request(16, tokens_per_gpu=8192, strategies=["zero1"], **fields))  # type: ignore[arg-type]


def test_the_multiple_that_a_complaint_names_will_do() -> None:
    with pytest.raises(InputError, match="set --tokens-per-gpu to a multiple of 4096"):
        compare(PLAMO, ABCI, Request(24, tokens_per_gpu=1000, pp=3, strategies=["zero1"]))
