"""Where a token's experts lie and what is sent there: against drawn routings and by hand."""

from typing import Any

import numpy as np
import pytest
from builders import H100, cluster, plan
from numpy.typing import NDArray

from flopcast.errors import InputError
from flopcast.simulator.blocks.experts import Experts
from flopcast.simulator.blocks.residual import MixedBlock
from flopcast.simulator.blocks.transformer import Attention
from flopcast.simulator.catalogue import load_model
from flopcast.simulator.forecast import forecast
from flopcast.simulator.model import Model
from flopcast.simulator.operation import Collective
from flopcast.simulator.plan import Plan, placement
from flopcast.simulator.specification.cluster import parse_cluster

T, D = 2048, 1024


def drawn(experts: Experts, num_tokens: int = 20_000) -> NDArray[np.int64]:
    """Experts of tokens: the groups are drawn, then experts of theirs."""
    random = np.random.default_rng(0)
    groups = random.random((num_tokens, experts.num_groups)).argsort(axis=1)[:, : experts.groups_per_token]
    scores = random.random((num_tokens, experts.num_experts)).reshape(num_tokens, experts.num_groups, -1)
    open_ = np.zeros((num_tokens, experts.num_groups), dtype=bool)
    np.put_along_axis(open_, groups, True, axis=1)
    return (
        np.where(open_[:, :, None], scores, -1.0)
        .reshape(num_tokens, -1)
        .argsort(axis=1)[:, -experts.experts_per_token :]
    )


MIXTURES = [
    Experts(256, 8, 2048, num_groups=8, groups_per_token=4),
    Experts(160, 6, 1536, num_groups=8, groups_per_token=3),
    Experts(128, 8, 768),
    Experts(8, 2, 14336),
]


@pytest.mark.parametrize(
    ("experts", "places"), [(e, places) for e in MIXTURES for places in (1, 2, 4, 8, 32) if e.num_experts % places == 0]
)
def test_places_that_a_tokens_experts_lie_on(experts: Experts, places: int) -> None:
    on = drawn(experts) * places // experts.num_experts
    found = np.mean([len(set(row)) for row in on])
    assert experts.expected_places(places) == pytest.approx(found, rel=0.01)


def sent(model: Model, **fields: Any) -> dict[tuple[str, str], float]:
    """Bytes of one rank's exchanges by name and phase."""
    found = forecast(model, cluster(H100), plan("zero1", 16, seq_len=T, **fields))
    return {
        (o.name.partition(".")[2], o.phase): float(o.work.tensor_bytes.flat[0])
        for o in found.operations
        if isinstance(o.work, Collective) and o.work.purpose == "expert" and o.name.endswith(("dispatch", "combine"))
    }


MIXTURE = Model("m", D, 512, 4096, (MixedBlock(Attention(8, 8, 128), Experts(16, 4, 512)),) * 2)


def test_a_copy_for_each_expert_or_each_node() -> None:
    assert set(sent(MIXTURE, ep=16).values()) == {T * 4 * D * 2}
    # 4 of 16 experts on two nodes of 8: all on one of them in 2 * C(8, 4) / C(16, 4) of the cases.
    nodes = 2 * (1 - 70 / 1820)
    assert [*sent(MIXTURE, ep=16, dispatcher="deepep").values()] == pytest.approx([T * nodes * D * 2] * 4)
    # In one node, a copy for each of 8 ranks with 2 experts that has any: C(14, 4) / C(16, 4) have none.
    ranks = 8 * (1 - 1001 / 1820)
    assert [*sent(MIXTURE, ep=8, dispatcher="deepep").values()] == pytest.approx([T * ranks * D * 2] * 4)


def test_eight_bits_go_to_experts_and_sixteen_come_back() -> None:
    found = sent(MIXTURE, ep=16, precision="fp8", dispatch_bits=8)
    narrow, wide = T * 4 * D * (1 + 4 / 128), T * 4 * D * 2
    assert found == {
        ("dispatch", "forward"): pytest.approx(narrow),
        ("combine", "forward"): wide,
        ("combine", "backward"): pytest.approx(narrow),
        ("dispatch", "backward"): wide,
    }


def test_deepseek_v3_sends_each_token_to_at_most_four_nodes() -> None:
    """arXiv:2412.19437, section 3.2.2: 8 experts of 256 on 64 ranks in 8 nodes."""
    experts = load_model("deepseek-v3").layers[-1].parts()[1]  # type: ignore[attr-defined]
    assert 3.5 < experts.expected_places(8) < 4
    assert load_model("deepseek-v2").layers[-1].parts()[1].expected_places(8) < 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dispatcher": "deepep"}, "dispatcher=deepep, dispatch_bits=16 with ep=1 send nothing"),
        ({"ep": 8, "dispatch_bits": 8}, "dispatch_bits=8 with precision=bf16"),
        ({"ep": 8, "dispatch_bits": 4}, "dispatch_bits=4; choose 16, or 8"),
        ({"ep": 8, "dispatcher": "nccl"}, "choose one of alltoall, deepep"),
    ],
)
def test_plans_that_send_nothing_so(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan("zero1", 16, **fields)


@pytest.mark.parametrize(("groups", "chosen"), [(3, 1), (8, 9), (8, 0), (16, 2)])
def test_groups_that_cannot_be(groups: int, chosen: int) -> None:
    with pytest.raises(InputError, match="groups_per_token"):
        Experts(16, 4, 512, num_groups=groups, groups_per_token=chosen)


H800 = """
name = "H800"
[gpu]
name = "h800"
architecture = "hopper"
tensor = "989.4 TFLOP/s"
fp8 = "1978.9 TFLOP/s"
memory = "80 GiB"
memory_bandwidth = "3.35 TB/s"
power = "700 W"
[node]
num_gpus = 8
nvlink = "200 GB/s"
nvswitch = true
[network]
nics_per_node = 8
nic = "400 Gbit/s"
fabric = "infiniband"
"""


def test_deepseek_v3s_published_step() -> None:
    """arXiv:2412.19437: 14.8 T tokens in 2.664 M H800-hours at 15,360 sequences of 4,096 a step; 16 stages, 64 ranks.

    Of these 14,336, so that the passes are a multiple of the stages.
    """
    model, where = load_model("deepseek-v3"), parse_cluster(H800, "h800.toml")
    layout = placement("zero1", 2048, 8, pp=16)
    fields = {"seq_len": 4096, "grad_accum": 112, "ep": 64, "virtual_pp": 2, "schedule": "interleaved"}
    fields |= {"precision": "fp8", "recompute": "selective", "attention": "cudnn"}
    how = {"dispatcher": "deepep", "dispatch_bits": 8, "overlap_expert": True}
    plans = [Plan(**layout, **fields, **more) for more in ({}, how)]  # type: ignore[arg-type]
    sequences = plans[0].global_batch_sequences
    published_s = sequences * 4096 / (14.8e12 / (2.664e6 * 3600)) / 2048
    step_s = forecast(model, where, plans).step_s
    assert step_s[1] == pytest.approx(published_s, rel=0.1)
    assert step_s[0] > 1.5 * published_s
