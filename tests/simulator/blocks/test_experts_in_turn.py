"""Megatron Core's biases and clamps of experts, against the same operations run by PyTorch's autograd and counted."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from builders import H100, cluster, plan
from torch.utils._python_dispatch import TorchDispatchMode

from flopcast.simulator.blocks.experts import Experts
from flopcast.simulator.blocks.residual import MixedBlock
from flopcast.simulator.blocks.transformer import Attention
from flopcast.simulator.forecast import Forecast, forecast
from flopcast.simulator.model import Model
from flopcast.simulator.operation import Pointwise

D, F, E, K, T = 1024, 512, 16, 2, 2048
MODEL = Model("mixture", D, 32000, 2048, (MixedBlock(Attention(8, 8, 128), Experts(E, K, F, bias=True)),))
PHASES = ("forward", "backward")
VIEWS = {"split", "split_with_sizes", "slice", "view", "_unsafe_view", "narrow", "detach", "t", "expand", "squeeze"}


def cast(model: Model = MODEL, **fields: Any) -> Forecast:
    usual = {"seq_len": T, "engine": "megatron"} | fields
    return forecast(model, cluster(H100), plan("zero1", 8, **usual))


def spent(found: Forecast, name: str, phase: str) -> tuple[float, float]:
    """Bytes moved by an operation of the forecast, and its launches."""
    operations = [o for o in found.operations if o.name.endswith(name) and o.phase == phase and np.any(o.count)]
    moved = launches = 0.0
    for operation in operations:
        assert isinstance(operation.work, Pointwise)
        moved += float(np.max(operation.work.bytes))
        launches += float(np.max(operation.num_kernels + operation.inner_launches))
    return moved, launches


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write of tensors of many columns, and how many operations there are."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        same = isinstance(args[0], torch.Tensor) and isinstance(result, torch.Tensor) and args[0].dtype == result.dtype
        if name in VIEWS or (name == "_to_copy" and same):
            return result
        self.operations += 1
        inputs = [t for a in args for t in (a if isinstance(a, list | tuple) else [a]) if isinstance(t, torch.Tensor)]
        for tensor in (*inputs, result):
            # Rows of router's weights and single biases are a thousandth of the rest.
            self.bytes += tensor.numel() * tensor.element_size() if tensor.dim() == 2 and min(tensor.shape) > 1 else 0
        return result


def counted(of: Callable[[torch.Tensor], torch.Tensor], elements: int) -> list[tuple[float, float]]:
    """Bytes for so many elements and launches of a function of a 16-bit tensor of rows, forward and backward."""
    given = torch.randn(96, 64, dtype=torch.bfloat16, requires_grad=True)
    with Traffic() as there:
        result = of(given)
    gradient = torch.randn_like(result)
    with Traffic() as back:
        result.backward(gradient)
    return [(way.bytes / given.numel() * elements, way.operations) for way in (there, back)]


@pytest.mark.parametrize(("dispatcher", "dtype"), [("alltoall", torch.bfloat16), ("deepep", torch.float32)])
def test_biases_move_what_autograd_does(dispatcher: str, dtype: torch.dtype) -> None:
    """moe/experts.py, _apply_bias: p b added to each expert's rows, which are joined and cast."""
    sizes, columns = [40, 24, 12, 20], 64
    weights = torch.rand(sum(sizes), 1, dtype=dtype, requires_grad=True)
    biases = [torch.randn(columns, dtype=torch.bfloat16, requires_grad=True) for _ in sizes]

    def apply(rows: torch.Tensor) -> torch.Tensor:
        parts = zip(torch.split(rows, sizes), biases, torch.split(weights, sizes), strict=True)
        return torch.cat([t + b * p for t, b, p in parts]).to(rows.dtype)

    found = cast(ep=E // len(sizes), dispatcher=dispatcher)
    assert [spent(found, "experts.bias", phase) for phase in PHASES] == counted(apply, T * K * D)


def test_a_clamp_moves_what_autograd_does() -> None:
    """fusions/fused_bias_geglu.py: one half is limited above, the other on both sides, and they are joined."""

    def clamp(rows: torch.Tensor) -> torch.Tensor:
        gate, up = rows.chunk(2, -1)
        return torch.cat((gate.clamp(max=7.0), up.clamp(min=-7.0, max=7.0)), -1)

    forward, backward = counted(clamp, T * K * 2 * F)
    found = [spent(cast(ep=8), "experts.clamp", phase) for phase in PHASES]
    # An offset of the gate is sent to the device in every forward as well.
    assert found == [(forward[0], forward[1] + 1), backward]


def test_only_where_experts_have_biases_and_follow_one_another() -> None:
    plain = replace(MODEL, layers=(MixedBlock(Attention(8, 8, 128), Experts(E, K, F)),))
    for found in (
        cast(plain),
        cast(engine="fsdp2"),
        cast(ep=8, dispatcher="deepep", cuda_graphs="full"),
    ):
        assert spent(found, "experts.bias", "forward") == spent(found, "experts.clamp", "forward") == (0, 0)


def test_what_is_clamped_is_kept_beside_the_product() -> None:
    """2 F features of each copy in 16 bits, of every layer."""
    kept = [cast(engine=engine).memory.parts["activations"][0] for engine in ("megatron", "fsdp2")]
    plain = replace(MODEL, layers=(MixedBlock(Attention(8, 8, 128), Experts(E, K, F)),))
    usual = [cast(plain, engine=engine).memory.parts["activations"][0] for engine in ("megatron", "fsdp2")]
    assert (kept[0] - kept[1]) - (usual[0] - usual[1]) == pytest.approx(T * K * 2 * F * 2)
