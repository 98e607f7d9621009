"""What context-parallel ranks exchange and hold: by hand, and as PyTorch's own ring does it on fake ranks."""

from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from builders import H100, cluster, plan, small_model
from torch.distributed.tensor.experimental._context_parallel import _attention
from torch.utils._python_dispatch import TorchDispatchMode

from flopcast.simulator.forecast import forecast
from flopcast.simulator.model import Model
from flopcast.simulator.operation import Collective
from flopcast.simulator.timeline import play
from flopcast.trainer.fake_cluster import fake_cluster

MODEL = small_model(num_kv_heads=2)  # 4 layers, hidden 1024, 8 query heads of 128, two of keys and values
CP, LENGTH, HEADS, KV_HEADS, HEAD_DIM = 4, 8192, 8, 2, 128
PART = 2 * (LENGTH // CP) * KV_HEADS * HEAD_DIM * 2  # one rank's keys and values in 16 bits


def context(engine: str) -> dict[str, list[float]]:
    """Bytes of the full tensors, by direction, for one layer."""
    found: dict[str, list[float]] = {"forward": [], "backward": []}
    for o in forecast(MODEL, cluster(H100), plan("zero3", cp=CP, seq_len=LENGTH, engine=engine)).operations:
        if isinstance(o.work, Collective) and o.work.purpose == "context":
            found[o.phase].append(float(o.work.tensor_bytes[0]))
    return found


def test_what_each_engine_exchanges() -> None:
    # PyTorch: a gather each way, then fp32 gradients over one hop more than the three of a reduce-scatter.
    assert context("fsdp2") == {"forward": [CP * PART], "backward": [CP * PART, pytest.approx(CP * PART * 2 * 4 / 3)]}
    # Every query head has keys and values of its own by then.
    repeated = [HEADS / KV_HEADS * size for size in context("fsdp2")["backward"]]
    assert context("torchtitan")["backward"] == pytest.approx(repeated)
    assert context("megatron") == {"forward": [CP * PART], "backward": [CP * PART, CP * PART]}


class Sent(TorchDispatchMode):
    """Bytes that this rank sends, by collective."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("_c10d_functional::").split(".")[0]
        if name == "all_gather_into_tensor":
            self.bytes[name] += args[0].nbytes * (args[1] - 1)
        elif name == "all_to_all_single":
            self.bytes[name] += sum(args[2]) * args[0].element_size()
        return func(*args, **(kwargs or {}))


def test_pytorchs_ring_sends_as_much() -> None:
    q, k, v = (torch.zeros(1, heads, LENGTH // CP, HEAD_DIM, dtype=torch.bfloat16) for heads in (2, 2, 2))

    def scores(query: torch.Tensor, *_: torch.Tensor, **__: Any) -> tuple[torch.Tensor, ...]:
        return torch.zeros_like(query), torch.zeros(query.shape[:-1])

    def gradients(query: Any, key: Any, value: Any, **_: Any) -> tuple[torch.Tensor, ...]:
        return torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)

    with fake_cluster(CP, rank=1):
        group = dist.group.WORLD
        assert group is not None
        with Sent() as forward:
            out, log_sum, *_ = _attention._templated_ring_attention(group, 2, scores, q, k, v, is_causal=True)
        with Sent() as backward:
            _attention._templated_ring_attention_backward(
                group, 2, gradients, out, "grad_out", q, k, v, out, log_sum, is_causal=True
            )
    ours = context("fsdp2")
    share = (CP - 1) / CP
    assert forward.bytes == {"all_gather_into_tensor": share * ours["forward"][0]}
    gather, summed = ours["backward"]
    assert backward.bytes["all_gather_into_tensor"] == share * gather
    assert backward.bytes["all_to_all_single"] == pytest.approx(share * summed)


def test_a_ring_that_hides_its_hops_leaves_one_exposed() -> None:
    # A network so slow that nothing else matters, between ranks of eight nodes.
    slow = cluster(H100, gpus_per_node=1, nics_per_node=1, nic_bytes_per_s=1e6)
    whole, hidden = (
        float(
            forecast(MODEL, slow, plan("ddp", 8, 1, cp=8, seq_len=LENGTH, engine=engine)).step.parts[
                "tensor_communication"
            ][0]
        )
        for engine in ("fsdp2", "megatron")
    )
    # Two gathers and fp32 gradients over eight hops of seven, against an eighth of two gathers and one reduce-scatter.
    assert whole / hidden == pytest.approx((2 + 2 * 8 / 7) / (3 / 8), rel=0.02)


def test_keys_and_values_of_all_ranks_are_held_in_backward() -> None:
    model = small_model(num_kv_heads=2, vocab_size=512)  # so that the loss is not the peak

    def workspace(cp: int, engine: str = "fsdp2") -> float:
        given = plan("zero3", cp=cp, seq_len=LENGTH // CP * cp, recompute="full", attention="flash2", engine=engine)
        return float(forecast(model, cluster(H100), given).memory.parts["workspace"][0])

    # The same tokens per rank: all ranks' parts, one part in fp32 on its way and one added to.
    assert workspace(4) - workspace(1) == pytest.approx((4 + 4) * PART)
    assert workspace(8) - workspace(4) == pytest.approx(4 * PART)
    assert workspace(8, "megatron") - workspace(1, "megatron") == pytest.approx(4 * PART)


def test_the_timeline_agrees() -> None:
    for engine in ("fsdp2", "torchtitan", "megatron"):
        given = plan("zero3", cp=CP, seq_len=LENGTH, engine=engine, grad_accum=2, recompute="full")
        timeline = play(MODEL, cluster(H100), given)
        assert timeline.step_s == pytest.approx(timeline.closed_form_s, rel=0.03)


def test_heads_that_share_keys_and_values_are_copied_where_attention_cannot_share() -> None:
    def copied(engine: str, model: Model = MODEL) -> list[float]:
        ops = forecast(model, cluster(H100), plan("zero3", seq_len=LENGTH, engine=engine)).operations
        return [float((o.count * o.work.bytes)[0]) for o in ops if o.name.endswith(".copies")]  # type: ignore[union-attr]

    # Two heads each of keys and values read, eight written, in 16 bits; backward the reverse.
    once = 4 * LENGTH * 2 * (KV_HEADS + HEADS) * HEAD_DIM * 2
    assert copied("torchtitan") == [once, once]
    assert sum(copied("fsdp2")) == sum(copied("torchtitan", small_model())) == 0
