import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from flopcast.errors import InputError
from flopcast.kernels.swiglu import kernel, reference
from flopcast.kernels.swiglu.op import swiglu

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
ORDERS = ["forward", "reverse", "random"]


def inputs(*shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).mul(3).to(dtype) for _ in range(3)]


def expected(gate, up, dy):
    """PyTorch's own expression and its gradients in float64."""
    leaves = [t.double().requires_grad_() for t in (gate, up)]
    out = F.silu(leaves[0]) * leaves[1]
    return (out.detach(), *torch.autograd.grad(out, leaves, dy.double()))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize("shape", [(2, 5, 416), (3, 37), (1, 8192)])
def test_kernel_agrees_with_float64(order, dtype, shape, emulate, assert_near):
    emulate(order)
    gate, up, dy = inputs(*shape, dtype=dtype)
    for found, wanted in zip(
        (kernel.forward(gate, up), *kernel.backward(gate, up, dy)), expected(gate, up, dy), strict=True
    ):
        assert_near(found, wanted, scale=10)


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
def test_reference_agrees_with_float64(dtype, assert_near):
    gate, up, dy = inputs(4, 50, dtype=dtype)
    for found, wanted in zip(
        (reference.forward(gate, up), *reference.backward(gate, up, dy)), expected(gate, up, dy), strict=True
    ):
        assert_near(found, wanted, scale=10)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from([FP32, FP16, BF16]),
    rows=st.integers(1, 5),
    columns=st.sampled_from([8, 24, 100, 33]),
    layout=st.sampled_from(["dense", "halves", "shifted", "expanded"]),
    special=st.sampled_from([1.0, -200.0, 60000.0, float("nan"), float("inf"), float("-inf")]),
    order=st.sampled_from(ORDERS),
)
def test_kernel_agrees_with_the_reference_for_any_layout(
    dtype, rows, columns, layout, special, order, emulate, assert_near
):
    gate, up, dy = inputs(rows, columns, dtype=dtype)
    gate[0, 0] = special
    if layout == "halves":
        gate, up = torch.cat((gate, up), 1).chunk(2, 1)
    if layout == "shifted":
        gate, up = (torch.cat((t.new_zeros(3), t.flatten()))[3:].view(t.shape) for t in (gate, up))
    if layout == "expanded":
        dy = dy[:1, :1].expand(rows, columns)
    emulate(order)
    wanted = (reference.forward(gate, up), *reference.backward(gate, up, dy))
    found = (kernel.forward(gate, up), *kernel.backward(gate, up, dy))
    for a, b in zip(found, wanted, strict=True):
        assert_near(a, b, scale=10)


def test_nothing_is_launched_for_no_elements():
    gate = torch.empty(0, 64)
    assert kernel.forward(gate, gate).shape == (0, 64)
    assert kernel.backward(gate, gate, gate)[1].shape == (0, 64)


def test_gradients_are_those_of_the_formula():
    leaves = [torch.randn(3, 7, dtype=FP32, requires_grad=True) for _ in range(2)]
    wanted = torch.autograd.grad((F.silu(leaves[0]) * leaves[1]).sin().sum(), leaves)
    found = torch.autograd.grad(swiglu(*leaves).sin().sum(), leaves)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(InputError, match="swiglu: its backward has no derivative"):
        torch.autograd.grad(swiglu(*leaves).sum(), leaves, create_graph=True)


# torch.compile instantiates torch.autograd.Function itself, and PyTorch warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_it_compiles_without_a_graph_break_and_is_registered_as_pytorch_wants_it():
    gate, up = (torch.randn(3, 64, requires_grad=True) for _ in range(2))
    compiled = torch.compile(lambda a, b: swiglu(a, b) * 2, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(gate, up), swiglu(gate, up) * 2)
    ops, tensors = torch.ops.flopcast, inputs(3, 64, dtype=BF16)
    torch.library.opcheck(ops.swiglu_forward.default, tuple(tensors[:2]))
    torch.library.opcheck(ops.swiglu_backward.default, tuple(tensors))


@pytest.mark.parametrize(
    ("gate", "up", "words"),
    [
        (torch.ones(2, 4, dtype=torch.float64), torch.ones(2, 4), "dtype torch.float64"),
        (torch.ones(2, 4), torch.ones(2, 4, dtype=BF16), "up is torch.bfloat16"),
        (torch.ones(2, 4), torch.ones(4), r"up has shape \[4\]"),
        (torch.ones(2, 4), torch.ones(2, 4, device="meta"), "on meta"),
    ],
)
def test_bad_input_is_a_sentence(gate, up, words):
    with pytest.raises(InputError, match=words) as error:
        swiglu(gate, up)
    assert "\n" not in str(error.value)
