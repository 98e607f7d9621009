"""A model file: the catalogue's own form, one table per kind of layer."""

from itertools import chain, cycle, islice, repeat
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from flopcast.errors import InputError
from flopcast.simulator.blocks.transformer import Attention, KeyValueLayout, Mlp, TransformerBlock
from flopcast.simulator.model import Block, Model, Norm, Positions
from flopcast.simulator.specification.document import MAX_COUNT, Table, Text, check_table, parse_toml
from flopcast.simulator.textfile import read_text

EXPECTED = "a model file (TOML)"
MAX_LAYERS = 10_000

Size = Annotated[int, Field(gt=0, le=MAX_COUNT)]


class LayerTable(Table):
    """``[[layers]]``: one kind of layer, ``repeat`` times in a row; fields as in the block's dataclasses."""

    kind: Literal["transformer"] = "transformer"
    repeat: Annotated[int, Field(gt=0, le=MAX_LAYERS)] = 1
    num_heads: Size = Field(examples=["32"])
    num_kv_heads: Size = Field(examples=["8"])
    head_dim: Size = Field(examples=["128"])
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    fused_qkv: bool = False
    kv_layout: KeyValueLayout = "grouped"
    window: Size | None = None
    rotary_share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 1.0
    intermediate: Size = Field(examples=["14336"])
    gated: bool = Field(examples=["true"])
    mlp_bias: bool = False
    parallel: bool = False
    num_norms: Annotated[int, Field(ge=0, le=4)] = 2

    def block(self, norm: Norm, norm_bias: bool) -> Block:
        """The layer as the block that the operations are made from."""
        attention = Attention(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            qkv_bias=self.qkv_bias,
            output_bias=self.output_bias,
            qk_norm=self.qk_norm,
            fused_qkv=self.fused_qkv,
            kv_layout=self.kv_layout,
            window=self.window,
            rotary_share=self.rotary_share,
        )
        mlp = Mlp(intermediate=self.intermediate, gated=self.gated, bias=self.mlp_bias)
        return TransformerBlock(
            attention, mlp, parallel=self.parallel, num_norms=self.num_norms, norm=norm, norm_bias=norm_bias
        )


class PublishedTable(Table):
    """The parameter count as published: exact, or rounded to a multiple of ``rounded_to``."""

    num_parameters: Annotated[int, Field(gt=0)]
    rounded_to: Annotated[int, Field(ge=0)] = 0
    source: Text


class ModelTable(Table):
    """The whole file: the ``[[layers]]`` tables repeat in their order until ``num_layers`` is reached."""

    name: Text = ""
    source: Text = ""
    assumptions: list[Text] = Field(default_factory=list)
    hidden: Size = Field(examples=["4096"])
    vocab_size: Size = Field(examples=["32000"])
    context: Size = Field(examples=["4096"])
    num_layers: Annotated[int, Field(gt=0, le=MAX_LAYERS)] = Field(examples=["32"])
    tied_embeddings: bool = False
    positions: Positions = "rotary"
    num_positions: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    norm: Norm = "rmsnorm"
    norm_bias: bool = False
    final_norm: bool = True
    embedding_norm: bool = False
    head_bias: bool = False
    layers: list[LayerTable]
    published: PublishedTable | None = None


def read_model(path: str | Path) -> Model:
    """The model that a TOML file describes. Raises InputError, one line, for anything wrong with it."""
    path = Path(path)
    return parse_model(read_text(path, EXPECTED), str(path), path.stem)


def parse_model(text: str, origin: str, default_name: str = "model") -> Model:
    """The model that the text of a file describes; ``origin`` names it in errors."""
    table = check_table(ModelTable, parse_toml(text, origin), origin)
    if not table.layers:
        raise InputError(f"{origin}: layers is empty; add a [[layers]] table")
    if (table.positions == "learned") != (table.num_positions > 0):
        raise InputError(
            f'{origin}: num_positions is {table.num_positions} where positions is "{table.positions}"; '
            "learned positions need num_positions, such as num_positions = 2048, and only they do"
        )
    try:
        return _model(table, default_name)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None


def _model(table: ModelTable, default_name: str) -> Model:
    pattern = ((layer.block(table.norm, table.norm_bias), layer.repeat) for layer in table.layers)
    rounds = cycle(chain.from_iterable(repeat(block, times) for block, times in list(pattern)))
    published = table.published
    return Model(
        name=table.name or default_name,
        hidden=table.hidden,
        vocab_size=table.vocab_size,
        context=table.context,
        layers=tuple(islice(rounds, table.num_layers)),
        tied_embeddings=table.tied_embeddings,
        positions=table.positions,
        num_positions=table.num_positions,
        norm=table.norm,
        norm_bias=table.norm_bias,
        final_norm=table.final_norm,
        embedding_norm=table.embedding_norm,
        head_bias=table.head_bias,
        source=table.source,
        assumptions=tuple(table.assumptions),
        published={} if published is None else _published(published),
    )


def _published(table: PublishedTable) -> dict[str, float]:
    return {"num_parameters": table.num_parameters, "num_parameters_rounded_to": table.rounded_to}
