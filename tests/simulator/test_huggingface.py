"""config.json files as published become models with exactly the parameters that transformers counts."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_configs import SMALL_CONFIGS

from flopcast.errors import InputError
from flopcast.simulator.blocks.transformer import TransformerBlock
from flopcast.simulator.catalogue import load_model
from flopcast.simulator.huggingface import known_types, model_from_config, read_config
from flopcast.simulator.model import Model

CONFIGS = Path(__file__).parent / "configs"

# From the config.json of that name: the elements of every parameter, tied ones once, of
# transformers.AutoModelForCausalLM.from_config(...) on torch's meta device (transformers 5.23.0,
# torch 2.13.0).
# PLaMo and PLaMo 2 are not in transformers; their counts are the closed forms in test_model.py. Neither is the first
# DeepSeekMoE, whose count is the Hub's, of its safetensors. Those of Gemma 3 4B and Llama 4 are of their text_config,
# without images; Kimi K2's is of DeepseekV3Config. Types of which no published config.json stands here are counted in
# test_transformers.py.
COUNTS = {
    "bloom-560m": 559_214_592,
    "command-r-plus": 103_810_674_688,
    "deepseek-moe-16b": 16_375_728_128,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_404_352,
    "falcon-40b": 41_303_293_952,
    "falcon-7b": 6_921_720_704,
    "gemma-2-2b": 2_614_341_888,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_263_168,
    "gemma-7b": 8_537_680_896,
    "glm-4.5-air": 106_852_245_504,
    "gpt-neox-20b": 20_554_567_680,
    "gpt-oss-120b": 116_829_156_672,
    "gpt2": 124_439_808,
    "kimi-k2": 1_026_408_209_408,
    "llama-2-7b": 6_738_415_616,
    "llama-3.2-1b": 1_235_814_400,
    "llama-4-scout": 107_769_861_120,
    "llama-65b": 65_285_660_672,
    "minimax-m2": 228_689_748_992,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "mpt-7b": 6_649_286_656,
    "olmo-2-32b": 32_234_279_936,
    "opt-1.3b": 1_315_758_080,
    "phi-2": 2_779_683_840,
    "phi-3-mini": 3_821_079_552,
    "plamo-13b": 13_099_545_600,
    "plamo-2-1b": 1_291_441_920,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "qwen2-0.5b": 494_032_768,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-8b": 8_190_735_360,
    "smollm3-3b": 3_075_098_624,
}

SMALL: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "vocab_size": 1000,
    "max_position_embeddings": 256,
}
SMALL_GPT: dict[str, Any] = {"n_embd": 512, "n_layer": 3, "n_head": 8, "vocab_size": 1000, "n_positions": 256}
SMALL_OPT: dict[str, Any] = {
    "hidden_size": 512,
    "ffn_dim": 2000,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "vocab_size": 1000,
    "max_position_embeddings": 256,
}
SMALL_FALCON: dict[str, Any] = {
    "hidden_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "vocab_size": 1000,
}

# The switches of each family, counted as above.
VARIANTS: list[tuple[str, dict[str, Any], int]] = [
    ("llama", {**SMALL}, 10_661_376),
    (
        "llama",
        {
            **SMALL,
            "num_key_value_heads": 2,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
        8_983_552,
    ),
    ("llama", {**SMALL, "num_key_value_heads": 4, "head_dim": 96}, 11_054_592),
    ("mistral", {**SMALL}, 10_661_376),
    ("mistral", {**SMALL, "num_key_value_heads": 2, "sliding_window": None, "head_dim": 32}, 8_498_688),
    ("qwen2", {**SMALL, "num_key_value_heads": 2}, 9_484_032),
    ("qwen3", {**SMALL, "num_key_value_heads": 2}, 11_448_576),
    (
        "qwen3",
        {
            **SMALL,
            "num_key_value_heads": 2,
            "attention_bias": True,
            "head_dim": 64,
            "tie_word_embeddings": True,
        },
        8_973_952,
    ),
    ("gemma", {**SMALL, "num_key_value_heads": 1, "head_dim": 64}, 8_773_120),
    ("gemma", {**SMALL, "num_attention_heads": 16}, 32_169_472),
    ("gemma2", {**SMALL, "num_key_value_heads": 4}, 16_443_904),
    ("gemma3_text", {**SMALL, "num_key_value_heads": 2, "head_dim": 128}, 10_939_648),
    ("gpt2", {**SMALL_GPT}, 10_101_248),
    ("gpt2", {**SMALL_GPT, "n_inner": 1000, "tie_word_embeddings": False}, 7_390_648),
    ("gpt_neox", {**SMALL}, 8_514_176),
    (
        "gpt_neox",
        {**SMALL, "attention_bias": False, "tie_word_embeddings": True, "use_parallel_residual": False},
        7_996_032,
    ),
    ("opt", {**SMALL_OPT}, 9_954_672),
    ("opt", {**SMALL_OPT, "do_layer_norm_before": False}, 9_953_648),
    ("opt", {**SMALL_OPT, "enable_bias": False, "tie_word_embeddings": False}, 10_452_992),
    ("falcon", {**SMALL_FALCON}, 8_577_024),
    ("falcon", {**SMALL_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}, 8_776_704),
    (
        "falcon",
        {**SMALL_FALCON, "multi_query": False, "parallel_attn": False, "bias": True, "alibi": True},
        9_970_176,
    ),
    (
        "falcon",
        {
            **SMALL_FALCON,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
            "tie_word_embeddings": False,
        },
        9_285_632,
    ),
    ("mpt", {"d_model": 512, "n_heads": 8, "n_layers": 3, "vocab_size": 1000, "max_seq_len": 256}, 9_952_768),
    ("bloom", {"hidden_size": 512, "n_layer": 3, "n_head": 8, "vocab_size": 1000}, 9_971_200),
    (
        "bloom",
        {"n_embed": 512, "num_hidden_layers": 3, "num_attention_heads": 8, "vocab_size": 1000},
        9_971_200,
    ),
    ("phi", {**SMALL}, 8_512_104),
    ("phi", {**SMALL, "num_key_value_heads": 2}, 7_330_152),
    ("phi3", {**SMALL, "num_key_value_heads": 2}, 9_481_728),
]


def block(model: Model, layer: int = 0) -> TransformerBlock:
    """A layer as the kind it is."""
    found = model.layers[layer]
    assert isinstance(found, TransformerBlock)
    return found


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_published_configs_have_the_parameters_of_transformers(name: str) -> None:
    assert read_config(CONFIGS / f"{name}.json").num_parameters == COUNTS[name]


@pytest.mark.parametrize(("kind", "config", "count"), VARIANTS)
def test_every_switch_counts_as_in_transformers(kind: str, config: dict[str, Any], count: int) -> None:
    assert model_from_config({"model_type": kind, **config}, "m").num_parameters == count


def test_every_known_type_is_counted() -> None:
    kinds = {json.loads((CONFIGS / f"{name}.json").read_text())["model_type"] for name in COUNTS}
    assert kinds | {kind for kind, _ in SMALL_CONFIGS} == set(known_types())
    assert {path.stem for path in CONFIGS.glob("*.json")} == set(COUNTS)


@pytest.mark.parametrize(
    ("config", "entry"),
    [
        ("plamo-13b", "plamo-13b"),
        ("llama-65b", "llama-65b"),
        ("llama-2-7b", "llama-2-7b"),
        ("llama-3.2-1b", "llama-3.2-1b"),
        ("mistral-7b", "mistral-7b"),
        ("qwen2-0.5b", "qwen2-0.5b"),
        ("qwen3-8b", "qwen3-8b"),
        ("gpt-neox-20b", "gpt-neox-20b"),
        ("gpt2", "gpt2"),
        ("opt-1.3b", "opt-1.3b"),
        ("falcon-7b", "falcon-7b"),
        ("falcon-40b", "falcon-40b"),
        ("mpt-7b", "mpt-7b-alibi"),
        ("gemma-7b", "gemma-7b"),
        ("gemma-2-2b", "gemma-2-2b"),
        ("phi-2", "phi-2"),
        ("mixtral-8x7b", "mixtral-8x7b"),
        ("deepseek-moe-16b", "deepseek-moe-16b"),
        ("qwen1.5-moe-a2.7b", "qwen1.5-moe-a2.7b"),
        ("qwen3-30b-a3b", "qwen3-30b-a3b"),
        ("plamo-2-1b", "plamo-2-1b"),
        ("gpt-oss-120b", "gpt-oss-120b"),
        ("kimi-k2", "kimi-k2"),
        ("olmo-2-32b", "olmo-2-32b"),
        ("smollm3-3b", "smollm3-3b"),
    ],
)
def test_the_catalogue_says_what_the_config_says(config: str, entry: str) -> None:
    read, catalogued = read_config(CONFIGS / f"{config}.json"), load_model(entry)
    assert read.layers == catalogued.layers
    assert read.root_tensors() == catalogued.root_tensors()
    assert (read.positions, read.norm) == (catalogued.positions, catalogued.norm)
    # A config.json says what a model was extended to, the catalogue what most of its pre-training ran on.
    assert read.context >= catalogued.context


def test_plamos_shared_heads_win_over_its_num_key_value_heads() -> None:
    config = json.loads((CONFIGS / "plamo-13b.json").read_text())
    assert config["num_key_value_heads"] == 40
    attention = block(model_from_config(config, "plamo")).attention
    assert (attention.num_kv_heads, attention.kv_layout) == (5, "tiled")
    del config["n_shared_head"]
    with pytest.raises(InputError, match="n_shared_head is missing; a plamo config"):
        model_from_config(config, "plamo")


def test_windows_follow_each_familys_rule() -> None:
    def windows(kind: str, **config: object) -> list[int | None]:
        model = model_from_config({"model_type": kind, **SMALL, **config}, "m")
        return [block(model, layer).attention.window for layer in range(model.num_layers)]

    assert windows("mistral") == [4096] * 3
    assert windows("mistral", sliding_window=None) == [None] * 3
    assert windows("gemma2", sliding_window=128) == [128, None, 128]
    assert windows("gemma3_text", sliding_window_pattern=3, sliding_window=64) == [64, 64, None]
    assert windows("qwen2", sliding_window=64) == [None] * 3
    assert windows("qwen2", use_sliding_window=True, max_window_layers=1, sliding_window=64) == [None, 64, 64]
    types = ["full_attention", "sliding_attention", "full_attention"]
    assert windows("gemma2", layer_types=types, sliding_window=8) == [None, 8, None]


def test_rotary_shares() -> None:
    def share(kind: str, **config: object) -> float:
        return block(model_from_config({"model_type": kind, **SMALL, **config}, "m")).attention.rotary_share

    assert share("gpt_neox") == 0.25
    assert share("gpt_neox", rotary_pct=1.0) == 1.0
    assert share("phi") == 0.5
    assert share("phi", rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.4}) == 0.4
    assert share("llama") == 1.0


def test_mpt_without_alibi_learns_positions_and_may_have_biases() -> None:
    """As llm-foundry pretrains: 125,311,488 parameters in its benchmark table, MPT-125M at 2048 tokens."""
    config = {
        "model_type": "mpt",
        "d_model": 768,
        "n_heads": 12,
        "n_layers": 12,
        "vocab_size": 50368,
        "max_seq_len": 2048,
        "no_bias": False,
        "attn_config": {"alibi": False},
    }
    model = model_from_config(config, "mpt")
    assert model.num_parameters == 125_311_488
    assert model.positions == "learned"


def test_mpt_grouped_queries() -> None:
    config = {"model_type": "mpt", "d_model": 512, "n_heads": 8, "n_layers": 1, "vocab_size": 100}
    config |= {"max_seq_len": 64, "attn_config": {"attn_type": "grouped_query_attention", "kv_n_heads": 2}}
    attention = block(model_from_config(config, "mpt")).attention
    assert (attention.num_kv_heads, attention.fused_qkv) == (2, False)


def test_bloom_without_a_context_says_what_is_assumed() -> None:
    config = {"model_type": "bloom", "hidden_size": 64, "n_layer": 1, "n_head": 4, "vocab_size": 100}
    assert model_from_config(config, "m").assumptions[0].startswith("context: 2048 tokens is assumed")
    assert model_from_config({**config, "seq_length": 512}, "m").assumptions == ()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": None}, "hidden_size is missing; a llama config.json needs it"),
        ({"vocab_size": "32000"}, "vocab_size is '32000'; write a positive whole number"),
        ({"vocab_size": 32000.0}, "vocab_size is 32000.0; write a positive whole number"),
        ({"vocab_size": float("nan")}, "vocab_size is nan; write a positive whole number"),
        ({"vocab_size": -1}, "vocab_size is -1; write a positive whole number"),
        ({"vocab_size": True}, "vocab_size is True; write a positive whole number"),
        ({"vocab_size": 10**30}, "it must be at most 1000000000"),
        ({"num_hidden_layers": 10**8}, "num_hidden_layers is 100000000; it must be at most 10000"),
        (
            {"num_attention_heads": 7},
            "num_attention_heads is 7, which does not divide hidden_size = 512; choose one that does",
        ),
        (
            {"num_key_value_heads": 3},
            "num_key_value_heads is 3, which does not divide num_attention_heads = 8",
        ),
        ({"num_key_value_heads": 16}, "num_key_value_heads is 16, which does not divide"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; write true or false"),
        ({"rope_parameters": 3, "model_type": "phi"}, "rope_parameters is 3; write an object in braces"),
        (
            {"model_type": "phi", "partial_rotary_factor": 4},
            "partial_rotary_factor is 4; write a number from 0",
        ),
        ({"model_type": "phi", "qk_layernorm": True}, "qk_layernorm is True; norms on q and k"),
        (
            {"model_type": "gemma2", "layer_types": ["full_attention"]},
            "layer_types has 1 entries for 3 layers",
        ),
        ({"model_type": "gemma2", "layer_types": ["mamba"] * 3}, "layer_types holds 'mamba'; write"),
        ({"model_type": "gemma2", "layer_types": 3}, "layer_types is 3; write a list of texts"),
        ({"model_type": None}, "model_type is missing"),
        ({"model_type": 3}, "model_type is 3; write one of arcee, bloom"),
        ({"model_type": "llamma"}, "model_type 'llamma' is not supported (did you mean 'llama'"),
        ({"model_type": "bert"}, "known types: arcee, bloom, cohere, cohere2, deepseek"),
        ({"model_type": "mllama", "text_config": {}}, "its text_config may be one of them"),
        ({"num_local_experts": 8}, "num_local_experts is 8; experts are read for model_type deepseek"),
        ({"model_type": "dbrx", "num_experts": 16}, "not for 'dbrx'"),
        ({"model_type": "gemma3"}, "text_config is missing"),
        ({"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 9}, "experts_per_token is 9 of 8"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": 3}, "mlp_only_layers is 3; write a list of layers"),
        ({"model_type": "deepseek_v3"}, "moe_intermediate_size is missing"),
        ({"model_type": "deepseek_v2", "attention_bias": True}, "biases in latent attention are not supported"),
        (
            {"model_type": "deepseek_v2", "first_k_dense_replace": -1},
            "first_k_dense_replace is -1; write a whole number",
        ),
        (
            {"model_type": "plamo2", "num_key_value_heads": 2, "mamba_num_heads": 8, "full_attention_idx": 3},
            "full_attention_idx is 3; write a list of layers",
        ),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_the_mend(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as refused:
        model_from_config({"model_type": "llama", **SMALL, **changes}, "m", "some/config.json")
    message = str(refused.value)
    assert message.startswith("some/config.json: ")
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[1, 2]", "holds a list; a Hugging Face config.json is an object in braces"),
        (b"3", "holds a number"),
        (b"null", "holds null"),
        (b'{"a": 1, "a": 2}', "'a' stands twice in one object; keep one"),
        (b'{"a": ', "is not JSON: Expecting value (line 1, column 7)"),
        (b"", "is not JSON"),
        (b"[" * 100_000, "nest too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number of too many digits"),
        (b"\x89PNG\x00\x01", "is a binary file"),
        (b"\xff\xfe{}", "byte 0 is not UTF-8 text"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_config(path)
    assert says in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(100_000_000)  # sparse: reading it would take 100 MB, its size none
    with pytest.raises(InputError, match="has 100 MB, more than the 10 MB allowed"):
        read_config(path)


def test_a_folder_is_read_where_it_holds_a_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a directory without a config\.json"):
        read_config(tmp_path)
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text((CONFIGS / "gpt2.json").read_text())
    assert read_config(folder).name == "my-model"
    assert read_config(folder / "config.json").name == "my-model"
    with pytest.raises(InputError, match="no such file"):
        read_config(tmp_path / "other.json")
    with pytest.raises(InputError, match="is not a file name"):
        read_config("a\0b")
    with pytest.raises(InputError, match="is not a regular file"):
        read_config("/dev/null")


JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
ALL_FIELDS = sorted(
    {field for name in COUNTS for field in json.loads((CONFIGS / f"{name}.json").read_text())}
    | {field for _, config in SMALL_CONFIGS for field in config}
)


@given(
    config=st.sampled_from([json.loads((CONFIGS / f"{name}.json").read_text()) for name in sorted(COUNTS)])
    | st.sampled_from([{"model_type": kind, **config} for kind, config in SMALL_CONFIGS]),
    changes=st.dictionaries(st.sampled_from(ALL_FIELDS), JSON_VALUE | st.integers(1, 64), max_size=4),
)
@settings(max_examples=400, deadline=None)
def test_any_config_is_a_model_or_refused_in_one_line(config: dict[str, Any], changes: dict[str, Any]) -> None:
    try:
        model = model_from_config(config | changes, "m")
    except InputError as refused:
        message = str(refused)
    else:
        message = ""
        assert model.num_parameters > 0
    assert "\n" not in message


@given(st.binary(max_size=200) | JSON_VALUE.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_a_model_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_config(path)
    assert "\n" not in str(refused.value)


def test_quantised_weights_are_refused_or_said() -> None:
    """transformers writes quant_method of them all; DeepSeek-V3's weights are fp8, and were trained so."""
    config = {"model_type": "llama", **SMALL}
    plain = model_from_config({**config, "quantization_config": None}, "small")
    assert plain.assumptions == ()
    for method in ("bitsandbytes", "gptq", "awq", "compressed-tensors"):
        quantised = {**config, "quantization_config": {"quant_method": method, "load_in_4bit": True}}
        with pytest.raises(
            InputError, match=f"quantization_config .quant_method .{method}.. is of weights that are not"
        ):
            model_from_config(quantised, "small")
    said = model_from_config({**config, "quantization_config": {"quant_method": "fp8"}}, "small")
    assert said.num_parameters == plain.num_parameters
    assert "quantization_config: fp8" in said.assumptions[0]


def test_what_of_a_config_is_no_part_of_the_forecast_is_assumed_aloud() -> None:
    folder = Path(__file__).parent / "configs"
    for name, field in (("gemma-3-4b", "vision_config: "), ("deepseek-v3", "num_nextn_predict_layers: 1 is left out")):
        assert any(said.startswith(field) for said in read_config(folder / f"{name}.json").assumptions)
