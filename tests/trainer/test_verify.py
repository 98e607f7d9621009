"""The forecast against PyTorch's engine on fake ranks: every byte of every strategy, and memory within 5 %."""

import dataclasses

import pytest
import torch
from builders import small_model

from flopcast.errors import InputError
from flopcast.simulator.blocks.transformer import Attention, Mlp, TransformerBlock
from flopcast.simulator.catalogue import load_model
from flopcast.simulator.model import Model
from flopcast.trainer import verify as module
from flopcast.trainer.engine import in_node
from flopcast.trainer.fake_cluster import Recorder
from flopcast.trainer.verification import MEMORY_TOLERANCE, Verification
from flopcast.trainer.verify import verify

# Nothing divides by 24 ranks: 1000 features, 2800 in the MLP, 5 tiled key/value heads, a vocabulary of 10007.
TILED = Model(
    "tiled",
    1000,
    10007,
    1024,
    (TransformerBlock(Attention(10, 5, 100, kv_layout="tiled"), Mlp(2800), parallel=True, num_norms=1),) * 6,
)
# Everything that tensor parallelism has to add up: norms of heads, two norms side by side, biases, windows.
NEOX = Model(
    "neox",
    1024,
    8000,
    1024,
    (
        TransformerBlock(
            Attention(8, 8, 128, qkv_bias=True, output_bias=True, qk_norm=True, fused_qkv=True, window=256),
            Mlp(4096, gated=False, bias=True),
            parallel=True,
            norm="layernorm",
            norm_bias=True,
        ),
    )
    * 6,
    norm="layernorm",
    norm_bias=True,
)
# From PyTorch 2.15 on autograd itself adds up gradients that are not reduced yet, and casts those of the first backward
# one by one: docs/verify.md says by how much the peak of small models moves.
added_up_by_autograd = pytest.mark.xfail(
    torch.torch_version.TorchVersion(torch.__version__) >= "2.15", reason="the forecast is of PyTorch 2.13", strict=True
)
STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "zero3-node", "hsdp", "zero3+q4", "zero3-node+q4", "hsdp+q4")


def assert_agrees(found: Verification) -> None:
    differing = [row for row in found.rows if row.engine_bytes != row.forecast_bytes]
    assert not differing, found.as_text()
    assert found.max_byte_error == 0
    assert abs(found.memory_error) <= MEMORY_TOLERANCE, found.as_text()
    assert found.agrees


@pytest.mark.parametrize(
    ("strategy", "micro_batches"),
    [*((name, 1) for name in STRATEGIES), *((name, 3) for name in (*STRATEGIES[:6], "zero3-node+q4"))],
)
def test_every_strategy_to_the_byte(strategy: str, micro_batches: int) -> None:
    assert_agrees(verify(TILED, 24, strategy, gpus_per_node=8, micro_batches=micro_batches))


@pytest.mark.parametrize(
    ("strategy", "micro_batches"),
    [
        *((name, 1) for name in STRATEGIES),
        pytest.param("ddp", 3, marks=added_up_by_autograd),
        pytest.param("zero1", 3, marks=added_up_by_autograd),
        ("zero2", 3),
        ("zero3", 3),
    ],
)
def test_a_tied_embeddings_gradients_are_summed_at_the_peak(strategy: str, micro_batches: int) -> None:
    tied = dataclasses.replace(small_model(vocab_size=65536), tied_embeddings=True)
    found = verify(tied, 16, strategy, seq_len=512, micro_batches=micro_batches)
    assert_agrees(found)
    if micro_batches > 1:
        assert abs(found.memory_error) < 0.03


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    ("strategy", "num_gpus", "micro_batches"),
    [
        ("ddp", 1, 1),
        pytest.param("ddp", 8, 2, marks=added_up_by_autograd),
        pytest.param("zero1", 8, 2, marks=added_up_by_autograd),
        pytest.param("zero1", 8, 3, marks=added_up_by_autograd),
        ("zero2", 8, 3),
        ("zero3-node", 16, 3),
    ],
)
def test_memory_where_parameters_outweigh_activations(
    strategy: str, num_gpus: int, micro_batches: int, tied: bool
) -> None:
    """Short sequences leave the peak to copies and gradients, whose moments follow each other closely."""
    model = dataclasses.replace(small_model(num_layers=3), tied_embeddings=tied)
    found = verify(model, num_gpus, strategy, seq_len=64, micro_batches=micro_batches)
    assert_agrees(found)
    assert abs(found.memory_error) < 0.02, found.as_text()


def test_one_tensor_parallel_group_is_the_whole_world() -> None:
    """Its norm's sum is over all ranks; and what DTensor tries in its first step is no tensor of the engine's."""
    assert_agrees(verify(load_model("llama-3.2-1b"), 8, "tp8", seq_len=1024))


@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["whole", "sequence-parallel"])
@pytest.mark.parametrize(
    ("model", "strategy", "tp"),
    [
        (TILED, "tp2", 1),
        (NEOX, "tp4", 1),
        (small_model(num_kv_heads=4), "tp4", 1),
        (TILED, "zero3", 2),
        (NEOX, "hsdp", 2),
    ],
    ids=["tiled-tp2", "neox-tp4", "grouped-tp4", "tiled-tp2-zero3", "neox-tp2-hsdp"],
)
def test_tensor_parallel_to_the_byte(model: Model, strategy: str, tp: int, sequence_parallel: bool) -> None:
    """Also with sequence parallelism and FSDP2 over the data-parallel ranks."""
    found = verify(model, 32, strategy, seq_len=1024, tp=tp, sequence_parallel=sequence_parallel)
    assert found.max_byte_error == 0, found.as_text()
    assert {row.group for row in found.rows} >= {"tp", "world"}


@pytest.mark.parametrize(
    ("model", "num_gpus", "strategy", "pp", "micro_batches", "sequence_parallel"),
    [
        (TILED, 24, "ddp", 3, 4, False),
        (NEOX, 32, "zero1", 4, 5, False),
        (TILED, 32, "tp2", 4, 4, False),
        (NEOX, 32, "tp4", 4, 4, True),
    ],
    ids=["ddp", "zero1-uneven", "tp", "sequence-parallel"],
)
def test_every_stage_of_a_pipeline_to_the_byte(
    model: Model, num_gpus: int, strategy: str, pp: int, micro_batches: int, sequence_parallel: bool
) -> None:
    """The first, the second and the last; six layers deal out evenly over four with embedding and head as one each."""
    found = verify(model, num_gpus, strategy, micro_batches=micro_batches, pp=pp, sequence_parallel=sequence_parallel)
    assert found.max_byte_error == 0, found.as_text()
    sends = [
        [(row.phase, row.count) for row in stage.rows if row.collective == "point_to_point"] for stage in found.stages
    ]
    forward, backward = ("forward", micro_batches), ("backward", micro_batches)
    assert sends == [[forward], [forward, backward], [backward]]


def test_memory_of_every_stage_of_a_pipeline() -> None:
    plamo = load_model("plamo-13b")
    shorter = dataclasses.replace(plamo, layers=plamo.layers[:9])
    found = verify(shorter, 64, "zero1", micro_batches=5, pp=4)
    assert_agrees(found)
    document = found.as_json()
    assert [stage["stage"] for stage in document["stages"]] == [0, 1, 3]
    assert {row["stage"] for row in document["rows"]} == {0, 1, 3}
    assert document["engine_memory_bytes"] == max(stage["engine_memory_bytes"] for stage in document["stages"])


@added_up_by_autograd
def test_memory_of_a_pipeline_of_short_sequences() -> None:
    plamo = load_model("plamo-13b")
    shallow = dataclasses.replace(plamo, layers=plamo.layers[:4])
    assert abs(verify(shallow, 16, "ddp", micro_batches=4, pp=2, seq_len=64).memory_error) < 0.02


@pytest.mark.parametrize("again", [1, 4, 5])
def test_some_layers_computed_again(again: int) -> None:
    """All but one, and up to five of six: what the others keep is held until their backward, and no byte moves more."""
    found = verify(TILED, 24, "zero3", recompute_layers=again)
    assert_agrees(found)
    assert abs(found.memory_error) < 0.02


def test_some_layers_of_every_stage_computed_again() -> None:
    assert_agrees(verify(small_model(num_layers=8), 16, "tp2", micro_batches=4, pp=2, recompute_layers=2))


@pytest.mark.parametrize("strategy", ["zero3-node", "tp8"])
def test_plamo_13b_on_480_ranks(strategy: str) -> None:
    found = verify(load_model("plamo-13b"), 480, strategy)
    assert_agrees(found)
    calls = {(row.collective, row.group, row.phase): row.count for row in found.rows}
    if strategy == "zero3-node":
        assert calls == {
            ("all_gather", "world", "forward"): 41,
            ("all_gather", "node", "backward"): 41,
            ("reduce_scatter", "world", "backward"): 41,
            ("all_reduce", "world", "step"): 1,
        }
    else:
        # One all-reduce per layer each way, one for embedding or head, and the two small ones of the loss.
        assert calls["all_reduce", "tp", "forward"] == 41 + 2
        assert calls["all_reduce", "tp", "backward"] == 41


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_one_gpu_exchanges_nothing(strategy: str) -> None:
    found = verify(TILED, 1, strategy, seq_len=512)
    assert found.rows == ()
    assert "Traffic agrees" in found.as_text()


@pytest.mark.parametrize(
    ("forecast", "words"), [(999_900, "(+0.0%, within"), (1_000_600, "(+0.1%, within"), (949_900, "(-5.0%, OUTSIDE")]
)
def test_an_error_of_memory_that_rounds_to_nothing_has_no_minus(forecast: int, words: str) -> None:
    honest = verify(TILED, 1, "zero3", seq_len=512)
    (stage,) = honest.stages
    stage = dataclasses.replace(stage, engine_memory_bytes=1_000_000)
    found = dataclasses.replace(honest, stages=(stage,), forecast_memory_bytes=forecast)
    assert words in found.as_text()


def test_accumulation_stays_in_the_node() -> None:
    """One micro-batch gathers over all ranks, every other pass over the node's: of 3 x 2 passes over 7 units, 7 do."""
    found = verify(TILED, 24, "zero3-node", gpus_per_node=8, micro_batches=3)
    calls = {(row.group, row.phase): row.count for row in found.rows if row.collective == "all_gather"}
    assert calls == {("world", "forward"): 7, ("node", "forward"): 14, ("node", "backward"): 21}


def test_the_nodes_copy_in_four_bits_saves_memory() -> None:
    """What the node keeps is a quarter of 16 bits: the 16-bit copy is not made beside it."""
    plain, quantised = (
        verify(TILED, 24, strategy, gpus_per_node=8).engine_memory_bytes for strategy in ("zero3-node", "zero3-node+q4")
    )
    kept = 2 * TILED.num_layers * TILED.num_layer_parameters / 8
    assert plain - quantised > 0.25 * kept


def test_a_forecast_that_is_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = module._forecast

    def wrong(*arguments: object) -> object:
        totals, held = honest(*arguments)  # type: ignore[arg-type]
        return {key: value - 2 for key, value in totals.items()}, held * 2

    monkeypatch.setattr(module, "_forecast", wrong)
    found = verify(small_model(num_layers=2), 8, "zero3")
    assert found.max_byte_error == 2
    assert not found.agrees
    assert "DIFFERS by up to 2 bytes" in found.as_text()
    assert "OUTSIDE 5%" in found.as_text()
    assert found.as_json()["agrees"] is False


def test_the_document_has_the_designs_keys() -> None:
    document = verify(small_model(num_layers=2), 8, "ddp").as_json()
    assert document.keys() >= {"rows", "max_byte_error", "engine_memory_bytes", "forecast_memory_bytes"}
    assert all(
        row.keys() == {"collective", "group", "phase", "count", "engine_bytes", "forecast_bytes"}
        for row in document["rows"]
    )


def test_memory_counts_storages_as_they_come_and_go() -> None:
    with Recorder() as recorder:
        kept = torch.zeros(1000)
        view = kept[:10]
        dropped = torch.ones(500)
        assert recorder.live_bytes == 6000
        del dropped
        kept.untyped_storage().resize_(0)
    assert (recorder.live_bytes, recorder.peak_bytes) == (0, 6000)
    assert view.shape == (10,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_gpus": 0, "strategy": "zero3"}, "--gpus is 0"),
        ({"num_gpus": 12, "strategy": "zero3"}, "does not fill nodes"),
        ({"num_gpus": 16, "strategy": "zero3-node", "tp": 2}, "cannot reshard tensor-parallel parameters"),
        ({"num_gpus": 16, "strategy": "zero4"}, "zero4"),
        ({"num_gpus": 16, "strategy": "tp16"}, "does not divide"),
        ({"num_gpus": 16, "strategy": "zero3", "micro_batches": 0}, "--micro-batches is 0"),
        ({"num_gpus": 16, "strategy": "zero1", "pp": 0}, "--pp is 0"),
        ({"num_gpus": 16, "strategy": "zero1", "pp": 4}, "needs at least pp=4 micro-batches"),
        ({"num_gpus": 16, "strategy": "zero3", "pp": 2, "micro_batches": 2}, "use ddp or zero1"),
    ],
    ids=[
        *("none", "part of a node", "tp in node", "unknown", "tp beyond node", "no micro-batch"),
        *("no stage", "pipeline not full", "sharded pipeline"),
    ],
)
def test_what_cannot_be_verified_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        verify(small_model(num_heads=16, num_kv_heads=16), **arguments)  # type: ignore[arg-type]


def test_another_pytorch_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

    monkeypatch.delattr(FSDPParamGroup, "_to_sharded_post_forward")
    with pytest.raises(InputError, match=r"install torch 2\.13") as caught:
        verify(small_model(num_layers=2), 16, "zero3-node")
    assert "\n" not in str(caught.value)
    assert in_node.NodeCopies


def test_alibi_is_refused() -> None:
    model = dataclasses.replace(small_model(), positions="alibi")
    with pytest.raises(InputError, match="ALiBi"):
        verify(model, 8, "zero3")
