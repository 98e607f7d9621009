"""Traffic by hand: the table of strategies, padding, tiers, and the report's two rows."""

import math

import numpy as np
import pytest
from builders import cluster, plan, small_model
from hypothesis import given
from hypothesis import strategies as st

from flopcast.kernels.nf4.cost import payload_bytes
from flopcast.simulator.blocks.transformer import Attention, Mlp, TransformerBlock
from flopcast.simulator.catalogue import load_cluster, load_model
from flopcast.simulator.forecast import forecast
from flopcast.simulator.hardware import Hardware
from flopcast.simulator.model import Model
from flopcast.simulator.step import step_time
from flopcast.simulator.traffic import collective_totals, layer_traffic

PLAMO = load_model("plamo-13b")
ABCI = load_cluster("abci-a")


def totals(strategy: str, num_gpus: int = 480, **fields: object) -> dict[tuple[str, str, str], tuple[int, int]]:
    p = plan(strategy, num_gpus, **{"seq_len": 4096, "recompute": "full", **fields})
    cast = forecast(PLAMO, ABCI, p)
    rows = collective_totals(cast.operations, cast.plans)
    return {
        (t.collective, t.group, t.phase): (t.count, t.tensor_bytes)
        for t in rows
        if (t.collective, t.group, t.phase) != ("all_reduce", "world", "step")  # the gradient norm's 4 bytes
    }


def padded(ranks: int) -> int:
    """Elements of PLaMo-13B with every tensor's dim 0 split evenly over the ranks, from the shapes in the report."""
    d, f, kv, vocab = 5120, 16640, 640, 50432

    def pad(rows: int, rest: int = 1) -> int:
        return math.ceil(rows / ranks) * ranks * rest

    layer = pad(d) + 2 * pad(d, d) + 2 * pad(kv, d) + 2 * pad(f, d) + pad(d, f)
    return 40 * layer + 2 * pad(vocab, d) + pad(d)


def test_padding_is_5120_to_5280_on_480_ranks() -> None:
    assert padded(1) == 13_099_545_600
    assert padded(480) > 13_099_545_600
    assert math.ceil(5120 / 480) * 480 == 11 * 480 == 5280


@pytest.mark.parametrize("passes", [1, 3])
def test_zero3_gathers_twice_and_scatters_once_per_micro_batch(passes: int) -> None:
    assert totals("zero3", grad_accum=passes) == {
        ("all_gather", "world", "forward"): (41 * passes, 2 * padded(480) * passes),
        ("all_gather", "world", "backward"): (41 * passes, 2 * padded(480) * passes),
        ("reduce_scatter", "world", "backward"): (41 * passes, 4 * padded(480) * passes),
    }


def test_zero3_node_gathers_over_all_once_a_step_and_in_the_node_afterwards() -> None:
    assert totals("zero3-node", grad_accum=3, gradient_bits=16) == {
        ("all_gather", "world", "forward"): (41, 2 * padded(480)),
        # The node's copy keeps the padding of the gather over all ranks.
        ("all_gather", "node", "forward"): (82, 2 * 2 * padded(480)),
        ("all_gather", "node", "backward"): (123, 3 * 2 * padded(480)),
        ("reduce_scatter", "world", "backward"): (123, 3 * 2 * padded(480)),
    }


def test_hsdp_stays_in_the_node_but_for_one_all_reduce_of_its_shard() -> None:
    assert totals("hsdp", grad_accum=2) == {
        ("all_gather", "node", "forward"): (82, 2 * 2 * padded(8)),
        ("all_gather", "node", "backward"): (82, 2 * 2 * padded(8)),
        ("reduce_scatter", "node", "backward"): (82, 2 * 4 * padded(8)),
        ("all_reduce", "across-nodes", "backward"): (41, 4 * padded(8) // 8),
    }


def test_replicated_parameters() -> None:
    assert totals("zero2", grad_accum=2)["reduce_scatter", "world", "backward"][1] == 2 * 4 * padded(480)
    assert totals("zero2", grad_accum=2)["all_gather", "world", "forward"] == (41, 2 * padded(480))
    assert totals("zero1", grad_accum=2)["reduce_scatter", "world", "backward"][1] == 4 * padded(480)
    assert totals("ddp", grad_accum=2)["all_reduce", "world", "backward"][1] == pytest.approx(4 * padded(1), rel=1e-9)


def test_quantised_gather_sends_payloads_of_matrices_and_raw_vectors() -> None:
    def gathered(ranks: int) -> int:
        matrices = [(5120, 5120)] * 2 + [(640, 5120)] * 2 + [(16640, 5120)] * 2 + [(5120, 16640)]
        layer = sum(int(payload_bytes(math.ceil(rows / ranks) * rest)) for rows, rest in matrices)
        vector = math.ceil(2 * math.ceil(5120 / ranks) / 16) * 16
        tables = 2 * int(payload_bytes(math.ceil(50432 / ranks) * 5120))
        return ranks * (40 * (layer + vector) + tables + vector)

    found = totals("zero3+q4")["all_gather", "world", "forward"]
    assert found == (41, gathered(480))
    assert found[1] / (2 * padded(480)) < 0.2600


def test_tensor_parallel_share_of_matrices_with_tiled_key_value_heads() -> None:
    """Each of 8 ranks holds all five key/value heads (PLaMo tiles), an eighth of the rest, and the norms whole."""
    layer = 2 * 5120 * 640 + 2 * 640 * 5120 + 3 * 5120 * 2080 + 5120
    root = 2 * (50432 // 8) * 5120 + 5120
    found = totals("tp8", gradient_bits=16)
    world = 480 // 8

    def pad(rows: int, rest: int = 1) -> int:
        return math.ceil(rows / world) * world * rest

    shapes = [(640, 5120), (640, 5120), (640, 5120), (5120, 640), (2080, 5120), (2080, 5120), (5120, 2080)]
    assert sum(r * c for r, c in shapes) + 5120 == layer
    local = 40 * (sum(pad(r, c) for r, c in shapes) + pad(5120)) + 2 * pad(6304, 5120) + pad(5120)
    assert local >= 40 * layer + root
    assert found["reduce_scatter", "world", "backward"][1] == 2 * local
    assert found["all_gather", "world", "forward"][1] == 2 * local


@pytest.mark.parametrize(("norms", "sums"), [({}, 1), ({"post_norm": True}, 2), ({"num_norms": 4}, 2)])
def test_a_sum_that_a_norm_reads_is_computed_again(norms: dict[str, int | bool], sums: int) -> None:
    """The last of a layer's two sums ends it, and nothing of backward needs it, unless a norm is behind it (OLMo 2)."""
    block = TransformerBlock(Attention(4, 4, 64), Mlp(512), **norms)  # type: ignore[arg-type]
    model = Model("m", 256, 1000, 1024, (block,) * 3)
    found = forecast(model, cluster(), plan("tp2", 2, tp=2, seq_len=1024, recompute="full"))
    again = [o for o in found.operations if o.phase == "recompute" and "tensor_parallel" in o.name and o.count[0]]
    assert sum(o.count[0] for o in again) == 3 * sums


def test_the_reports_layer_table() -> None:
    tensor = layer_traffic(PLAMO, "tp8", 8, 8192)
    node = layer_traffic(PLAMO, "zero3-node", 1, 8192)
    assert (tensor.collective, tensor.elements, tensor.moved_bytes) == (
        "all_reduce",
        335_544_320,
        1280 * 2**20,
    )
    assert (node.collective, node.elements) == ("all_gather", 314_577_920)
    assert round(node.moved_bytes / 2**20) == 600


def test_between_nodes_as_the_table_of_strategies_says() -> None:
    """With one micro-batch and 16-bit gradients zero3-node moves what ddp moves, up to padding; zero3 half more."""
    sent = {
        s: float(
            forecast(
                PLAMO, ABCI, plan(s, 480, seq_len=4096, gradient_bits=16, recompute="full")
            ).traffic.inter_node_bytes[0]
        )
        for s in ("ddp", "zero1", "zero3", "zero3-node", "hsdp")
    }
    ring = 2 * 13_099_545_600 * 479 / 480
    assert sent["ddp"] == pytest.approx(2 * ring, rel=1e-9)
    padding = padded(480) / padded(1)
    assert sent["zero3-node"] == pytest.approx(2 * ring * padding, rel=1e-6)
    assert sent["zero3"] == pytest.approx(3 * ring * padding, rel=1e-6)
    # The all-reduce of the node's shard: eight groups of 60 ranks, each moving twice P/8.
    assert sent["hsdp"] == pytest.approx(2 * 2 * 13_099_545_600 * 59 / 60, rel=1e-6)


STRATEGIES = st.sampled_from(
    ["ddp", "zero1", "zero2", "zero3", "zero3-node", "hsdp", "tp2", "tp8", "zero3+q4", "hsdp+q4"]
)


@given(STRATEGIES, st.sampled_from([8, 16, 64, 256]), st.sampled_from([1, 4]), st.sampled_from([16, 32]))
def test_bytes_are_conserved_across_tiers(strategy: str, num_gpus: int, accum: int, bits: int) -> None:
    """What a node sends inside and outside adds up to (n-1)/n of every call's tensor, twice for an all-reduce."""
    cast = forecast(small_model(), cluster(), plan(strategy, num_gpus, grad_accum=accum, gradient_bits=bits))
    expected = 0.0
    in_node = min(8, num_gpus)
    for op in cast.operations:
        work = op.work
        if hasattr(work, "collective"):
            n = int(np.atleast_1d(work.group.size)[0])
            factor = 2 if work.collective == "all_reduce" else 1
            expected += float(op.times(np.array([accum]))[0] * work.tensor_bytes[0]) * factor * (n - 1) / n * in_node
    assert cast.traffic.inter_node_bytes[0] + cast.traffic.intra_node_bytes[0] == pytest.approx(expected)


@given(STRATEGIES, st.sampled_from([16, 64]))
def test_more_bits_are_never_less_traffic(strategy: str, num_gpus: int) -> None:
    both = forecast(
        small_model(), cluster(), [plan(strategy, num_gpus, gradient_bits=bits) for bits in (16, 32)]
    ).traffic
    assert both.inter_node_bytes[1] >= both.inter_node_bytes[0]
    assert both.intra_node_bytes[1] >= both.intra_node_bytes[0]


def test_megatron_gathers_a_split_input_once_more_in_backward() -> None:
    """Per layer and micro-batch 4 gathers, 4 reduce-scatters of (T, D) and 2 more gathers (arXiv:2205.05198, 4.2.2).

    The head's input is one more. It takes no time: with and without, the step is as long.
    """
    model, fields = small_model(), {"tp": 2, "sequence_parallel": True, "grad_accum": 3}
    moved, tensor = {}, 2048 * 1024 * 2
    for engine in ("fsdp2", "megatron"):
        found = forecast(model, cluster(), plan("tp2", 16, engine=engine, **fields))
        moved[engine] = {
            (total.collective, total.phase): total.tensor_bytes / tensor / 3
            for total in collective_totals(found.operations, found.plans)
            if total.group == "tp"
        }
    usual, again = moved["fsdp2"], moved["megatron"]
    assert usual["all_gather", "backward"] == 4 * 2 + 1  # and the embedding's
    assert again["all_gather", "backward"] - usual["all_gather", "backward"] == 4 * 2 + 1
    assert again["all_gather", "forward"] == usual["all_gather", "forward"]
    assert again["reduce_scatter", "backward"] == usual["reduce_scatter", "backward"]
    without = [o for o in found.operations if not o.name.endswith("regather")]
    assert len(without) < len(found.operations)
    num_layers, hardware = np.array([4]), Hardware.of([cluster()])
    assert step_time(without, found.plans, num_layers, hardware, found.constants).total == found.step.total
