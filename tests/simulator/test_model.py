"""Parameter counts against closed forms written out by hand, and how heads fall to tensor-parallel ranks."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopcast.errors import InputError
from flopcast.simulator.blocks.transformer import Attention, Mlp, TransformerBlock
from flopcast.simulator.catalogue import load_model
from flopcast.simulator.model import Model, count_parameters


def test_plamo_13b_layer_and_model_are_exact() -> None:
    model = load_model("plamo-13b")
    matrices = 5120 * 5120 + 2 * 5120 * 640 + 5120 * 5120 + 3 * 5120 * 16640
    assert matrices == 300 * 2**20
    assert model.num_layer_parameters == matrices + 5120 == 314_577_920
    assert model.num_parameters == 40 * 314_577_920 + 2 * 50432 * 5120 + 5120 == 13_099_545_600


def test_llama_65b_is_its_closed_form() -> None:
    hidden, ffn, layers, vocab = 8192, 22016, 80, 32000
    by_hand = layers * (4 * hidden**2 + 3 * hidden * ffn + 2 * hidden) + 2 * vocab * hidden + hidden
    assert load_model("llama-65b").num_parameters == by_hand == 65_285_660_672


def test_gpt_neox_20b_counts_every_bias() -> None:
    h, layers, vocab = 6144, 44, 50432
    layer = (3 * h * h + 3 * h) + (h * h + h) + (4 * h * h + 4 * h) + (4 * h * h + h) + 2 * 2 * h
    model = load_model("gpt-neox-20b")
    assert model.num_layer_parameters == layer
    assert model.num_parameters == layers * layer + 2 * vocab * h + 2 * h == 20_554_567_680


def test_megatron_counts_follow_the_papers_formula() -> None:
    """Narayanan et al. 2021, equation 2: P = 12 l h^2 (1 + 13/(12 h) + (V + s)/(12 l h))."""
    for name, layers, h in (("megatron-1.7b", 24, 2304), ("megatron-145b", 80, 12288)):
        formula = 12 * layers * h * h + 13 * layers * h + (51200 + 2048) * h
        assert load_model(name).num_parameters == formula + 2 * h  # and the final norm, which it leaves out


def test_qk_norm_and_post_norms_are_counted() -> None:
    plain = TransformerBlock(Attention(4, 2, 8), Mlp(64))
    normed = TransformerBlock(Attention(4, 2, 8, qk_norm=True), Mlp(64), num_norms=4)
    assert count_parameters(normed, 32) - count_parameters(plain, 32) == 2 * 8 + 2 * 32


def test_tied_embeddings_count_once_and_learned_positions_count() -> None:
    block = TransformerBlock(Attention(4, 4, 8), Mlp(64))

    def root(**changes: object) -> int:
        return Model("m", 32, 100, 16, (block,), **changes).num_root_parameters  # type: ignore[arg-type]

    assert root() == 100 * 32 + 32 + 100 * 32
    assert root(tied_embeddings=True) == 100 * 32 + 32
    assert root(positions="learned", num_positions=18) == root() + 18 * 32
    assert root(embedding_norm=True, norm="layernorm", norm_bias=True) == root() + 3 * 32
    assert root(head_bias=True) == root() + 100
    assert root(final_norm=False) == root() - 32


def test_a_model_of_two_kinds_of_layer_counts_both() -> None:
    wide = TransformerBlock(Attention(4, 4, 8, window=16), Mlp(128))
    narrow = TransformerBlock(Attention(4, 4, 8), Mlp(64))
    model = Model("m", 32, 100, 16, (wide, narrow, wide))
    assert model.kinds == {wide: 2, narrow: 1}
    assert {block.kind for block in model.layers} == {"transformer", "window-transformer"}
    layers = 2 * count_parameters(wide, 32) + count_parameters(narrow, 32)
    assert model.num_parameters == layers + model.num_root_parameters


@pytest.mark.parametrize(("tp", "kv_heads"), [(1, 5), (2, 5), (4, 5), (8, 5), (20, 2), (40, 1)])
def test_plamos_tiled_heads_need_every_kv_head_on_few_ranks(tp: int, kv_heads: int) -> None:
    """Query head i uses key/value head i mod 5: 40/tp neighbouring query heads touch min(40/tp, 5)."""
    assert load_model("plamo-13b").layers[0].kv_heads_per_rank(tp) == kv_heads


@pytest.mark.parametrize(("tp", "kv_heads"), [(1, 8), (2, 4), (8, 1), (16, 1), (64, 1)])
def test_grouped_heads_are_shared_out(tp: int, kv_heads: int) -> None:
    assert load_model("llama-2-70b").layers[0].kv_heads_per_rank(tp) == kv_heads


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from(["grouped", "tiled"]))
def test_one_rank_holds_all_kv_heads_and_more_ranks_never_fewer_in_sum(kv: int, group: int, layout: str) -> None:
    attention = Attention(kv * group, kv, 8, kv_layout=layout)  # type: ignore[arg-type]
    assert attention.kv_heads_per_rank(1) == kv
    for tp in (n for n in range(1, kv * group + 1) if kv * group % n == 0):
        assert tp * attention.kv_heads_per_rank(tp) >= kv


def test_tensor_parallel_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match="tp=7 does not divide num_heads=40"):
        load_model("plamo-13b").layers[0].check_tensor_parallel(7)
    with pytest.raises(InputError, match="tp=3 does not divide intermediate=64"):
        TransformerBlock(Attention(3, 3, 8), Mlp(64)).check_tensor_parallel(3)


def test_impossible_models_are_refused() -> None:
    with pytest.raises(InputError, match="6 query heads cannot share 4 key/value heads"):
        Attention(6, 4, 8)
    with pytest.raises(InputError, match="it has no layers"):
        Model("m", 32, 100, 16, ())
    with pytest.raises(InputError, match="hidden is 0; it must be a whole number of at least 1"):
        Model("m", 0, 100, 16, (TransformerBlock(Attention(4, 4, 8), Mlp(64)),))
    for field, value, words in (
        ("context", "4096", "context is '4096'; it must be a whole number"),
        ("norm", "layer_norm", "norm is 'layer_norm'; choose one of rmsnorm, layernorm"),
        ("positions", None, "positions is None; choose one of rotary, learned, alibi, none"),
        ("tied_embeddings", "no", "tied_embeddings is 'no'; it must be True or False"),
    ):
        with pytest.raises(InputError, match=f"model 'PLaMo-13B': {words}"):
            replace(load_model("plamo-13b"), **{field: value})  # type: ignore[arg-type]
