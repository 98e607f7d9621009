"""The closed form against its own arithmetic, done by hand on the parts it is made of."""

from dataclasses import replace

import numpy as np
import pytest
from builders import A100, H100, cluster, plan, small_model

from flopcast.collectives import COLLECTIVES
from flopcast.collectives.group import Group
from flopcast.simulator.blocks.transformer import TransformerBlock
from flopcast.simulator.catalogue import load_model
from flopcast.simulator.constants import default_constants
from flopcast.simulator.cost import attention_seconds, gemm_seconds, work_seconds
from flopcast.simulator.forecast import forecast
from flopcast.simulator.hardware import Hardware
from flopcast.simulator.operation import AttentionCore, Collective, Gemm
from flopcast.simulator.plan import CHOICES
from flopcast.simulator.specification.gpu import Gpu

C = default_constants()


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def test_a_large_product_runs_at_the_share_of_peak_and_a_thin_one_at_memory_speed() -> None:
    hardware = Hardware.of([cluster(A100)])
    side = 1e7
    large = gemm_seconds(Gemm(array(side), array(side), array(side), np.array([False])), hardware, C)[0]
    assert large == pytest.approx(2 * side**3 / (312e12 * C.gemm_share_ampere), rel=1e-3)
    thin = gemm_seconds(Gemm(array(1.0), array(8192.0), array(8192.0), np.array([False])), hardware, C)[0]
    assert thin >= 2 * 8192 * 8192 / (2.039e12 * C.memory_share)


def test_what_a_card_sustains_is_measured_or_follows_from_its_power_limit() -> None:
    side = array(1e7)
    work = Gemm(side, side, side, np.array([False]))

    def share(**fields: float) -> float:
        return float(work.flop[0] / gemm_seconds(work, Hardware.of([cluster(replace(H100, **fields))]), C)[0] / 989e12)

    usual = share()
    assert share(power_w=350.0) == pytest.approx(usual * 0.5**C.power_exponent)
    assert share(power_w=1000.0) == usual
    for watts in (350.0, 1000.0):
        assert share(power_w=watts, sustained_share=1.1) == pytest.approx(1.1 * usual)
    assert share(power_w=350.0, matmul_flop_per_s=500e12) == pytest.approx(500 / 989, rel=1e-4)


def test_fp8_products_are_faster_only_where_the_gpu_has_them() -> None:
    work = [Gemm(array(8192), array(8192), array(8192), np.array([fp8])) for fp8 in (False, True)]
    on_h100 = [gemm_seconds(w, Hardware.of([cluster(H100)]), C)[0] for w in work]
    on_a100 = [gemm_seconds(w, Hardware.of([cluster(A100)]), C)[0] for w in work]
    assert on_h100[1] < on_h100[0]
    assert on_a100[1] == on_a100[0]


def test_an_operand_is_read_in_16_bits_and_written_twice_in_8_before_it_is_multiplied() -> None:
    """Not once more where another product has it, nor what the weights' gradient multiplies, nor without 8 bits."""
    m, n, k = array(4096), array(1024), array(2048)

    def seconds(gpu: Gpu = H100, fp8: bool = True, **fields: bool) -> float:
        return float(gemm_seconds(Gemm(m, n, k, np.array([fp8]), **fields), Hardware.of([cluster(gpu)]), C)[0])

    converted = 4 * 4096 * 2048 / (3.35e12 * C.memory_share)
    assert seconds() - seconds(shares_input=True) == pytest.approx(converted)
    assert seconds() - seconds(of_weights=True) == pytest.approx(converted)
    assert seconds(A100) == seconds(A100, shares_input=True)
    assert seconds(fp8=False) == seconds(fp8=False, shares_input=True)


def test_attention_rises_with_length_and_head_size() -> None:
    def rate(length: float, head_dim: float) -> float:
        kernel = np.array([CHOICES["attention"].index("flash2")])
        work = AttentionCore(array(1e12), kernel, array(head_dim), array(length), backward=False)
        return float(1e12 / attention_seconds(work, Hardware.of([cluster(A100)]), C)[0])

    assert rate(512, 128) < rate(4096, 128) < rate(32768, 128) < 312e12
    assert rate(4096, 64) <= rate(4096, 128) == rate(4096, 256)


def test_parts_add_up_and_recompute_is_not_counted_twice() -> None:
    step = forecast(small_model(), cluster(), plan("zero3", recompute="full")).step
    assert step.total[0] == pytest.approx(sum(float(part[0]) for part in step.parts.values()))
    computing = sum(float(step.parts[name][0]) for name in ("gemm", "attention", "pointwise"))
    assert 0 < step.of_passes("recompute")[0] < computing


def test_no_part_is_negative_where_the_host_is_never_waited_for() -> None:
    p = plan("zero2", 24, seq_len=131072, grad_accum=2, attention="unfused")
    parts = forecast(load_model("megatron-310b"), cluster(A100), p).step.parts
    assert min(float(part[0]) for part in parts.values()) >= 0.0


@pytest.mark.parametrize(
    ("schedule", "virtual", "share"), [("1f1b", 1, 1.0), ("gpipe", 1, 1.0), ("interleaved", 2, 0.5)]
)
def test_bubble_of_an_even_pipeline(schedule: str, virtual: int, share: float) -> None:
    """(p-1)/v stages' time for one micro-batch, beside m of them: no head, no communication that differs."""
    model = small_model(hidden=4096, num_heads=32, num_kv_heads=32, intermediate=11008, vocab_size=8, num_layers=32)
    p, m = 4, 16
    step = forecast(model, cluster(), plan("ddp", 4, pp=p, grad_accum=m, schedule=schedule, virtual_pp=virtual)).step
    names = ("gemm", "attention", "pointwise", "launch", "pipeline_communication")
    work = sum(float(step.parts[name][0]) for name in names)
    assert step.bubble[0] == pytest.approx(share * work / m * (p - 1), rel=0.03)


def test_micro_batches_repeat_the_work_but_not_what_happens_once() -> None:
    one, four = (forecast(small_model(), cluster(), plan("ddp", 16, grad_accum=m)).step for m in (1, 4))
    assert four.parts["gemm"][0] == pytest.approx(4 * one.parts["gemm"][0])
    assert four.optimizer[0] == pytest.approx(one.optimizer[0])
    assert four.reduce_communication[0] == pytest.approx(one.reduce_communication[0], rel=0.2)


def test_without_prefetch_communication_is_exposed_whole() -> None:
    long = {"micro_batch": 8, "seq_len": 8192}
    hidden, exposed = (forecast(small_model(), cluster(), plan("zero3", prefetch=p, **long)).step for p in (1, 0))
    assert exposed.gather_communication[0] > hidden.gather_communication[0] > 0


def test_the_host_bounds_tiny_models() -> None:
    tiny = small_model(hidden=64, num_heads=2, num_kv_heads=2, intermediate=128)
    eager = forecast(tiny, cluster(), plan("ddp", 8, seq_len=128)).step
    compiled = forecast(tiny, cluster(), plan("ddp", 8, seq_len=128, compiled=True)).step
    assert eager.parts["launch"][0] > 5 * (eager.parts["gemm"] + eager.parts["attention"] + eager.parts["pointwise"])[0]
    assert compiled.parts["launch"][0] < eager.parts["launch"][0]


def test_unfused_attention_over_misaligned_heads_runs_where_fp32_does() -> None:
    def seconds(head_dim: float, kernel: str) -> float:
        code = np.array([CHOICES["attention"].index(kernel)])
        work = AttentionCore(array(1e12), code, array(head_dim), array(2048), backward=False)
        return float(attention_seconds(work, Hardware.of([cluster(A100)]), C)[0])

    assert seconds(108, "unfused") == pytest.approx(seconds(104, "unfused") * 312 / 19.5, rel=0.01)
    assert seconds(108, "flash2") == pytest.approx(seconds(104, "flash2"), rel=0.01)


def test_a_window_changes_nothing_of_unfused_attention() -> None:
    """It computes every score whatever the mask hides; a flash kernel is the faster for it."""
    whole = small_model()
    block = whole.layers[0]
    assert isinstance(block, TransformerBlock)
    narrow = replace(whole, layers=(replace(block, attention=replace(block.attention, window=256)),) * 4)
    for kernel in ("unfused", "flash2"):
        p = plan("zero3", 16, attention=kernel)
        seconds = [forecast(model, cluster(), p).step.parts["attention"][0] for model in (whole, narrow)]
        assert (seconds[1] == seconds[0]) if kernel == "unfused" else (seconds[1] < seconds[0])


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "zero3-node", "hsdp"])
@pytest.mark.parametrize("kinds", [2, 4])
@pytest.mark.parametrize("bucket_bytes", [25 * 2**20, 10**11])
def test_layers_that_are_alike_but_in_name_take_the_time_of_one_kind(
    strategy: str, kinds: int, bucket_bytes: int
) -> None:
    """A window longer than the sequence makes a kind of layer and nothing else."""
    one = small_model(hidden=4096, num_heads=32, num_kv_heads=32, intermediate=11008)
    block = one.layers[0]
    assert isinstance(block, TransformerBlock)
    layers = tuple(
        replace(block, attention=replace(block.attention, window=10**5 + index % kinds)) for index in range(4)
    )
    p = plan(strategy, 64, recompute="full", bucket_bytes=bucket_bytes)
    alike, mixed = (forecast(m, cluster(), p).step.total[0] for m in (one, replace(one, layers=layers)))
    assert mixed == pytest.approx(alike, rel=5e-3)


def test_tensor_parallelism_in_chunks_exposes_one_of_them() -> None:
    settings = {"tp": 4, "sequence_parallel": True, "seq_len": 4096}
    waits, chunks = (
        forecast(small_model(), cluster(), plan("ddp", 8, overlap_tensor=o, **settings)).step for o in (False, True)
    )
    assert chunks.parts["tensor_communication"][0] == pytest.approx(waits.parts["tensor_communication"][0] / 4)


def test_an_update_that_is_not_hidden_is_exposed_whole() -> None:
    long = {"micro_batch": 8, "seq_len": 8192}
    beside, before = (
        forecast(small_model(), cluster(), plan("zero1", overlap_update=o, **long)).step for o in (True, False)
    )
    assert before.gather_communication[0] > 1.05 * beside.gather_communication[0]
    assert before.reduce_communication[0] == beside.reduce_communication[0]


def test_a_sliced_update_copies_every_tensor_of_every_rank_twice() -> None:
    model = small_model()
    whole, sliced = (forecast(model, cluster(), plan("zero1", 16, sliced_update=s)).step for s in (False, True))
    # A layer's qkv, output, gate and up in one, down, and two norms; embedding, norm and head.
    copies = 2 * 16 * (6 * model.num_layers + 3)
    assert sliced.optimizer[0] - whole.optimizer[0] == pytest.approx(copies * C.inner_launch_s)
    sharded = [forecast(model, cluster(), plan("zero3", 16, sliced_update=s)).step.total[0] for s in (False, True)]
    assert sharded[0] == sharded[1]


def test_collectives_take_longer_on_more_nodes_than_four() -> None:
    """Than the same collective alone, by the constant for every doubling up to 128: 1.077 on 8, 1.385 on 128."""
    for nodes, longer in ((1, 1.0), (2, 1.0), (4, 1.0), (8, 1.077), (128, 1.385), (512, 1.385)):
        group = Group(8 * nodes, 8)
        work = Collective("all_gather", array(1e9), group, "world", "gather")
        hardware = Hardware.of([cluster()])
        alone = COLLECTIVES["all_gather"].cost(array(1e9), group, hardware.fabric).time_s
        assert work_seconds(work, hardware, C) == pytest.approx(longer * alone)
