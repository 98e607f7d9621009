import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flopcast.errors import InputError
from flopcast.kernels.rope import kernel, reference
from flopcast.kernels.rope.op import rope, rope_, rotary_tables

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
ORDERS = ["forward", "reverse", "random"]
# query heads, key heads, head size, angles, dtype
COMPILED = [
    (40, 5, 128, 64, BF16),
    (8, 8, 64, 32, FP16),
    (4, 1, 96, 12, FP32),
    (3, 1, 66, 33, BF16),
    (71, 1, 64, 32, BF16),
]


def inputs(batch, tokens, q_heads, k_heads, head, dtype, seed=0):
    """Views of one QKV buffer [B, S, (Hq + 2 Hkv) Dh]."""
    generator = torch.Generator().manual_seed(seed)
    width = (q_heads + 2 * k_heads) * head
    qkv = torch.randn(batch, tokens, width, generator=generator).to(dtype).view(batch, tokens, -1, head)
    return qkv[:, :, :q_heads], qkv[:, :, q_heads : q_heads + k_heads]


def expected(x, cosines, sines, positions, direction=1.0):
    """Complex numbers in float64: the pair (first, second) times exp(i angle)."""
    half = cosines.shape[1]
    angles = torch.complex(cosines.double(), direction * sines.double())[positions]
    angles = angles.view(-1, x.shape[1], 1, half)
    turned = torch.complex(x[..., :half].double(), x[..., half : 2 * half].double()) * angles
    return torch.cat((turned.real, turned.imag, x[..., 2 * half :].double()), -1)


def kernel_rope(q, k, cosines, sines, positions):
    return kernel.rope(q, k, cosines, sines, positions, backward=False)


def packed(tokens):
    """Two documents, each counted from 0."""
    return torch.cat((torch.arange(tokens // 2), torch.arange(tokens - tokens // 2)))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("q_heads", "k_heads", "head", "half", "dtype"), COMPILED)
def test_kernel_agrees_with_float64(order, q_heads, k_heads, head, half, dtype, emulate, assert_near):
    emulate(order)
    q, k = inputs(2, 9, q_heads, k_heads, head, dtype)
    tables = rotary_tables(2 * half, 16)
    for backward in (False, True):
        found = kernel.rope(q, k, *tables, packed(9), backward)
        for before, after in zip((q, k), found, strict=True):
            assert_near(after, expected(before, *tables, packed(9), -1.0 if backward else 1.0))


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
@pytest.mark.parametrize("half", [32, 20])
def test_reference_agrees_with_float64(dtype, half, assert_near):
    q, k = inputs(2, 9, 4, 2, 64, dtype)
    tables = rotary_tables(2 * half, 16)
    positions = torch.stack((packed(9), torch.arange(9) + 7))
    for before, after in zip((q, k), reference.rope(q, k, *tables, positions, False), strict=True):
        assert_near(after, expected(before, *tables, positions))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    case=st.sampled_from(COMPILED),
    batch=st.integers(1, 3),
    tokens=st.integers(1, 11),
    layout=st.sampled_from(["qkv", "dense", "heads first", "shifted"]),
    positions=st.sampled_from(["none", "shared", "each"]),
    special=st.sampled_from([1.0, float("nan"), float("inf"), 1e-30]),
    order=st.sampled_from(ORDERS),
    in_place=st.booleans(),
)
def test_kernel_agrees_with_the_reference_for_any_layout(
    case, batch, tokens, layout, positions, special, order, in_place, emulate, assert_near
):
    q_heads, k_heads, head, half, dtype = case
    q, k = inputs(batch, tokens, q_heads, k_heads, head, dtype)
    if layout == "dense":
        q, k = q.contiguous(), k.contiguous()
    if layout == "heads first":
        q, k = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k))
    if layout == "shifted":
        q, k = (torch.cat((t.new_zeros(3), t.flatten()))[3:].view(t.shape) for t in (q, k))
    q[0, 0, 0, 0] = special
    tables = rotary_tables(2 * half, 11)
    rows = {
        "none": None,
        "shared": torch.arange(tokens).flip(0),
        "each": torch.arange(batch * tokens).view(batch, tokens) % 11,
    }[positions]
    emulate(order)
    wanted = reference.rope(q, k, *tables, rows, False)
    if in_place:
        kernel.rope_in_place(q, k, *tables, rows)
        found = q, k
    else:
        found = kernel.rope(q, k, *tables, rows, False)
    for a, b in zip(found, wanted, strict=True):
        assert_near(a, b)


def test_the_kernel_reads_nothing_outside_the_tables(emulate, monkeypatch):
    emulate("forward")
    monkeypatch.setattr(kernel, "check_positions", lambda positions, rows: None)
    q, k = inputs(1, 4, 4, 1, 96, FP32)
    found, _ = kernel.rope(q, k, *rotary_tables(24, 4), torch.tensor([0, 4, -1, 2**40]), False)
    assert found[0, 0].isfinite().all()
    assert found[0, 1:, :, :24].isnan().all()
    assert torch.equal(found[..., 24:], q[..., 24:])


@pytest.mark.parametrize("shape", [(0, 7), (2, 0), (0, 0)])
@pytest.mark.parametrize("with_positions", [False, True])
def test_no_tokens_give_none(shape, with_positions):
    q, k = torch.ones(*shape, 4, 8, requires_grad=True), torch.ones(*shape, 2, 8)
    positions = torch.zeros(shape, dtype=torch.int64) if with_positions else None
    turned = rope(q, k, *rotary_tables(8, 16), positions)
    assert [t.shape for t in turned] == [q.shape, k.shape]
    turned[0].sum().backward()
    assert q.grad.shape == q.shape


def test_it_is_hugging_faces(assert_near):
    q, k = inputs(2, 5, 4, 2, 64, FP32)
    cosines, sines = rotary_tables(64, 5)
    cosine, sine = (torch.cat((t, t), -1).view(1, 5, 1, 64) for t in (cosines, sines))
    for before, after in zip((q, k), rope(q, k, cosines, sines), strict=True):
        half_turned = torch.cat((-before[..., 32:], before[..., :32]), -1)
        assert_near(after, before * cosine + half_turned * sine)


def test_tables_are_the_angles():
    cosines, sines = rotary_tables(8, 100, base=10000.0)
    assert cosines[0].eq(1).all()
    assert float(cosines[70, 1]) == pytest.approx(torch.tensor(7.0, dtype=torch.float64).cos().item(), abs=1e-7)
    assert float(sines[70, 2]) == pytest.approx(torch.tensor(0.7, dtype=torch.float64).sin().item(), abs=1e-7)


def test_gradients_flow_through_views_of_one_buffer():
    qkv = torch.randn(2, 6, 8 * 16, dtype=FP32, requires_grad=True)
    tables = rotary_tables(16, 6)

    def parts(buffer):
        q, k, _ = buffer.view(2, 6, 8, 16).split((4, 2, 2), dim=2)
        return q, k

    turned = rope(*parts(qkv), *tables)
    (found,) = torch.autograd.grad(sum(t.square().mean() * t.sum() for t in turned), qkv)
    wide = qkv.detach().double().requires_grad_()
    want = (expected(t, *tables, torch.arange(6)) for t in parts(wide))
    (wanted,) = torch.autograd.grad(sum(t.square().mean() * t.sum() for t in want), wide)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_expanded_gradients():
    q, k = (t.clone().requires_grad_() for t in inputs(1, 3, 2, 1, 64, FP32))
    turned, _ = rope(q, k, *rotary_tables(64, 3))
    turned.sum().backward()
    assert q.grad is not None
    assert q.grad.abs().sum() > 0


def test_in_place_leaves_the_values_of_the_buffer_alone():
    buffer = torch.randn(2, 3, 4, 64)
    before = buffer.clone()
    q, k, v = buffer.split((2, 1, 1), dim=2)
    tables = rotary_tables(64, 3)
    want = rope(q.clone(), k.clone(), *tables)
    rope_(q, k, *tables)
    assert torch.equal(torch.cat(want, 2), buffer[:, :, :3])
    assert torch.equal(v, before[:, :, 3:])


def test_a_second_derivative_is_refused_in_a_sentence():
    q, k = torch.randn(1, 5, 2, 64, requires_grad=True), torch.randn(1, 5, 2, 64)
    with pytest.raises(InputError, match="rope: its backward has no derivative"):
        torch.autograd.grad(rope(q, k, *rotary_tables(64, 5))[0].sum(), q, create_graph=True)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("engine", ["eager", "aot_eager"])
def test_compiles_without_a_graph_break(engine):
    tables = rotary_tables(64, 5)
    q, k = (t.clone().requires_grad_() for t in inputs(2, 5, 4, 2, 64, FP32))

    def turned(q, k):
        first, second = rope(q, k, *tables, packed(5))
        return first.sin().sum() + second.sum()

    found = torch.compile(turned, backend=engine, fullgraph=True)(q, k)
    torch.testing.assert_close(found, turned(q, k))
    for a, b in zip(*(torch.autograd.grad(t, (q, k)) for t in (found, turned(q, k))), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(turned, backend=engine, fullgraph=True)(q, k), found)


def test_the_op_is_registered_as_pytorch_wants_it():
    q, k = inputs(2, 5, 4, 2, 64, FP32)
    ops = torch.ops.flopcast
    torch.library.opcheck(ops.rope.default, (q, k, *rotary_tables(64, 5), packed(5), False))
    torch.library.opcheck(ops.rope_in_place.default, (q.clone(), k.clone(), *rotary_tables(64, 5), None))


Q, K, TABLES = torch.ones(1, 4, 4, 64), torch.ones(1, 4, 2, 64), rotary_tables(64, 4)


@pytest.mark.parametrize(
    ("q", "k", "tables", "positions", "words"),
    [
        (Q.double(), K.double(), TABLES, None, "dtype torch.float64"),
        (Q, K.bfloat16(), TABLES, None, "k is torch.bfloat16"),
        (Q, torch.ones(1, 4, 3, 64), TABLES, None, "4 query heads do not share 3 key heads"),
        (Q, torch.ones(1, 5, 2, 64), TABLES, None, "number of heads only"),
        (Q, torch.ones(1, 4, 2, 32), TABLES, None, "number of heads only"),
        (Q[0], K[0], TABLES, None, "batch, tokens, heads"),
        (torch.ones(1, 4, 64, 4).transpose(2, 3), K, TABLES, None, "stride 4"),
        (Q, K, rotary_tables(64, 3), None, "4 tokens need as many rows, the tables have 3"),
        (Q, K, rotary_tables(66, 4), None, "turn 66 elements, a head has 64"),
        (Q, K, TABLES, torch.tensor([0, 1, 2, 4]), "position 4 is outside the tables of 4 rows"),
        (Q, K, TABLES, torch.tensor([0, -1, 2, 3]), "position -1 is outside"),
        (Q, K, TABLES, torch.arange(5), "positions have shape"),
        (Q, K, TABLES, torch.arange(4, dtype=torch.int32), "positions are torch.int32"),
        (Q, K, (TABLES[0].bfloat16(), TABLES[1].bfloat16()), None, "make both float32"),
        (Q, K, (TABLES[0].t().contiguous().t(), TABLES[1]), None, "tables are not contiguous"),
        (Q, K, tuple(t.to("meta") for t in TABLES), None, "tables are on meta"),
    ],
)
def test_bad_input_is_a_sentence(q, k, tables, positions, words):
    with pytest.raises(InputError, match=words) as error:
        rope(q, k, *tables, positions)
    assert "\n" not in str(error.value)


def test_tables_of_fewer_than_no_positions_are_a_sentence():
    with pytest.raises(InputError, match="num_positions is -4; give at least 0"):
        rotary_tables(64, -4)


def test_in_place_refuses_what_it_cannot_do():
    with pytest.raises(InputError, match="requires a gradient"):
        rope_(Q.clone().requires_grad_(), K.clone(), *TABLES)
    with pytest.raises(InputError, match="expanded"):
        rope_(Q.clone(), torch.ones(1, 4, 1, 64).expand(1, 4, 2, 64), *TABLES)


def test_positions_changed_in_place_are_looked_at_again():
    positions = torch.arange(4)
    rope(Q, K, *TABLES, positions)
    positions += 1
    with pytest.raises(InputError, match="position 4"):
        rope(Q, K, *TABLES, positions)


def test_positions_made_in_inference_mode_are_looked_at_every_time(emulate, assert_near):
    emulate("forward")
    with torch.inference_mode():
        q, k, positions = Q.clone(), K.clone(), torch.arange(4)
        for turn in (rope, kernel_rope):
            for before, after in zip((q, k), turn(q, k, *TABLES, positions), strict=True):
                assert_near(after, expected(before, *TABLES, positions))
        rope_(q, k, *TABLES, positions)
        assert_near(q, expected(Q, *TABLES, positions))
        positions += 1
        for turn in (rope, rope_, kernel_rope):
            with pytest.raises(InputError, match="position 4"):
                turn(q, k, *TABLES, positions)


def test_positions_made_before_inference_mode_are_looked_at_once(monkeypatch):
    positions = torch.arange(4)
    looks = []
    monkeypatch.setattr(torch, "aminmax", lambda t, look=torch.aminmax: looks.append(t) or look(t))
    with torch.inference_mode():
        for _ in range(3):
            rope(Q, K, *TABLES, positions)
        assert len(looks) == 1
        positions += 1
        with pytest.raises(InputError, match="position 4"):
            rope(Q, K, *TABLES, positions)
