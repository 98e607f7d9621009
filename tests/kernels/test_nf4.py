import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flopcast.errors import InputError
from flopcast.kernels.nf4 import format as layout
from flopcast.kernels.nf4 import kernel, reference
from flopcast.kernels.nf4.op import dequantise, quantise

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
ORDERS = ["forward", "reverse", "random"]
GROUP = layout.GROUP
BEYOND = torch.tensor(2.0)


def weights(numel, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (0.02 * torch.randn(numel, generator=generator)).to(dtype)


def run_quantise(values):
    payload = torch.full((int(layout.payload_bytes(values.numel())),), 0xAA, dtype=torch.uint8)
    kernel.quantise(values, payload)
    return payload


def run_dequantise(payload, numel, dtype):
    out = torch.full((1, numel), float("nan"), dtype=dtype)
    kernel.dequantise(payload.view(1, -1), numel, out)
    return out[0]


def same_bits(a, b):
    width = torch.int32 if a.dtype == FP32 else torch.int16
    different = a.view(width) != b.view(width)
    return bool((~different | (a.isnan() & b.isnan())).all())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
def test_kernels_agree_with_the_reference_bit_for_bit(order, dtype, emulate):
    emulate(order)
    values = weights(GROUP + 5003, dtype)
    payload = run_quantise(values)
    assert torch.equal(payload, reference.quantise(values))
    for out in (FP32, FP16, BF16):
        assert same_bits(
            run_dequantise(payload, values.numel(), out), reference.dequantise(payload, values.numel(), out)
        )


def test_a_scale_between_two_levels_is_rounded_alike(emulate):
    emulate("forward")
    for value in (1.708782803484672e16, 1.1, 1.3, 1.7):
        x = torch.zeros(129)
        x[0] = value
        assert torch.equal(run_quantise(x), reference.quantise(x))


SPECIAL = [0.0, float("nan"), float("inf"), -float("inf"), 1e-42, 3e38, -3e38, 6e-8, 65504.0, -0.0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    numel=st.one_of(st.integers(1, 700), st.sampled_from([GROUP - 1, GROUP, GROUP + 1, 2 * GROUP + 64])),
    dtype=st.sampled_from([FP32, FP16, BF16]),
    scale=st.sampled_from([1.0, 0.0, 1e-40, 1e-20, 1e30]),
    specials=st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(SPECIAL)), max_size=6),
    offset=st.integers(0, 3),
    order=st.sampled_from(ORDERS),
    seed=st.integers(0, 9),
)
def test_any_values_give_the_bytes_of_the_reference(numel, dtype, scale, specials, offset, order, seed, emulate):
    emulate(order)
    storage = torch.zeros(numel + offset, dtype=dtype)
    values = storage[offset:]
    values.copy_((weights(numel, FP32, seed) * scale).to(dtype))
    for index, value in specials:
        values[index % numel] = value
    payload = run_quantise(values)
    assert torch.equal(payload, reference.quantise(values))
    assert same_bits(run_dequantise(payload, numel, dtype), reference.dequantise(payload, numel, dtype))


@pytest.mark.parametrize("order", ORDERS)
def test_a_product_at_a_threshold_and_beside_it_gets_the_code_of_the_reference(order, emulate):
    emulate(order)
    thresholds = torch.tensor(layout.THRESHOLDS)
    beside = [thresholds]
    for _ in range(2):
        beside = [torch.nextafter(beside[0], -BEYOND), *beside, torch.nextafter(beside[-1], BEYOND)]
    beside = torch.cat(beside)
    # Blocks of one scale, the last of them in groups of their own: s is the block's largest value.
    for largest in (1.0, 1.7, 0.0123, -3.9e-5):
        values = torch.full((2, layout.BLOCK), largest)
        values.view(-1)[1 : len(beside) + 1] = beside * largest
        values[1, 0] = largest
        assert torch.equal(run_quantise(values.view(-1)), reference.quantise(values))


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_blocks_out_of_all_proportion_to_their_group_get_the_bytes_of_the_reference(dtype, emulate):
    emulate("random")
    spread = torch.logspace(-44, 38, 256).repeat_interleave(layout.BLOCK)
    values = (weights(GROUP, FP32) * 40 * spread).clamp(-3e38, 3e38).to(dtype)
    for lowest in (0, 100, 128, 200):
        for highest in (lowest + 5, 256):
            part = values[lowest * layout.BLOCK : highest * layout.BLOCK - 3].clone()
            payload = run_quantise(part)
            assert torch.equal(payload, reference.quantise(part))
            assert same_bits(run_dequantise(payload, len(part), dtype), reference.dequantise(payload, len(part), dtype))


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
def test_the_largest_values_of_each_type_stay_finite(dtype, emulate):
    emulate("forward")
    values = (torch.rand(5000, generator=torch.Generator().manual_seed(4)) * torch.finfo(dtype).max).to(dtype)
    payload = run_quantise(values)
    assert torch.equal(payload, reference.quantise(values))
    assert run_dequantise(payload, 5000, dtype).isfinite().all()


def test_payloads_of_several_ranks_into_strided_rows(emulate):
    emulate("random")
    values = [weights(1000, BF16, seed) for seed in range(3)]
    gathered = torch.stack([reference.quantise(v) for v in values])
    for width, column in ((1008, 8), (1003, 1)):
        out = torch.zeros(3, width, dtype=BF16)
        kernel.dequantise(gathered, 1000, out[:, column : column + 1000])
        assert torch.equal(out[:, column : column + 1000], reference.dequantise(gathered, 1000, BF16))
        assert out[:, :column].eq(0).all()
        assert out[:, column + 1000 :].eq(0).all()


def test_the_tables_of_the_source_are_those_of_the_format():
    from flopcast.kernels.variant import source_text

    text = source_text("nf4/layout.cuh")
    for value in (*layout.VALUES, *layout.THRESHOLDS):
        assert f"float({value!r})" in text


def test_ops_take_what_the_reference_takes():
    values = weights(3000, BF16).view(3, 1000).t()
    payload = quantise(values)
    assert torch.equal(payload, reference.quantise(values))
    assert torch.equal(dequantise(payload, 3000, FP32), reference.dequantise(payload, 3000, FP32))
    into = torch.empty(2, 3001, dtype=BF16)
    both = torch.stack((payload, payload))
    assert dequantise(both, 3000, BF16, out=into[:, :3000]).data_ptr() == into.data_ptr()
    assert torch.equal(into[:, :3000], reference.dequantise(both, 3000, BF16))
    out = torch.empty_like(payload)
    assert quantise(values, out=out) is out


def test_compiles_without_a_graph_break():
    def there_and_back(x):
        return dequantise(quantise(x), x.numel(), x.dtype) * 2

    x = weights(300, FP32)
    torch.testing.assert_close(
        torch.compile(there_and_back, backend="aot_eager", fullgraph=True)(x), there_and_back(x), rtol=0, atol=0
    )


def test_the_ops_are_registered_as_pytorch_wants_them():
    x = weights(300, FP32)
    payload = quantise(x)
    torch.library.opcheck(torch.ops.flopcast.nf4_quantise.default, (x, torch.empty_like(payload)))
    arguments = (payload.view(1, -1), 300, torch.empty(1, 300))
    torch.library.opcheck(torch.ops.flopcast.nf4_dequantise.default, arguments)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: quantise(torch.ones(4, dtype=torch.int64)), "dtype torch.int64"),
        (lambda: quantise(torch.ones(0)), "empty"),
        (lambda: quantise(torch.ones(64), out=torch.empty(48)), "out is torch.float32"),
        (lambda: dequantise(torch.zeros(48, dtype=torch.uint8), 65, FP32), "65 elements travel as"),
        (lambda: dequantise(torch.zeros(48, dtype=torch.uint8), 0, FP32), "0 elements"),
        (lambda: dequantise(torch.zeros(48, dtype=torch.uint8), 64, torch.float64), "dtype torch.float64"),
        (lambda: dequantise(torch.zeros(48, dtype=torch.uint8), 64, FP32, torch.empty(63)), "out is"),
        (lambda: dequantise(torch.zeros(48, 2, dtype=torch.uint8).t()[0], 64, FP32), "stride 2"),
    ],
)
def test_bad_input_is_a_sentence(call, words):
    with pytest.raises(InputError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_payload_off_its_alignment_is_refused_before_a_launch():
    from flopcast.kernels.nf4 import op

    payload = torch.zeros(49, dtype=torch.uint8)[1:]
    with pytest.raises(InputError, match="multiple of 16 bytes"):
        op._dequantise(payload.view(1, -1), 64, torch.empty(1, 64))
    with pytest.raises(InputError, match=r"nf4\.dequantise: payload does not start on a multiple of 16 bytes"):
        op.dequantise(payload, 64, FP32)  # on a CPU too
    with pytest.raises(InputError, match=r"nf4\.quantise: out does not start on a multiple of 16 bytes"):
        op.quantise(torch.ones(64), out=payload)
