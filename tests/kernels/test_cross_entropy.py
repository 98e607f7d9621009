import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flopcast.errors import InputError
from flopcast.kernels.cross_entropy import kernel, reference
from flopcast.kernels.cross_entropy.op import gradient_in_place, log_z_and_picked

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
ORDERS = ["forward", "reverse", "random"]
NEAR = {FP32: {"rtol": 2e-6, "atol": 2e-6}, FP16: {"rtol": 2**-10, "atol": 1e-6}, BF16: {"rtol": 2**-7, "atol": 1e-6}}


def inputs(rows, vocabulary, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator).mul(4).to(dtype)
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    targets[0] = -100
    slope, weight = (torch.rand(rows, generator=generator) for _ in range(2))
    return logits, targets, slope, weight


def expected(logits, targets, slope, weight):
    """Everything in float64."""
    wide = logits.double()
    counted = targets >= 0
    picked = torch.where(counted, wide.gather(1, targets.clamp(min=0)[:, None])[:, 0], 0.0)
    hits = torch.zeros_like(wide)
    hits[counted] = torch.nn.functional.one_hot(targets[counted], wide.shape[1]).double()
    return wide.logsumexp(1), picked, wide.softmax(1) * slope[:, None] - hits * weight[:, None]


def compare(module, logits, targets, slope, weight):
    log_z, picked, gradient = expected(logits, targets, slope, weight)
    found_z, found_picked = module.log_z_and_picked(logits, targets)
    torch.testing.assert_close(found_z.double(), log_z, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(found_picked.double(), picked)
    module.gradient_in_place(logits, targets, found_z, slope, weight)
    torch.testing.assert_close(logits.double(), gradient, **NEAR[logits.dtype])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize("vocabulary", [16, 101, 5000, 50432])
def test_kernel_agrees_with_float64(order, dtype, vocabulary, emulate):
    emulate(order)
    compare(kernel, *inputs(3, vocabulary, dtype))


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
def test_reference_agrees_with_float64(dtype):
    compare(reference, *inputs(7, 333, dtype))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from([FP32, FP16, BF16]),
    rows=st.integers(1, 4),
    vocabulary=st.sampled_from([1, 7, 64, 520]),
    shift=st.sampled_from([0, 1, 4]),
    special=st.sampled_from([0.0, 80.0, -6e4, float("nan"), float("inf"), float("-inf")]),
    target=st.sampled_from([-100, -1, 0, 2**40]),
    order=st.sampled_from(ORDERS),
)
def test_kernel_agrees_with_the_reference_for_any_row(dtype, rows, vocabulary, shift, special, target, order, emulate):
    logits, targets, slope, weight = inputs(rows, vocabulary, dtype)
    logits[0, 0], targets[0] = special, target
    logits, other = (
        torch.cat((logits.new_zeros(shift), logits.flatten()))[shift:].view(rows, vocabulary) for _ in range(2)
    )
    emulate(order)
    found, wanted = (module.log_z_and_picked(logits, targets) for module in (kernel, reference))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6, equal_nan=True)
    kernel.gradient_in_place(logits, targets, wanted[0], slope, weight)
    reference.gradient_in_place(other, targets, wanted[0], slope, weight)
    torch.testing.assert_close(logits, other, **NEAR[dtype], equal_nan=True)


def test_a_row_of_minus_infinities_but_one_is_that_one(emulate):
    emulate("random")
    logits = torch.full((2, 4096), float("-inf"))
    logits[0, 4000], logits[1, 3] = 2.0, -5.0
    assert kernel.log_z_and_picked(logits, torch.tensor([4000, -100]))[0].tolist() == [2.0, -5.0]


def test_a_row_of_nothing_but_minus_infinities_has_the_logarithm_of_nothing(emulate):
    emulate("random")
    logits, targets = torch.full((2, 64), float("-inf")), torch.tensor([0, -100])
    for module in (kernel, reference):
        assert torch.equal(module.log_z_and_picked(logits, targets)[0], torch.logsumexp(logits, -1))


def test_nothing_is_launched_for_no_rows():
    nothing = torch.empty(0)
    log_z, _ = kernel.log_z_and_picked(torch.empty(0, 50), torch.empty(0, dtype=torch.int64))
    assert log_z.shape == (0,)
    kernel.gradient_in_place(torch.empty(0, 50), torch.empty(0, dtype=torch.int64), nothing, nothing, nothing)


def test_the_ops_are_registered_as_pytorch_wants_them():
    logits, targets, slope, weight = inputs(3, 40, BF16)
    torch.library.opcheck(torch.ops.flopcast.log_z_and_picked.default, (logits, targets))
    log_z, _ = log_z_and_picked(logits, targets)
    arguments = (logits, targets, log_z, slope, weight)
    torch.library.opcheck(torch.ops.flopcast.cross_entropy_gradient.default, arguments)


@pytest.mark.parametrize(
    ("logits", "targets", "words"),
    [
        (torch.ones(2, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), "dtype torch.float64"),
        (torch.ones(2, 4).t(), torch.zeros(4, dtype=torch.int64), r"strides \(1, 4\)"),
        (torch.ones(2, 4), torch.zeros(2), "targets is torch.float32"),
        (torch.ones(2, 4), torch.zeros(3, dtype=torch.int64), r"give torch.int64 \[2\]"),
        (torch.ones(2, 4), torch.zeros(4, dtype=torch.int64)[::2], "targets is not contiguous"),
    ],
)
def test_bad_input_is_a_sentence(logits, targets, words):
    with pytest.raises(InputError, match=words) as error:
        log_z_and_picked(logits, targets)
    assert "\n" not in str(error.value)


def test_bad_rows_are_a_sentence():
    logits, targets, slope, _ = inputs(3, 40, FP32)
    with pytest.raises(InputError, match=r"weight is torch.float32 \[2\] on cpu; give torch.float32 \[3\]"):
        gradient_in_place(logits, targets, slope, slope, slope[:2])
