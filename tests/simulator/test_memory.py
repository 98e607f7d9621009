"""Memory by hand, by category, and the order of strategies that the report's figure 4 shows."""

from dataclasses import replace

import pytest
from builders import cluster, plan, small_model

from flopcast.simulator.catalogue import load_cluster, load_model
from flopcast.simulator.constants import default_constants
from flopcast.simulator.forecast import forecast
from flopcast.simulator.in_flight import micro_batches_in_flight
from flopcast.simulator.plan import Plans

MODEL = small_model()
PARAMETERS = MODEL.num_parameters


def held(strategy: str, **fields: object) -> dict[str, float]:
    memory = forecast(MODEL, cluster(), plan(strategy, 16, **fields)).memory
    return {name: float(value[0]) for name, value in memory.parts.items()}


def test_nccl_holds_nothing_on_a_lone_gpu() -> None:
    constants = default_constants().with_values(context_bytes=1e9, nccl_bytes=3e9)
    for num_gpus, outside in ((1, 1e9), (8, 4e9)):
        memory = forecast(MODEL, cluster(), plan("ddp", num_gpus), constants=constants).memory
        assert memory.total[0] - memory.reserved[0] == pytest.approx(outside)


def test_no_more_layers_are_gathered_ahead_than_there_are() -> None:
    model = small_model(hidden=4096, num_heads=32, num_kv_heads=32, intermediate=11008)
    plans = [plan("zero3", 16, prefetch=n, recompute="full", seq_len=64) for n in (1, 3, 4, 10**6)]
    ahead = [float(forecast(model, cluster(), p).memory.parts["gathered"][0]) for p in plans]
    assert ahead[0] < ahead[1] == ahead[2] == ahead[3]


def test_states_of_every_strategy() -> None:
    """fp32 gradients and 12 bytes of optimizer state, each over its shard; nothing needs padding."""
    per = PARAMETERS
    expected = {
        "ddp": (4 * per, 12 * per),
        "zero1": (4 * per, 12 * per / 16),
        "zero2": (4 * per / 16, 12 * per / 16),
        "zero3": (4 * per / 16, 12 * per / 16),
        "zero3-node": (4 * per / 16, 12 * per / 16),
        "hsdp": (4 * per / 8, 12 * per / 8),
    }
    for strategy, states in expected.items():
        parts = held(strategy, grad_accum=2)
        assert (parts["gradients"], parts["optimizer"]) == pytest.approx(states), strategy


def test_working_copies_are_two_bytes_over_their_shard_less_what_is_in_use() -> None:
    """At the peak, the loss, nothing of a replicated copy is dropped yet, and the root of a node's copy is gathered."""
    root = MODEL.num_root_parameters
    assert held("zero2", recompute="full", seq_len=16384)["parameters"] == pytest.approx(2 * PARAMETERS)
    assert held("zero3-node", recompute="full", seq_len=16384)["parameters"] == pytest.approx(
        2 * (PARAMETERS - root) / 8
    )
    assert held("zero3", recompute="full", seq_len=16384)["parameters"] == 0


def test_a_lone_micro_batch_is_reduced_at_once() -> None:
    """FSDP2 holds no whole gradient where there is nothing to add to it, whatever the strategy's name."""
    assert held("zero1")["gradients"] == held("zero2")["gradients"]
    assert held("zero1", grad_accum=2)["gradients"] == pytest.approx(16 * held("zero2", grad_accum=2)["gradients"])


def test_activations_of_a_sequential_swiglu_layer() -> None:
    """Two residual inputs, two norm outputs, q k v and the attention output, gate, up and product: 16 bits each."""
    tokens, d, f = 2048, 1024, 2816
    layer = 2 * tokens * (2 * d + 2 * d + 3 * d + d + 2 * f + f) + 4 * tokens * 8  # and the softmax's log-sum in fp32
    assert held("zero3")["activations"] == pytest.approx(4 * layer)
    full = held("zero3", recompute="full")
    assert full["activations"] == pytest.approx(4 * 2 * tokens * d)
    # With a small vocabulary the peak is the backward of the layer before the last, computed again from its input:
    # three gradients as wide as the MLP, that of the residual stream, and that of the matrix down.
    small = forecast(small_model(vocab_size=512), cluster(), plan("zero3", 16, recompute="full")).memory
    assert small.parts["activations"][0] == pytest.approx(3 * 2 * tokens * d)
    backward = 2 * (3 * tokens * f + tokens * d + f * d)
    assert small.parts["workspace"][0] == pytest.approx(layer - 2 * tokens * d + backward)
    selective = held("zero3", recompute="selective")
    # Norm outputs are inputs of matrices and stay; the product of gate and up is one too, so only pointwise inputs go.
    assert full["activations"] < selective["activations"] <= 4 * layer


def test_logits_are_kept_in_16_bits_and_in_fp32_with_their_gradient() -> None:
    final_norm = 2 * 2 * 2048 * 1024
    assert held("zero3")["logits"] == pytest.approx((2 + 4) * 2048 * 32000 + final_norm)


def test_order_of_the_reports_figure_four() -> None:
    """With micro-batch and recomputation pinned alike zero3 < zero3-node < hsdp < ddp, and ddp does not fit 40 GB."""
    plamo, abci = load_model("plamo-13b"), load_cluster("abci-a")
    names = ("zero3", "zero3-node", "hsdp", "ddp")
    plans = [plan(name, 480, seq_len=4096, micro_batch=1, grad_accum=2, recompute="full") for name in names]
    cast = forecast(plamo, abci, plans)
    totals = list(cast.memory.total)
    assert totals == sorted(totals)
    assert len(set(totals)) == 4
    assert not cast.fits[3]
    assert totals[3] > 18 * 13.0e9


def test_the_quantised_shard_is_what_stays_in_the_node() -> None:
    whole, quantised = held("zero3-node"), held("zero3-node+q4")
    assert quantised["parameters"] / whole["parameters"] == pytest.approx(0.2581, abs=0.001)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"pp": 4, "grad_accum": 8}, 4),
        ({"pp": 4, "grad_accum": 2}, 2),
        ({"pp": 4, "grad_accum": 8, "schedule": "gpipe"}, 8),
        ({"pp": 4, "grad_accum": 8, "schedule": "interleaved", "virtual_pp": 2}, 4 * (1 + 3 / 8)),
        ({"pp": 1, "grad_accum": 8}, 1),
    ],
)
def test_micro_batches_in_flight(fields: dict[str, object], expected: float) -> None:
    assert micro_batches_in_flight(Plans.of([plan("zero1", 16, **fields)]))[0] == pytest.approx(expected)


def test_stages_of_a_pipeline_sum_no_two_gradients_of_a_tied_embedding() -> None:
    """Embedding and head are on different ranks."""
    untied = small_model(vocab_size=65536)
    given = plan("zero1", 16, pp=2, grad_accum=8)
    held = [
        forecast(replace(untied, tied_embeddings=tied), cluster(), given).memory.allocated[0] for tied in (False, True)
    ]
    assert held[0] == held[1]
