"""The decoder against its description in the simulator and against plain PyTorch."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from builders import small_model
from torch.nn import functional as F

from flopcast.errors import InputError
from flopcast.simulator.blocks.transformer import Attention, Mlp, TransformerBlock
from flopcast.simulator.catalogue import load_model, model_names
from flopcast.simulator.model import Model
from flopcast.trainer import attention as attention_module
from flopcast.trainer.attention import Documents, attend, permuted_heads, published_heads
from flopcast.trainer.engine.weights import draw
from flopcast.trainer.loss import IGNORED, cross_entropy
from flopcast.trainer.model import Decoder, parameter_tensors
from flopcast.trainer.numerics import Numerics

TINY = small_model(hidden=64, num_heads=4, num_kv_heads=2, intermediate=96, num_layers=2, vocab_size=80)
TOKENS = torch.arange(48).view(2, 24) * 11 % 80
# Of layers that it has, but with norms behind their parts, or of which only some have positions.
ONLY_FORECAST = {
    **dict.fromkeys(("olmo-2-7b", "olmo-2-13b", "olmo-2-32b"), "norms behind its parts .post_norm. cannot be trained"),
    "smollm3-3b": r"its layers turn \[0, 64\] pairs of features",
}


def trainable() -> list[str]:
    models = {name: load_model(name) for name in model_names()}
    return [
        name
        for name, model in models.items()
        if model.positions != "alibi" and all(isinstance(block, TransformerBlock) for block in model.kinds)
        if name not in ONLY_FORECAST
    ]


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v2-lite", "plamo-2-1b"])
def test_layers_that_it_lacks_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="which the trainer lacks"):
        Decoder(load_model(name))


@pytest.mark.parametrize(("name", "words"), ONLY_FORECAST.items())
def test_what_only_the_forecast_knows_of_a_layer_is_refused(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Decoder(load_model(name))


def test_scores_of_its_own_are_refused() -> None:
    block = TransformerBlock(Attention(4, 2, 16, sinks=True), Mlp(96))
    with pytest.raises(InputError, match=r"scores of its own .sinks. cannot be trained"):
        Decoder(dataclasses.replace(TINY, layers=(block,)))


@pytest.mark.parametrize("name", trainable())
def test_parameters_are_those_the_forecast_counts(name: str) -> None:
    """Names and shapes tensor by tensor, first and last layer, and the number of parameters of the whole model."""
    model = load_model(name)
    with torch.device("meta"):
        decoder = Decoder(dataclasses.replace(model, layers=(model.layers[0], model.layers[-1])))
        one = {n: Decoder(model, layers=[n]) for n in {model.layers.index(kind) for kind in model.kinds}}
    shapes = {name: tuple(parameter.shape) for name, parameter in decoder.named_parameters()}
    described = parameter_tensors(decoder.model)
    assert shapes == {name: tensor.shape for name, tensor in described.items()}
    per_layer = {number: sum(p.numel() for p in stage.layers.parameters()) for number, stage in one.items()}
    total = sum(per_layer[model.layers.index(layer)] for layer in model.layers)
    outside = sum(p.numel() for name, p in decoder.named_parameters() if not name.startswith("layers."))
    assert total + outside == model.num_parameters


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_loss_is_cross_entropy_with_z_loss(z_loss: float, fused: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 50, generator=generator, dtype=torch.float64).mul(3).float().requires_grad_()
    targets = torch.randint(0, 50, (12,), generator=generator)
    targets[3] = IGNORED
    counted = targets != IGNORED
    expected = F.cross_entropy(logits, targets) + z_loss * logits.logsumexp(-1)[counted].square().mean()
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    found = cross_entropy(logits * 1, targets, z_loss, fused=fused)
    (gradient,) = torch.autograd.grad(found, logits)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


def test_a_batch_without_targets_has_no_loss_and_no_gradient() -> None:
    logits = torch.randn(4, 9, requires_grad=True)
    loss = cross_entropy(logits, torch.full((4,), IGNORED))
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros(4, 9))  # type: ignore[arg-type]


@pytest.mark.parametrize(("window", "packed"), [(None, False), (5, False), (None, True), (5, True)])
def test_attention_sees_what_it_should(monkeypatch: pytest.MonkeyPatch, window: int | None, packed: bool) -> None:
    """Score by score in float64: causal, within the window, within the document, over grouped key/value heads."""
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(2, 16, 6, 8, generator=generator, dtype=torch.float64)
    k, v = (torch.randn(2, 16, 2, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    positions = torch.tensor([[*range(7), *range(9)], [*range(16)]])
    documents = Documents.of(positions) if packed else None
    if documents is not None:
        assert documents.bounds.tolist() == [0, 7, 16, 32]
        assert documents.bounds.dtype == torch.int32
    numbers = [[1] * 7 + [2] * 9, [1] * 16]
    expected = torch.empty_like(q)
    for b in range(2):
        for i in range(16):
            seen = [
                j
                for j in range(i + 1)
                if (window is None or i - j < window) and (not packed or numbers[b][i] == numbers[b][j])
            ]
            for h in range(6):
                weights = (k[b, seen, h // 3] @ q[b, i, h] / 8**0.5).softmax(0)
                expected[b, i, h] = weights @ v[b, seen, h // 3]
    torch.testing.assert_close(attend(q, k, v, window, documents), expected)

    def each_by_itself(q, k, v, bounds, bounds_k, longest, longest_k, *, window_size, enable_gqa):  # type: ignore[no-untyped-def]
        """What the GPU's kernel computes, sequence after sequence."""
        assert enable_gqa
        assert (longest, longest_k) == (16, 16)
        assert torch.equal(bounds, bounds_k)
        window = None if window_size[0] < 0 else window_size[0] + 1
        parts = [
            attend(*(t[first:last][None] for t in (q, k, v)), window)[0] for first, last in pairwise(bounds.tolist())
        ]
        return torch.cat(parts)

    monkeypatch.setattr(attention_module, "varlen_attn", each_by_itself)
    torch.testing.assert_close(attention_module._by_length(q, k, v, window, documents), expected)

    def without_sharing(q, k, v, *arguments, window_size):  # type: ignore[no-untyped-def]
        assert k.shape == v.shape == q.shape
        return each_by_itself(q, k, v, *arguments, window_size=window_size, enable_gqa=True)

    monkeypatch.setattr(attention_module, "varlen_attn", without_sharing)
    monkeypatch.setattr(attention_module, "SHARES_HEADS", False)
    torch.testing.assert_close(attention_module._by_length(q, k, v, window, documents), expected)


def test_documents_of_a_packed_sequence_do_not_see_each_other() -> None:
    decoder = Decoder(TINY)
    decoder.load_state_dict(draw(TINY, 3))
    lengths = (9, 15)
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(2, -1).contiguous()
    with torch.no_grad():
        packed = decoder(TOKENS, positions=positions)
        alone = torch.cat([decoder(part) for part in TOKENS.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-6)


def test_tiled_heads_become_grouped() -> None:
    attention = Attention(6, 3, 4, kv_layout="tiled")
    order = published_heads(attention)
    assert order == [0, 3, 1, 4, 2, 5]
    assert [head % 3 for head in order] == [slot // 2 for slot in range(6)]
    matrix = torch.arange(24.0).view(24, 1)
    assert permuted_heads(matrix, order, 4, 0)[4:8, 0].tolist() == [12, 13, 14, 15]


@pytest.mark.parametrize(("recompute", "layers"), [("selective", 0), ("full", 0), ("full", 1)])
def test_recomputing_changes_no_gradient(recompute: str, layers: int) -> None:
    gradients = []
    for mode, number in (("none", 0), (recompute, layers)):
        decoder = Decoder(TINY, recompute=mode, recompute_layers=number)  # type: ignore[arg-type]
        decoder.load_state_dict(draw(TINY, 3))
        decoder(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
        gradients.append([parameter.grad for parameter in decoder.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))  # type: ignore[arg-type]


def test_the_first_layers_alone_are_computed_again() -> None:
    """Of three layers the first two run twice, from the last of them on."""
    ran: list[int] = []
    decoder = Decoder(dataclasses.replace(TINY, layers=TINY.layers[:1] * 3), recompute="full", recompute_layers=2)
    for place, layer in enumerate(decoder.layers.values()):
        layer.get_submodule("norm1").register_forward_hook(lambda *_, place=place: ran.append(place))
    decoder.load_state_dict(draw(decoder.model, 3))
    decoder(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
    assert ran == [0, 1, 2, 1, 0]


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu"])
def test_kernels_compute_what_eager_pytorch_does(activation: str) -> None:
    """The whole model, kernels on against off, in fp32: gated MLP, norms of heads, part of each head turned."""
    block = TransformerBlock(Attention(4, 2, 64, qk_norm=True, rotary_share=0.5), Mlp(96))
    model = dataclasses.replace(TINY, layers=(block,) * 2)
    numerics = Numerics(activation=activation)  # type: ignore[arg-type]
    found = []
    for fused in (True, False):
        decoder = Decoder(model, numerics, fused_kernels=fused)
        decoder.load_state_dict(draw(model, 3))
        loss = decoder(TOKENS[:, :-1], TOKENS[:, 1:])
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in decoder.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (dataclasses.replace(TINY, positions="alibi"), "ALiBi"),
        (dataclasses.replace(TINY, layers=(TransformerBlock(Attention(4, 2, 16), Mlp(96), num_norms=1),)), "2 norms"),
        (dataclasses.replace(TINY, tied_embeddings=True, embedding_rows=90), "ties a head"),
    ],
    ids=["alibi", "one norm in sequence", "tied rows"],
)
def test_what_cannot_be_trained_is_refused(model: Model, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Decoder(model)
