"""Checkpoints of Hugging Face: logits as ``transformers`` computes them, PLaMo's layout against a plain reference."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from flopcast.errors import InputError
from flopcast.simulator.blocks.transformer import Attention, Mlp, TransformerBlock
from flopcast.simulator.model import Model
from flopcast.trainer.engine.weights import draw
from flopcast.trainer.huggingface import Checkpoint, save
from flopcast.trainer.model import Decoder
from flopcast.trainer.numerics import Numerics

TOKENS = torch.arange(48).view(2, 24) * 7 % 96


def logits(checkpoint: Checkpoint) -> torch.Tensor:
    decoder = Decoder(checkpoint.model, checkpoint.numerics)
    decoder.load_state_dict({name: tensor.float() for name, tensor in checkpoint.items()})
    with torch.no_grad():
        return decoder(TOKENS)


@pytest.mark.parametrize(
    ("tied", "bias", "theta"), [(False, False, 10000.0), (True, True, 500000.0)], ids=["plain", "tied-biased"]
)
@pytest.mark.filterwarnings("ignore")
def test_llama_logits_are_those_of_transformers(tmp_path: Path, tied: bool, bias: bool, theta: float) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=144,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_theta=theta,
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
        initializer_range=0.2,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(config).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    theirs.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        expected = theirs(TOKENS).logits
    checkpoint = Checkpoint(tmp_path / "theirs")
    assert checkpoint.numerics == Numerics(rope_theta=theta, norm_eps=1e-5, activation="silu")
    torch.testing.assert_close(logits(checkpoint), expected, rtol=1e-5, atol=2e-5)

    ours = tmp_path / "ours"
    save(checkpoint.model, checkpoint.numerics, checkpoint.items(), ours, torch.float32, file_bytes=100_000)
    assert len(list(ours.glob("model-*-of-*.safetensors"))) > 1
    again = transformers.LlamaForCausalLM.from_pretrained(ours, attn_implementation="eager").eval()
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, expected)


HQ, HKV, DH, D, F_, V = 6, 3, 16, 96, 128, 96


def plamo_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    layer = {
        "self_attn.q_proj": (HQ * DH, D),
        "self_attn.k_proj": (HKV * DH, D),
        "self_attn.v_proj": (HKV * DH, D),
        "self_attn.o_proj": (D, HQ * DH),
        "mlp.gate_proj": (F_, D),
        "mlp.up_proj": (F_, D),
        "mlp.down_proj": (D, F_),
        "norm": (D,),
    }
    shapes = {f"model.layers.layers.{n}.{name}.weight": shape for n in range(2) for name, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,), "lm_head.weight": (V, D)}
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def plamo_reference(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """PLaMo-13B's forward as its report and its code describe it: query head i reads key/value head i mod Hkv."""

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight

    def rotate(x: torch.Tensor) -> torch.Tensor:
        angles = torch.outer(torch.arange(x.shape[1]).float(), 10000.0 ** (-torch.arange(0, DH, 2).float() / DH))
        cos, sin = angles.cos().repeat(1, 2)[None, :, None], angles.sin().repeat(1, 2)[None, :, None]
        return x * cos + torch.cat([-x[..., DH // 2 :], x[..., : DH // 2]], -1) * sin

    x = weights["model.embed_tokens.weight"][TOKENS]
    hidden_from = torch.ones(TOKENS.shape[1], TOKENS.shape[1], dtype=torch.bool).triu(1)
    for n in range(2):
        w = {k: weights[f"model.layers.layers.{n}.{k}.weight"] for k in ("norm", "self_attn.q_proj", "self_attn.k_proj",
             "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")}  # fmt: skip
        h = norm(x, w["norm"])
        q, k, v = ((h @ w[f"self_attn.{p}_proj"].T).unflatten(-1, (-1, DH)) for p in "qkv")
        q, k = rotate(q), rotate(k)
        heads = []
        for i in range(HQ):
            scores = q[:, :, i] @ k[:, :, i % HKV].transpose(1, 2) / DH**0.5
            heads.append(scores.masked_fill(hidden_from, float("-inf")).softmax(-1) @ v[:, :, i % HKV])
        attended = torch.cat(heads, -1) @ w["self_attn.o_proj"].T
        mlp = (F.silu(h @ w["mlp.gate_proj"].T) * (h @ w["mlp.up_proj"].T)) @ w["mlp.down_proj"].T
        x = x + attended + mlp
    return norm(x, weights["model.norm.weight"]) @ weights["lm_head.weight"].T


def plamo_folder(folder: Path) -> dict[str, torch.Tensor]:
    weights = plamo_weights()
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    config = {
        "model_type": "plamo",
        "hidden_size": D,
        "intermediate_size": F_,
        "max_position_embeddings": 64,
        "n_shared_head": HQ // HKV,
        "num_attention_heads": HQ,
        "num_hidden_layers": 2,
        "num_key_value_heads": HQ,
        "vocab_size": V,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return weights


def test_plamos_tiled_heads_against_a_plain_reference(tmp_path: Path) -> None:
    weights = plamo_folder(tmp_path / "plamo")
    checkpoint = Checkpoint(tmp_path / "plamo")
    assert [block.attention.kv_layout for block in checkpoint.model.kinds] == ["tiled"]  # type: ignore[attr-defined]
    torch.testing.assert_close(logits(checkpoint), plamo_reference(weights), rtol=1e-4, atol=1e-4)


def test_plamos_layout_survives_a_round_trip(tmp_path: Path) -> None:
    weights = plamo_folder(tmp_path / "plamo")
    checkpoint = Checkpoint(tmp_path / "plamo")
    assert not torch.equal(checkpoint["layers.0.q.weight"], weights["model.layers.layers.0.self_attn.q_proj.weight"])
    save(checkpoint.model, checkpoint.numerics, checkpoint.items(), tmp_path / "again", torch.float32)
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_what_is_saved_has_the_mode_of_any_new_file(tmp_path: Path, umask: int, mode: int) -> None:
    plamo_folder(tmp_path / "plamo")
    checkpoint = Checkpoint(tmp_path / "plamo")
    before = os.umask(umask)
    try:
        save(checkpoint.model, checkpoint.numerics, checkpoint.items(), tmp_path / "again", file_bytes=20_000)
    finally:
        os.umask(before)
    files = list((tmp_path / "again").iterdir())
    assert len(files) > 3
    assert {path.stat().st_mode & 0o777 for path in files} == {mode}


def test_what_is_not_a_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    plamo_folder(tmp_path / "good")
    whole = (tmp_path / "good" / "model.safetensors").read_bytes()
    config = json.loads((tmp_path / "good" / "config.json").read_text())

    def refused(**changes: object) -> str:
        with pytest.raises(InputError) as caught:
            dict(Checkpoint(tmp_path / "good"))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (tmp_path / "good" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in refused()
    (tmp_path / "good" / "model.safetensors").write_bytes(whole)
    (tmp_path / "good" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "lacks model.layers.layers.2" in refused()
    (tmp_path / "good" / "config.json").write_text(json.dumps(config | {"vocab_size": V + 1}))
    assert "has shape" in refused()
    (tmp_path / "good" / "config.json").write_text(json.dumps(config | {"rope_scaling": {"type": "linear"}}))
    assert "scaled" in refused()


def test_a_model_of_no_saved_type_is_refused(tmp_path: Path) -> None:
    neox = Model("neox", 64, 96, 32, (TransformerBlock(Attention(4, 4, 16, fused_qkv=True), Mlp(96), parallel=True),))
    with pytest.raises(InputError, match="neither of type llama nor plamo"):
        save(neox, Numerics(), draw(neox, 0).items(), tmp_path / "neox")
    assert not (tmp_path / "neox").exists()
