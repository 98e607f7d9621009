"""The constants of a config.json are those that transformers computes with."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flopcast.errors import InputError
from flopcast.kernels.rope.op import rotary_tables
from flopcast.trainer.constants import numerics_of
from flopcast.trainer.huggingface import Checkpoint, save
from flopcast.trainer.model import Decoder
from flopcast.trainer.numerics import Numerics, RopeScaling

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
TOKENS = torch.arange(96).view(2, 48) * 7 % 96


def small(**fields: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.2,
        rms_norm_eps=1e-5,
        rope_theta=500.0,
        attn_implementation="eager",
        **fields,
    )


@pytest.mark.parametrize("original", [16, 64, 8192])
def test_scaled_frequencies_are_those_of_transformers(original: int) -> None:
    pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = small(rope_scaling=LLAMA3 | {"original_max_position_embeddings": original}, head_dim=128)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    scaling = numerics_of(config.to_dict(), "x").rope_scaling
    assert scaling == RopeScaling(8.0, 1.0, 4.0, original)
    plain = 500.0 ** (-torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    torch.testing.assert_close(scaling(plain).float(), expected, rtol=2e-6, atol=0)
    cosines, _ = rotary_tables(128, 9, 500.0, scaling=scaling)
    torch.testing.assert_close(cosines[8], (8 * expected).cos(), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_logits_with_scaled_rope_are_those_of_transformers_there_and_back(tmp_path: Path) -> None:
    config = small(rope_scaling=LLAMA3 | {"original_max_position_embeddings": 16}, max_position_embeddings=128)
    import transformers

    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        expected = theirs(TOKENS).logits
    checkpoint = Checkpoint(tmp_path / "theirs")
    found = []
    for numerics in (checkpoint.numerics, Numerics(500.0, 1e-5, "silu")):
        decoder = Decoder(checkpoint.model, numerics)
        decoder.load_state_dict({name: tensor.float() for name, tensor in checkpoint.items()})
        with torch.no_grad():
            found.append(decoder(TOKENS))
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=5e-5)
    assert (found[1] - expected).abs().max() > 0.1  # without the scaling it is another model
    save(checkpoint.model, checkpoint.numerics, checkpoint.items(), tmp_path / "ours", torch.float32)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, expected)


@pytest.mark.parametrize(
    "kind", ["falcon", "gpt2", "gpt_neox", "llama", "mistral", "opt", "phi", "phi3", "qwen2", "qwen3"]
)
def test_what_a_file_leaves_out_is_the_default_of_its_class(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    # What a file written by the class says, and what one says that is silent.
    written = json.loads(transformers.AutoConfig.for_model(kind).to_json_string(use_diff=False))
    assert numerics_of({"model_type": kind}, "x") == numerics_of(written, "x")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "scaled \\('linear'\\); the trainer knows the default and",
        ),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor of RoPE's scaling is None; write"),
        ({"rope_scaling": "llama3"}, "the parameters of RoPE are 'llama3'"),
        ({"rope_theta": "big"}, "rope_theta is 'big'; write a positive number"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1; write a positive number"),
        ({"hidden_act": "tanh"}, "hidden_act is 'tanh'; the trainer has silu"),
        ({"model_type": "gemma2"}, "a 'gemma2' scales its embedding"),
    ],
)
def test_what_the_trainer_cannot_compute_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        numerics_of({"model_type": "llama", **fields}, "folder/config.json")
    assert str(caught.value).startswith("folder/config.json: ")
