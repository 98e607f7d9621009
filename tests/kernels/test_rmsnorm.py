from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flopcast.errors import InputError
from flopcast.kernels.rmsnorm import kernel, op, reference, variant
from flopcast.kernels.rmsnorm.op import add_rms_norm, rms_norm

EPS = 1e-5
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# hidden, dtype, branches, round before weight: full warps and parts of one, masked packs, accesses of 16, 8, 4 and 2
# bytes, staged and not, one and several packs per thread.
COMPILED = [
    (5120, BF16, 2, False),
    (5120, FP16, 0, True),
    (64, BF16, 1, False),
    (65, FP32, 0, False),
    (130, BF16, 2, True),
    (516, FP16, 1, False),
    (1024, FP32, 1, False),
    (2056, FP16, 0, False),
    (9001, BF16, 1, False),
    (9216, BF16, 1, False),
    (12288, BF16, 0, False),
    (16384, BF16, 0, False),
    (16384, FP32, 2, False),
]
ORDERS = ["forward", "reverse", "random"]


def inputs(rows: int, hidden: int, dtype: torch.dtype, branches: int, seed: int = 0) -> list[torch.Tensor]:
    """x, branches, weight, dy, ds."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(rows, hidden, generator=generator) for _ in range(1 + branches)]
    weight = 1 + 0.2 * torch.randn(hidden, generator=generator)
    gradients = [torch.randn(rows, hidden, generator=generator) for _ in range(2)]
    return [t.to(dtype) for t in (*tensors, weight, *gradients)]


def expected(
    tensors: list[torch.Tensor], branches: int, rounded_stream: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """y, s, dx, dw by autograd in float64; the stream as it was stored, where that is given."""
    *summands, weight, dy, ds = (t.double() for t in tensors)
    stream = (sum(summands) if rounded_stream is None else rounded_stream.double()).requires_grad_()
    weight.requires_grad_()
    y = stream * (stream.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight
    loss = (y * dy).sum() + ((stream * ds).sum() if branches else 0)
    dx, dw = torch.autograd.grad(loss, (stream, weight))
    return [y.detach(), stream.detach(), dx, dw]


def run(module, tensors, branches, round_before_weight):
    x, *rest = tensors
    first, second = (*rest[:branches], None, None)[:2]
    weight, dy, ds = tensors[-3:]
    y, s, rstd = module.forward(x, first, second, weight, EPS, round_before_weight)
    stream = s if branches else x
    dx, dw = module.backward(stream, weight, dy, ds if branches else None, rstd, round_before_weight)
    return y, s, rstd, dx, dw


def check(module, tensors, branches, round_before_weight, assert_near):
    y, s, rstd, dx, dw = run(module, tensors, branches, round_before_weight)
    stream = s if branches else tensors[0]
    want_y, _, want_dx, want_dw = expected(tensors, branches, stream)
    if branches:
        assert_near(s, sum(t.double() for t in tensors[: 1 + branches]))
    assert_near(rstd, (stream.double().square().mean(-1, keepdim=True) + EPS).rsqrt())
    assert_near(y, want_y)
    assert_near(dx, want_dx)
    assert_near(dw, want_dw, scale=len(tensors[0]) ** 0.5)


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize("branches", [0, 1, 2])
@pytest.mark.parametrize("round_before_weight", [False, True])
def test_reference_agrees_with_float64(dtype, branches, round_before_weight, assert_near):
    check(reference, inputs(7, 192, dtype, branches), branches, round_before_weight, assert_near)


# Long rows run in one order only, to keep the suite short.
@pytest.mark.parametrize(
    ("hidden", "dtype", "branches", "round_before_weight", "order"),
    [(*case, order) for case in COMPILED for order in (ORDERS if case[0] <= 2056 else ["random"])],
)
def test_kernel_agrees_with_float64(hidden, dtype, branches, round_before_weight, order, emulate, assert_near):
    emulate(order)
    rows = 3 if hidden > 2056 else 37
    check(kernel, inputs(rows, hidden, dtype, branches), branches, round_before_weight, assert_near)


def test_thread_order_does_not_change_a_bit(emulate):
    results = []
    for order in ORDERS:
        emulate(order)
        results.append(run(kernel, inputs(21, 1024, FP32, 1), 1, False))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


SPECIAL = st.sampled_from([0.0, float("nan"), float("inf"), -float("inf"), 1e-30, 60000.0])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    case=st.sampled_from([c for c in COMPILED if c[0] <= 2056]),
    rows=st.integers(1, 40),
    offset=st.integers(0, 9),
    order=st.sampled_from(ORDERS),
    specials=st.lists(st.tuples(st.integers(0, 10**6), SPECIAL), max_size=3),
    seed=st.integers(0, 99),
)
def test_kernel_agrees_with_the_reference_for_any_rows(case, rows, offset, order, specials, seed, emulate, assert_near):
    hidden, dtype, branches, round_before_weight = case
    tensors = inputs(rows, hidden, dtype, branches, seed)
    # Rows that start anywhere, as slices of a larger buffer do.
    storage = torch.zeros(rows * hidden + offset, dtype=dtype)
    storage[offset:] = tensors[0].view(-1)
    tensors[0] = storage[offset:].view(rows, hidden)
    for index, value in specials:
        tensors[0].view(-1)[index % tensors[0].numel()] = value
    emulate(order)
    scale = max(1.0, float(tensors[0].abs().nan_to_num(0, 0, 0).max()))
    found, wanted = (run(m, tensors, branches, round_before_weight) for m in (kernel, reference))
    for a, b in zip(found, wanted, strict=True):
        assert_near(a, b, scale=scale if a.dim() == 2 else 10 * rows**0.5)


@pytest.mark.parametrize(
    ("rows", "hidden", "blocks"),
    [(8192, 5120, 256), (4096, 5120, 256), (300, 5120, 150), (7, 5120, 7), (8192, 512, 683)],
)
def test_backward_deals_rows_out_evenly(rows, hidden, blocks, monkeypatch):
    """As many rounds as a grid that fills 132 multiprocessors needs, and no block stands idle in the last."""
    grids = []
    monkeypatch.setattr(kernel.launch, "num_multiprocessors", lambda device: 132)
    monkeypatch.setattr(kernel.launch, "most_shared_bytes", lambda device: 227 * 1024)
    monkeypatch.setattr(kernel.launch, "launch", lambda variant, grid, arguments, device: grids.append(grid))
    x = torch.empty(rows, hidden, dtype=BF16, device="meta")
    kernel.backward(x, x[0], x, None, torch.empty(rows, 1, device="meta"), False)
    assert grids[0] == (blocks, 1)


def test_no_rows(emulate):
    emulate("forward")
    x, weight = torch.empty(0, 64), torch.ones(64)
    y, _, rstd = kernel.forward(x, None, None, weight, EPS, False)
    assert y.shape == (0, 64)
    assert kernel.backward(x, weight, y, None, rstd, False)[1].eq(0).all()
    kernel.forward(torch.ones(1, 64), None, None, weight, EPS, False)


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
def test_rms_norm_is_pytorchs(dtype, assert_near):
    x, weight, dy, _ = (t.requires_grad_() for t in inputs(6, 320, dtype, 0))
    y = rms_norm(x.view(2, 3, 320), weight, EPS)
    want = torch.nn.functional.rms_norm(x.double().view(2, 3, 320), (320,), weight.double(), EPS)
    assert_near(y.detach(), want.detach())
    found = torch.autograd.grad(y, (x, weight), dy.view_as(y))
    wanted = torch.autograd.grad(want, (x, weight), dy.double().view_as(y))
    for a, b in zip(found, wanted, strict=True):
        assert_near(a, b, scale=3)


@pytest.mark.parametrize("dtype", [FP16, BF16])
def test_rounding_before_the_weight_is_hugging_faces(dtype):
    x, weight, *_ = inputs(6, 320, dtype, 0)
    wide = x.float()
    theirs = weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).to(dtype)
    assert torch.equal(rms_norm(x, weight, EPS, round_before_weight=True), theirs)


@pytest.mark.parametrize("branches", [1, 2])
def test_add_rms_norm_gives_every_summand_the_same_gradient(branches, assert_near):
    tensors = inputs(5, 128, FP32, branches)
    *summands, weight, dy, ds = (t.requires_grad_() for t in tensors)
    y, s = add_rms_norm(summands[0], tuple(summands[1:]), weight, EPS)
    found = torch.autograd.grad((y, s), (*summands, weight), (dy, ds))
    _, _, dx, dw = expected([t.detach() for t in tensors], branches, s.detach())
    for gradient in found[:-1]:
        assert_near(gradient, dx)
    assert_near(found[-1], dw, scale=3)


@pytest.mark.parametrize("branches", [1, 2])
def test_an_output_that_is_not_used_costs_no_zeros(branches, assert_near, monkeypatch):
    tensors = inputs(5, 128, FP32, branches)
    *summands, weight, dy, ds = (t.requires_grad_() for t in tensors)
    given = []
    normed = torch.ops.flopcast.rms_norm_backward
    monkeypatch.setattr(torch.ops.flopcast, "rms_norm_backward", lambda *a: given.append(a[3]) or normed(*a))
    y, s = add_rms_norm(summands[0], tuple(summands[1:]), weight, EPS)
    found = torch.autograd.grad(y, (*summands, weight), dy, retain_graph=True)
    assert given == [None]
    _, _, dx, dw = expected([*tensors[:-1], torch.zeros_like(ds)], branches, s.detach())
    for gradient in found[:-1]:
        assert_near(gradient, dx)
    assert_near(found[-1], dw, scale=3)
    *onward, of_weight = torch.autograd.grad(s, (*summands, weight), ds, allow_unused=True)
    assert all(torch.equal(gradient, ds) for gradient in onward)
    assert of_weight is None
    assert len(given) == 1


def test_without_gradients_autograd_is_left_out(monkeypatch):
    x, weight, *_ = inputs(3, 64, BF16, 0)
    with_autograd = rms_norm(x, weight), *add_rms_norm(x, (x, x), weight)
    for function in (op._RMSNorm, op._AddRMSNorm):
        monkeypatch.setattr(function, "apply", None)
    with torch.no_grad():
        without = rms_norm(x, weight), *add_rms_norm(x, (x, x), weight)
    assert all(torch.equal(a, b) for a, b in zip(with_autograd, without, strict=True))


def test_backward_takes_gradients_of_any_strides():
    x, weight = torch.randn(4, 64, requires_grad=True), torch.ones(64, requires_grad=True)
    rms_norm(x, weight).sum().backward()
    expanded, x.grad = x.grad, None
    rms_norm(x, weight).backward(torch.ones(4, 64))
    assert torch.equal(expanded, x.grad)


def test_a_second_derivative_is_refused_in_a_sentence():
    x, weight = torch.randn(4, 64, requires_grad=True), torch.ones(64)
    for y in (rms_norm(x, weight), add_rms_norm(x, (x,), weight)[0]):
        with pytest.raises(InputError, match="rms_norm: its backward has no derivative"):
            torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("kib", [99, 163, 227])
def test_a_block_asks_for_no_more_shared_memory_than_the_gpu_has(kib):
    for dtype, hidden in product(("bfloat16", "float32"), (5120, 8192, 16384)):
        chosen = variant.backward(dtype, hidden, shared_bytes=min(variant.SHARED_BYTES, kib * 1024))
        assert chosen["MIN_BLOCKS"] * chosen.dynamic_shared_bytes <= kib * 1024


# torch.compile instantiates torch.autograd.Function itself, and PyTorch warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("engine", ["eager", "aot_eager"])
def test_compiles_without_a_graph_break(engine):
    def block(x, a, b, w):
        y, s = add_rms_norm(x, (a, b), w)
        return rms_norm(y * 2, w) + s

    tensors = [torch.randn(3, 64, requires_grad=True) for _ in range(3)] + [torch.randn(64, requires_grad=True)]
    want = block(*tensors)
    found = torch.compile(block, backend=engine, fullgraph=True)(*tensors)
    torch.testing.assert_close(found, want)
    for a, b in zip(*(torch.autograd.grad(t.square().sum(), tensors) for t in (found, want)), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(block, backend=engine, fullgraph=True)(*tensors), want)


@pytest.mark.parametrize("branches", [0, 1, 2])
def test_the_op_is_registered_as_pytorch_wants_it(branches):
    x, *rest, weight, dy, ds = inputs(3, 64, FP32, branches)
    first, second = (*rest, None, None)[:2]
    ops = torch.ops.flopcast
    torch.library.opcheck(ops.rms_norm_forward.default, (x, first, second, weight, EPS, False))
    rstd = torch.rand(3, 1)
    torch.library.opcheck(ops.rms_norm_backward.default, (x, weight, dy, ds if branches else None, rstd, False))


def test_meta_tensors_have_the_shapes():
    x = torch.empty(4, 8, 5120, dtype=BF16, device="meta")
    y, s = add_rms_norm(x, (x,), torch.empty(5120, dtype=BF16, device="meta"))
    assert (y.shape, s.dtype, s.device.type) == (x.shape, BF16, "meta")


@pytest.mark.parametrize(
    ("x", "weight", "words"),
    [
        (torch.ones(2, 64, dtype=torch.float64), torch.ones(64), "dtype torch.float64"),
        (torch.ones(2, 64, dtype=torch.int32), torch.ones(64), "dtype torch.int32"),
        (torch.ones(64, 64).t()[:, ::2], torch.ones(32), "hidden size 32"),
        (torch.ones(64, 96).t(), torch.ones(64), "stride 96"),
        (torch.ones(2, 64), torch.ones(65), "weight has shape"),
        (torch.ones(2, 64), torch.ones(64, dtype=BF16), "weight is torch.bfloat16"),
        (torch.ones(2, 64), torch.ones(64, device="meta"), "on meta"),
        (torch.ones(2, 32768), torch.ones(32768), "64 to 16384"),
        (torch.tensor(1.0), torch.ones(1), "no dimension"),
        (torch.ones(2, 64), None, "weight is a NoneType; give a tensor"),
        (None, torch.ones(64), "x is a NoneType; give a tensor"),
    ],
)
def test_bad_input_is_a_sentence(x, weight, words):
    with pytest.raises(InputError, match=words) as error:
        rms_norm(x, weight)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("eps", [-1.0, float("nan"), float("inf")])
def test_an_eps_that_is_none_is_a_sentence(eps):
    x, weight = torch.ones(2, 64), torch.ones(64)
    with pytest.raises(InputError, match=f"rms_norm: eps is {eps}"):
        rms_norm(x, weight, eps)
    with pytest.raises(InputError, match=f"add_rms_norm: eps is {eps}"):
        add_rms_norm(x, (x,), weight, eps)


def test_bad_branches_are_a_sentence():
    x, weight = torch.ones(2, 64), torch.ones(64)
    for branches, words in [((), "0 branches"), ((x, x, x), "3 branches"), ((x[:1],), "a branch has shape")]:
        with pytest.raises(InputError, match=words):
            add_rms_norm(x, branches, weight)
