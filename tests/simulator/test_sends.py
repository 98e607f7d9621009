"""Sends between the stages of a pipeline, where several share a node: who crosses to another one, and what it takes."""

from typing import Any

import numpy as np
import pytest
from builders import A100, cluster, plan, small_model

from flopcast.simulator import placement
from flopcast.simulator.forecast import Forecast, forecast
from flopcast.simulator.operation import Collective
from flopcast.simulator.operations import step_operations
from flopcast.simulator.plan import Plans
from flopcast.simulator.timeline import play

MODEL = small_model(num_layers=16)
SENT = 4 * 2048 * 1024 * 2  # micro-batches of 4 sequences of 2048 tokens, hidden 1024, 16 bits


def found(num_gpus: int, pp: int, nic_bytes_per_s: float = 25e9, **fields: Any) -> Forecast:
    given = plan("ddp", num_gpus, pp=pp, micro_batch=4, **{"grad_accum": 16, **fields})
    return forecast(MODEL, cluster(A100, nic_bytes_per_s=nic_bytes_per_s), given)


@pytest.mark.parametrize(
    ("num_gpus", "pp", "in_node"),
    [
        (8, 1, 1),
        (8, 2, 2),
        (8, 8, 8),
        (16, 2, 1),
        (16, 4, 2),
        (16, 16, 8),
        (64, 4, 1),
        (24, 4, 1),
        (6, 3, 3),
        (48, 16, 1),
    ],
)
def test_whole_stages_to_a_node(num_gpus: int, pp: int, in_node: int) -> None:
    # Stages of 6 or of 3 GPUs lie astride nodes of 8: every send may leave the node.
    layout = (np.array(n) for n in (pp, 8, num_gpus))
    assert placement.stages_per_node(*layout) == in_node


def test_a_nodes_last_stage_sends_to_the_next_node_and_the_others_to_their_neighbour() -> None:
    # Stages of 4 GPUs, two to a node: each way 4 of a node's GPUs send to the next node and 4 within it.
    for pp, gpus, crossing, within in ((8, 32, 4, 4), (4, 32, 8, 0), (16, 32, 2, 6), (2, 8, 0, 4), (4, 8, 0, 6)):
        traffic = found(gpus, pp).traffic
        # Data-parallel gradients and the loss besides, within the node wherever a stage has fewer GPUs than a node.
        alone = found(gpus, pp, grad_accum=8).traffic
        assert (traffic.inter_node_bytes - alone.inter_node_bytes)[0] == pytest.approx(2 * 8 * crossing * SENT), pp
        assert (traffic.intra_node_bytes - alone.intra_node_bytes)[0] == pytest.approx(2 * 8 * within * SENT), pp


@pytest.mark.parametrize(("stage", "forward", "backward"), [(0, 1, 0), (1, 2, 1), (2, 1, 2), (5, 2, 1), (7, 0, 1)])
def test_each_stage_has_the_sends_of_its_own(stage: int, forward: int, backward: int) -> None:
    """Nodes that a send touches, 0 for none: stages 2 i and 2 i + 1 share a node."""
    plans = Plans.of([plan("ddp", 32, pp=8)])
    nodes = {"forward": 0, "backward": 0}
    for operation in step_operations(MODEL, plans, np.array([8]), stage):
        if operation.name.startswith("pipeline.send") and operation.count[0]:
            assert isinstance(operation.work, Collective)
            assert operation.count[0] == 1
            nodes[operation.phase] += int(operation.work.group.num_nodes[0])
    assert nodes == {"forward": forward, "backward": backward}


def test_a_slow_network_holds_back_stages_that_share_nodes() -> None:
    steps = [float(found(32, 8, nic).step.total[0]) for nic in (25e9, 5e9, 2.5e9)]
    more = np.diff(steps) / (SENT / np.array([5e9, 2.5e9]) - SENT / np.array([25e9, 5e9]))
    # Each of 16 micro-batches waits for one send to another node, there or back, longer by what the network's share is.
    assert np.all(more > 16)
    # All within one node: the network is idle.
    assert found(8, 8, 25e9).step.total[0] == found(8, 8, 1e9).step.total[0]


@pytest.mark.parametrize(
    ("num_gpus", "pp", "fields"),
    [
        (32, 8, {}), (32, 16, {}), (16, 8, {}), (24, 6, {}), (32, 8, {"schedule": "gpipe"}),
        (32, 8, {"schedule": "zero-bubble"}), (16, 8, {"schedule": "interleaved", "virtual_pp": 2}), (16, 16, {}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("nic_bytes_per_s", [25e9, 6e9])
def test_the_timeline_agrees(num_gpus: int, pp: int, fields: dict[str, Any], nic_bytes_per_s: float) -> None:
    given = plan("ddp", num_gpus, pp=pp, micro_batch=4, **{"grad_accum": 16, **fields})
    timeline = play(MODEL, cluster(A100, nic_bytes_per_s=nic_bytes_per_s), given)
    assert timeline.step_s == pytest.approx(timeline.closed_form_s, rel=0.05)


@pytest.mark.parametrize("nic_bytes_per_s", [25e9, 5e9])
def test_the_first_and_the_last_stage_send_to_a_neighbour_in_their_node(nic_bytes_per_s: float) -> None:
    """A head that sets the pace waits for no network."""
    given = plan("tp2", 32, pp=8, micro_batch=4, grad_accum=16)
    timeline = play(MODEL, cluster(A100, nic_bytes_per_s=nic_bytes_per_s), given)
    assert timeline.step_s == pytest.approx(timeline.closed_form_s, rel=0.01)


@pytest.mark.parametrize("nic_bytes_per_s", [25e9, 10e9, 3e9, 1e9])
@pytest.mark.parametrize(
    ("num_gpus", "pp", "chunks", "micro_batch", "micro_batches"),
    [(32, 4, 2, 4, 4), (32, 4, 2, 4, 8), (32, 4, 4, 4, 32), (32, 4, 2, 1, 64), (64, 8, 2, 4, 16), (16, 2, 4, 4, 32)],
)
def test_chunks_hide_sends_no_longer_than_what_is_under_way(
    num_gpus: int, pp: int, chunks: int, micro_batch: int, micro_batches: int, nic_bytes_per_s: float
) -> None:
    """From sends of a tenth of a pass to more than a pass, which nothing hides."""
    fields = {"schedule": "interleaved", "virtual_pp": chunks, "grad_accum": micro_batches, "micro_batch": micro_batch}
    timeline = play(MODEL, cluster(A100, nic_bytes_per_s=nic_bytes_per_s), plan("ddp", num_gpus, pp=pp, **fields))
    assert timeline.step_s == pytest.approx(timeline.closed_form_s, rel=0.09)
