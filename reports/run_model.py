"""The model that a row of a table of runs describes, by its columns or by its name."""

import re
from dataclasses import replace
from typing import Literal

from flopcast.errors import InputError
from flopcast.reports.run_row import Row
from flopcast.simulator.blocks.experts import Experts
from flopcast.simulator.blocks.residual import MixedBlock
from flopcast.simulator.blocks.transformer import Attention, Mlp, TransformerBlock
from flopcast.simulator.catalogue import load_model, model_names
from flopcast.simulator.model import Block, Model, count_parameters

# Where a table does not say: GPT-2's vocabulary padded to a multiple of 128 for 8 ranks, as Megatron does.
DEFAULT_VOCABULARY = 51200
USUAL_HEAD_DIM = 128
# "gelu" is none of these: two products, and three where one of them gates another.
GATED = re.compile(r"glu|silu|swish|gated")
PLAIN = re.compile(r"relu|gelu|mlp|2[-_ ]?layer|standard|plain")
# What tables call the experts of a layer, and those of them that work on a token.
EXPERTS = ("num_experts", "n_experts")
PER_TOKEN = ("experts_per_token", "top_k", "moe_top_k")
# "Mixtral-8x7B", "Qwen3-30B-A3B", "DeepSeek-V3": their names say that experts work on a token by turns.
MIXTURE = re.compile(r"\d+x\d+(\.\d+)?b|\d+b[-_]?a\d+(\.\d+)?b|moe|mixtral|deepseek[-_ ]?v[23]|gpt[-_ ]?oss")
# Fine-tuning on samples packed into sequences, among which attention does not reach: of SQuAD's length, on which NeMo's
# performance tables of fine-tuning are measured (docs/source/performance/performance_summary.md, 24.07).
FINE_TUNED = re.compile(r"\bsft\b|fine-?tun|squad")
PACKED = re.compile(r"pack")
PACKED_TOKENS = 256
SIZE = re.compile(r"([\d.]+)\s*([bm])\b")
# What publishers add to a model's name.
AROUND_A_NAME = re.compile(r"^[\w-]+/|(?<![^/])meta[-_ ]|[-_ ](hf|base|chat|instruct|it)$")


def model_of(row: Row) -> Model:
    """The model that a row describes; of a shape that is blank, or of a mixture, the catalogue's of its name.

    Packed samples of t tokens are each attended to alone: t/2 keys for a token on average, as in a window of as many.
    """
    model = _model_of(row)
    notes = row.text("notes") if row.has("notes") else ""
    if not (FINE_TUNED.search(notes) and PACKED.search(notes)) or row.whole("seq_len") <= PACKED_TOKENS:
        return model
    row.assumed.append(f"samples of {PACKED_TOKENS} tokens are packed into a sequence")
    return replace(model, layers=tuple(_attending_to(block, PACKED_TOKENS // 2) for block in model.layers))


def _attending_to(block: Block, window: int) -> Block:
    if isinstance(block, TransformerBlock):
        return replace(block, attention=replace(block.attention, window=window))
    return block


def _model_of(row: Row) -> Model:
    sized = row.has("n_layers") or SIZE.search(row.text("model_name"))
    if not (row.has("hidden") and sized) or (_names_a_mixture(row) and not _num_experts(row)):
        return _by_name(row)
    hidden = row.whole("hidden")
    heads = row.whole("n_heads", max(hidden // USUAL_HEAD_DIM, 1))
    kv_heads = row.whole("n_kv_heads", heads)
    mlp_type = row.text("mlp_type", "gelu")
    if hidden % heads and not row.has("head_dim"):
        row.doubt(f"head_dim {hidden // heads}: {heads} heads do not divide a hidden size of {hidden}")
    gated = bool(GATED.search(mlp_type))
    row.known("mlp_type", gated or PLAIN.search(mlp_type), "gelu")
    # LLaMA's rule, 2/3 of 4 D in multiples of 256, or GPT's 4 D.
    usual_width = -(-8 * hidden // (3 * 256)) * 256 if gated else 4 * hidden
    attention = Attention(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=row.whole("head_dim", hidden // heads) if row.has("head_dim") else hidden // heads,
        qkv_bias=not gated,
        output_bias=not gated,
        fused_qkv=kv_heads == heads and not gated,
        rotary_share=1.0 if gated else 0.0,
    )
    width, parallel = row.whole("ffn_hidden", usual_width), row.flag("parallel_layers", False)
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm" if gated else "layernorm"
    block: Block
    if _num_experts(row):
        experts = Experts(_num_experts(row), row.whole(_column(row, PER_TOKEN)), width)
        block = MixedBlock(attention, experts, parallel=parallel, norm=norm, norm_bias=not gated)
    else:
        mlp = Mlp(width, gated=gated, bias=not gated)
        block = TransformerBlock(attention, mlp, parallel=parallel, norm=norm, norm_bias=not gated)
    seq_len, vocabulary = row.whole("seq_len"), row.whole("vocab", DEFAULT_VOCABULARY)
    return Model(
        name=str(row.cells.get("model_name", "")),
        hidden=hidden,
        vocab_size=vocabulary,
        context=seq_len,
        layers=(block,) * _num_layers(row, block, hidden, vocabulary),
        tied_embeddings=row.flag("tied_embeddings", not gated),
        positions="rotary" if gated else "learned",
        num_positions=seq_len,
        norm=norm,
        norm_bias=not gated,
    )


def _num_layers(row: Row, block: Block, hidden: int, vocabulary: int) -> int:
    """The number of layers, or the one that makes the size in the model's name ("BLOOM-proto-205B")."""
    if row.has("n_layers"):
        return row.whole("n_layers")
    size = SIZE.search(row.text("model_name"))
    assert size, "a row without n_layers has a size in its name, or is of the catalogue"
    parameters = float(size[1]) * {"b": 1e9, "m": 1e6}[size[2]]
    number = max(round((parameters - vocabulary * hidden) / count_parameters(block, hidden)), 1)
    return row.whole("n_layers", number)


def _by_name(row: Row) -> Model:
    """The catalogue's model; InputError where it has none of that name."""
    name = AROUND_A_NAME.sub("", row.text("model_name"))
    letters = {re.sub("[-_ ]", "", known): known for known in model_names()}
    known = letters.get(re.sub("[-_ ]", "", name))
    if known is None:
        blank = next((column for column in ("hidden", "n_layers") if not row.has(column)), EXPERTS[0])
        raise InputError(f"{blank} is blank and the catalogue has no model '{name}'")
    row.assumed.append(f"the shape of {known}")
    model = load_model(known)
    return replace(model, context=max(model.context, row.whole("seq_len")))


def _column(row: Row, names: tuple[str, ...]) -> str:
    return next((name for name in names if row.has(name)), names[0])


def _num_experts(row: Row) -> int:
    """Experts per layer, 0 where the row is of no mixture."""
    column = _column(row, EXPERTS)
    number = row.whole(column, least=0) if row.has(column) else 0
    return number if number > 1 else 0


def _names_a_mixture(row: Row) -> bool:
    return bool(MIXTURE.search(row.text("model_name")))
