"""What engines keep, by hand: logits, buffers, eager intermediates, and what selective recompute leaves."""

from typing import Any

import numpy as np
import pytest
import torch
from builders import H100, cluster, plan, small_model
from torch.utils._python_dispatch import TorchDispatchMode

from flopcast.simulator.constants import default_constants
from flopcast.simulator.cost import work_seconds
from flopcast.simulator.engines import ENGINES
from flopcast.simulator.forecast import forecast
from flopcast.simulator.hardware import Hardware
from flopcast.simulator.operation import HostUpdate, Pointwise

MODEL = small_model()  # 4 layers, hidden 1024, 8 heads of 128, intermediate 2816, vocabulary 32000
TOKENS, D, F, V = 2048, 1024, 2816, 32000
NORM_OF_HEAD = 2 * 2 * TOKENS * D  # its input and its result


def held(engine: str, strategy: str = "zero1", **fields: Any) -> dict[str, float]:
    memory = forecast(MODEL, cluster(), plan(strategy, 16, engine=engine, **fields)).memory
    return {name: float(value[0]) for name, value in memory.parts.items()}


def layer(norms: float = 2, normed: float = 2, silu: int = 0) -> float:
    """Bytes of a SwiGLU layer without recompute: norm inputs, norm results, q k v and attention's result, the MLP's."""
    return 2 * TOKENS * (norms * D + normed * D + 3 * D + D + (3 + silu) * F) + 4 * TOKENS * 8


@pytest.mark.parametrize("engine", ENGINES)
def test_logits_by_engine(engine: str) -> None:
    per_logit = ENGINES[engine].logit_bytes  # type: ignore[index]
    # Without logits the loss is not the peak.
    expected = per_logit * TOKENS * V + NORM_OF_HEAD if per_logit else 0.0
    assert held(engine, strategy="ddp")["logits"] == pytest.approx(expected)


@pytest.mark.parametrize(("engine", "per_logit"), [("torchtitan", 14), ("torchtitan-2025", 4), ("fsdp2", 2)])
def test_logits_of_a_compiled_loss(engine: str, per_logit: int) -> None:
    """The trainer's gradient takes the 16-bit logits' place; torchtitan's stands beside them since April 2025."""
    model = small_model(vocab_size=16 * V)
    parts = forecast(model, cluster(), plan("zero3", 16, engine=engine, compiled=True)).memory.moments[0]
    assert parts["logits"][0] == pytest.approx(per_logit * TOKENS * 16 * V + NORM_OF_HEAD)


def test_buffers_that_stay() -> None:
    """Megatron: 2 bytes of parameters and 4 of gradients whatever the moment; nanotron and BF16_Optimizer 2 + 6."""
    whole = MODEL.num_parameters
    for engine, gradients in (("megatron", 4), ("nanotron", 6), ("deepspeed-bf16", 6)):
        parts = held(engine)
        assert parts["parameters"] == pytest.approx(2 * whole), engine
        assert parts["gradients"] == pytest.approx(gradients * whole), engine
    # FSDP2 reduces a lone micro-batch to the optimizer's shards at once.
    assert held("fsdp2")["gradients"] < whole


def test_zero3_of_deepspeed_has_a_shard_in_16_bits_and_keeps_parameters_gathered() -> None:
    parts = held("huggingface", strategy="zero3")
    assert parts["parameters"] == pytest.approx(2 * MODEL.num_parameters / 16, rel=1e-3)
    assert parts["gathered"] == pytest.approx(2 * MODEL.num_parameters, rel=1e-3)  # fewer than 1e9 of them


def test_eager_code_keeps_what_fused_backwards_compute_again() -> None:
    """SiLU's result; and of an RMSNorm op by op the fp32 input and the 16-bit normalised rows, not the 16-bit input."""
    assert held("fsdp2")["activations"] == pytest.approx(4 * layer())
    assert held("nanotron")["activations"] == pytest.approx(4 * layer(silu=1))
    assert held("huggingface", fused_kernels=False)["activations"] == pytest.approx(4 * layer(norms=6, silu=1))
    assert held("huggingface", compiled=True)["activations"] == pytest.approx(4 * layer())


def test_sequence_parallel_inputs_are_kept_in_parts_where_they_are_gathered_again() -> None:
    fields = {"tp": 2, "sequence_parallel": True, "strategy": "tp2"}
    model, machine = small_model(), cluster()

    def activations(engine: str) -> float:
        shards = {"parameter_shard": 1, "gradient_shard": 1, "optimizer_shard": 8}
        memory = forecast(model, machine, plan(num_gpus=16, engine=engine, **{**shards, **fields})).memory
        return float(memory.parts["activations"][0])

    assert activations("nanotron") - activations("megatron") == pytest.approx(
        4 * 2 * TOKENS * (2 * D / 2 + F / 2)  # half of two norm results, and SiLU's result over two ranks
    )


def test_selective_recompute_keeps_results_or_every_other_or_all_but_attention() -> None:
    logs = 4 * TOKENS * 8
    every = 2 * TOKENS * (D + 3 * D + D + D + 2 * F + D) + logs  # input; q k v; attention; o; gate, up; down
    alternate = 2 * TOKENS * (D + 2 * D + D + F + D) + logs  # input; q, v; attention; gate; down
    fields: dict[str, Any] = {"recompute": "selective"}
    assert held("fsdp2", **fields)["activations"] == pytest.approx(4 * every)
    assert held("torchtitan", **fields)["activations"] == pytest.approx(4 * alternate)
    assert held("megatron", **fields)["activations"] == pytest.approx(4 * layer())


def test_every_other_product_is_computed_again() -> None:
    """k, o and up of seven: their FLOPs make the step longer than where every result is kept."""
    both = [plan("zero1", 16, engine=e, recompute="selective") for e in ("torchtitan", "fsdp2")]
    seconds = forecast(MODEL, cluster(), both).step_s
    assert seconds[0] > seconds[1]


def test_update_buffers_are_held_beside_what_the_pass_has_freed() -> None:
    """DeepSpeed's ZeRO-1 in fp16: 6 bytes per parameter of the shard and a bucket of 1e9 bytes, in no tensor's peak."""
    memory = forecast(MODEL, cluster(), plan("zero1", 16, engine="deepspeed")).memory
    assert memory.in_one_piece[0] == pytest.approx(6 * MODEL.num_parameters / 16 + 1e9, rel=1e-3)
    other = forecast(MODEL, cluster(), plan("zero1", 16, engine="megatron")).memory
    assert memory.allocated[0] == other.allocated[0]
    assert memory.reserved[0] - other.reserved[0] == pytest.approx(memory.in_one_piece[0])
    assert memory.total[0] == pytest.approx(sum(part[0] for part in memory.parts.values()))


def test_an_optimizer_on_the_host_takes_no_memory_here() -> None:
    assert held("liger", strategy="zero3", state_bytes=0)["optimizer"] == 0


def test_an_optimizer_on_the_host_takes_its_nodes_memory_and_the_link() -> None:
    constants = default_constants()
    found = forecast(MODEL, cluster(), plan("zero3", 16, state_bytes=0))
    update = [op for op in found.operations if isinstance(op.work, HostUpdate)]
    spent = sum(float(op.count[0] * work_seconds(op.work, Hardware.of([cluster()]), constants)[0]) for op in update)
    per_gpu = MODEL.num_parameters / 16
    node = 8 * 30 * per_gpu / constants.host_bytes_per_s
    link = (4 + 2) * per_gpu / constants.host_link_bytes_per_s
    assert spent == pytest.approx(node + link, rel=1e-3)
    assert not any(op.name.endswith(".optimizer") for op in found.operations)


def loss_bytes(engine: str, compiled: bool) -> tuple[float, ...]:
    ops = forecast(MODEL, cluster(), plan("zero1", 16, engine=engine, compiled=compiled)).operations
    loss = [op for op in ops if op.name == "head.loss"]
    return tuple(float(op.work.bytes[0]) / (TOKENS * V) for op in loss)  # type: ignore[union-attr]


def test_a_compiler_of_activations_leaves_the_loss_as_it_is() -> None:
    # Cast 2 + 4, maximum 4, difference 8, exponential 8, sum 4, quotient 8; the gradient in place 8, its cast 6.
    assert loss_bytes("megatron", compiled=True) == loss_bytes("megatron", compiled=False) == (38, 14)
    # Transformer Engine's: read for the sum, read again and the gradient written; that read and written once more.
    assert loss_bytes("megatron-bridge", compiled=True) == (6, 4)
    assert loss_bytes("torchtitan", compiled=True) == (4, 6)
    assert loss_bytes("torchtitan", compiled=False) == (14, 22)


def test_what_runs_operation_by_operation_moves_what_is_listed_and_no_more() -> None:
    ops = forecast(MODEL, cluster(), plan("zero1", 16, fused_kernels=False)).operations
    listed = {op.name: bool(np.all(op.work.counted)) for op in ops if isinstance(op.work, Pointwise)}
    assert all(listed[f"transformer.{name}"] for name in ("norm1", "rope", "activation", "residual1"))
    ops = forecast(MODEL, cluster(), plan("zero1", 16, compiled=True)).operations
    fused = {op.name: bool(np.all(op.work.counted)) for op in ops if isinstance(op.work, Pointwise)}
    assert not any(fused[f"transformer.{name}"] for name in ("norm1", "rope", "activation", "residual1"))


def moved(engine: str, name: str, **fields: Any) -> tuple[float, ...]:
    ops = forecast(MODEL, cluster(), plan("zero1", 16, engine=engine, **fields)).operations
    found = [op for op in ops if op.name == f"transformer.{name}"]
    return tuple(float((op.count * op.work.bytes)[0]) for op in found)  # type: ignore[union-attr]


def test_an_engine_that_lays_out_attentions_inputs_anew_copies_them_each_way() -> None:
    # Queries once, keys and values three times, four layers: read and written, in 16 bits.
    once = 4 * TOKENS * (D + 3 * 2 * D) * (2 + 2)
    assert moved("nanotron", "copies") == (once, once)
    assert sum(moved("fsdp2", "copies")) == 0


class Copied(TorchDispatchMode):
    """Elements that clone, cat and stack write."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.__name__.split(".")[0] in ("clone", "cat", "stack"):
            self.elements += result.numel()
        return result


def test_autograd_copies_as_often_where_the_layout_is_changed_so() -> None:
    """Sequence first to batch first, then keys and values joined and permuted: the order of nanotron's llama.py."""
    length, batch, heads, size = 16, 2, 2, 4
    source = torch.randn(length, batch, 3 * heads * size, requires_grad=True)
    one = length * batch * heads * size
    with Copied() as copied:
        q, k, v = (source * 1).view(length, batch, 3, heads, size).permute(2, 1, 0, 3, 4).contiguous()
        both = torch.cat([k.unsqueeze(0), v.unsqueeze(0)]).permute(1, 2, 0, 3, 4).contiguous()
        results = [q, *torch.split(both, 1, dim=2)]
        forward = copied.elements / one
        torch.autograd.backward(results, [torch.randn_like(r) for r in results])
        backward = copied.elements / one - forward
    habits = ENGINES["nanotron"]
    counted = habits.query_copies + 2 * habits.kv_copies
    assert forward == counted == 7
    assert backward == counted + 1  # the gradient of queries is written once more


def test_halves_of_one_product_have_their_gradients_joined() -> None:
    per_element = [moved(engine, "activation")[1] / (4 * TOKENS * F) for engine in ("nanotron", "fsdp2")]
    assert per_element == [18 + 8, 18]


def test_sums_with_the_residual_stream_are_folded_only_by_norms_that_do_so() -> None:
    engines = ("llm.c", "fsdp2", "nanotron")
    per_element = {engine: moved(engine, "residual1")[0] / (4 * TOKENS * D) for engine in engines}
    assert per_element == {"llm.c": 4, "fsdp2": 6, "nanotron": 6}
    assert moved("nanotron", "residual1", compiled=True)[0] == 4 * TOKENS * D * 4
    assert moved("megatron", "residual1", compiled=True)[0] == 4 * TOKENS * D * 6


def test_internevo_norms_an_fp32_cast_and_computes_it_again_in_backward() -> None:
    # Cast 2 + 4 and norm 4 + 2; backward both again, then fp32 in and out with 16-bit gradients 10, and the cast 6.
    per_element = [bytes_ / (4 * TOKENS * D) for bytes_ in moved("internevo", "norm1")]
    assert per_element == [12, 12 + 16]
    assert [bytes_ / (4 * TOKENS * D) for bytes_ in moved("nanotron", "norm1")] == [4, 6]


def test_products_that_add_to_the_accumulator_leave_nothing_to_add() -> None:
    # Elsewhere the 16-bit gradient is read beside the fp32 sum, which is written too: 2 + 4 + 4 bytes.
    def added(engine: str) -> float:
        ops = forecast(MODEL, cluster(), plan("zero1", 16, engine=engine, grad_accum=4)).operations
        found = [op for op in ops if op.name.endswith(".accumulate")]
        return sum(float((op.count * op.work.bytes)[0]) for op in found)  # type: ignore[union-attr]

    assert added("megatron") == 0
    assert added("megatron-2021") == pytest.approx((2 + 4 + 4) * MODEL.num_parameters)


def test_interleaved_stages_that_wait_for_their_sends_are_held_up_by_all_of_them() -> None:
    constants = default_constants()
    # So long that launching a send takes no time beside it.
    fields: dict[str, Any] = {"pp": 2, "grad_accum": 8, "schedule": "interleaved", "virtual_pp": 2, "seq_len": 2**18}

    def sent(engine: str) -> float:
        found = forecast(MODEL, cluster(), plan("ddp", 16, engine=engine, **fields))
        return float(found.step.parts["pipeline_communication"][0])

    assert sent("megatron") == pytest.approx(constants.send_leak * sent("megatron-2021"), rel=0.01)


def test_ranks_that_send_parts_gather_what_they_receive() -> None:
    def sent(engine: str) -> dict[str, tuple[str, float]]:
        fields: dict[str, Any] = {"pp": 2, "tp": 4, "grad_accum": 4, "engine": engine}
        ops = forecast(MODEL, cluster(), plan("ddp", 16, **fields)).operations
        found = [op for op in ops if op.name.startswith("pipeline.") and op.phase == "forward"]
        return {op.name: (op.work.collective, float(op.work.tensor_bytes[0])) for op in found}  # type: ignore[union-attr]

    whole = 2.0 * TOKENS * D
    assert sent("megatron") == {"pipeline.send": ("point_to_point", whole)}
    assert sent("megatron-2021") == {
        "pipeline.send": ("point_to_point", whole / 4),
        "pipeline.gather": ("all_gather", whole),
    }


def test_some_gather_the_matrices_of_8_bit_products_in_8_bits() -> None:
    found = {}
    for engine, precision in (("torchtitan", "bf16"), ("torchtitan", "fp8"), ("nemo", "fp8"), ("fsdp2", "fp8")):
        of = forecast(MODEL, cluster(H100), plan("zero3", 16, engine=engine, precision=precision))
        names = ("transformer.gather", "root.gather")
        sizes = {op.name: op.work.tensor_bytes[0] for op in of.operations if op.name in names}  # type: ignore[union-attr]
        found[engine, precision] = tuple(sizes[name] for name in names)
    layer_elements = sum(tensor.num_parameters for tensor in MODEL.layers[0].tensors(D))
    root = MODEL.num_parameters - MODEL.num_layers * layer_elements
    assert found["torchtitan", "bf16"] == found["fsdp2", "fp8"] == pytest.approx((2 * layer_elements, 2 * root))
    assert found["nemo", "fp8"] == found["torchtitan", "fp8"]
    assert found["torchtitan", "fp8"] == pytest.approx((layer_elements, 2 * root))


def test_zero3_of_deepspeed_gathers_matrix_by_matrix_and_reduces_in_buckets() -> None:
    def calls(engine: str, collective: str) -> tuple[float, float]:
        of = plan("zero3", 16, engine=engine, bucket_bytes=10**9)
        found = [op for op in forecast(MODEL, cluster(), of).operations if op.name == f"transformer.{collective}"]
        each = [op.work.tensor_bytes[0] for op in found]  # type: ignore[union-attr]
        return float(sum(op.count[0] for op in found)), float(each[0])

    layer_bytes = calls("fsdp2", "gather")[1]
    assert calls("fsdp2", "gather")[0] == 2 * 4
    # q, k, v, o, gate, up and down, for the forward and for the backward pass of four layers.
    assert calls("huggingface", "gather") == (2 * 4 * 7, pytest.approx(layer_bytes / 7))
    assert calls("fsdp2", "reduce_scatter") == (4, pytest.approx(2 * layer_bytes))
    assert calls("huggingface", "reduce_scatter") == (1, pytest.approx(4 * 2 * layer_bytes))


@pytest.mark.parametrize(("strategy", "when"), [("zero1", "last"), ("zero2", "every")])
def test_deepspeed_all_reduces_where_only_gradients_and_states_are_sharded(strategy: str, when: str) -> None:
    def reductions(engine: str) -> list[tuple[str, str]]:
        operations = forecast(MODEL, cluster(), plan(strategy, 16, engine=engine, grad_accum=4)).operations
        return [
            (op.work.collective, op.when)
            for op in operations
            if op.name.startswith("transformer.") and "reduce" in op.name
        ]  # type: ignore[union-attr]

    assert reductions("huggingface") == [("all_reduce", when)]
    assert reductions("deepspeed") == [("reduce_scatter", when)]


@pytest.mark.parametrize(
    ("strategy", "precision", "bytes_of_layers"), [("zero2", "bf16", 2), ("zero2", "fp8", 1), ("ddp", "fp8", 2)]
)
def test_what_was_gathered_in_8_bits_is_held_in_8_bits(strategy: str, precision: str, bytes_of_layers: int) -> None:
    """ZeRO-2 keeps what it gathered once a step; under DDP nothing is gathered, and nothing was cast."""
    layers = MODEL.num_layers * sum(tensor.num_parameters for tensor in MODEL.layers[0].tensors(D))
    of = plan(strategy, 16, engine="torchtitan", precision=precision, grad_accum=2)
    parameters = forecast(MODEL, cluster(H100), of).memory.parts["parameters"]
    assert parameters == pytest.approx(bytes_of_layers * layers + 2 * (MODEL.num_parameters - layers))
