"""A model file: the catalogue's own form, one table per kind of layer."""

from itertools import chain, cycle, islice, repeat
from pathlib import Path
from typing import Annotated

from pydantic import Field

from flopcast.errors import InputError
from flopcast.simulator.model import Model, Norm, Positions
from flopcast.simulator.specification.document import MAX_COUNT, Table, Text, check_table, parse_toml
from flopcast.simulator.specification.layer import MAX_LAYERS, LayerTable, Size
from flopcast.simulator.textfile import read_text

EXPECTED = "a model file (TOML)"


class PublishedTable(Table):
    """The parameter count as published: exact, or rounded to a multiple of ``rounded_to``.

    Of a mixture of experts also those that one token uses, ``num_active``.
    """

    num_parameters: Annotated[int, Field(gt=0)]
    rounded_to: Annotated[int, Field(ge=0)] = 0
    source: Text
    num_active: Annotated[int, Field(gt=0)] | None = None
    active_rounded_to: Annotated[int, Field(ge=0)] = 0
    active_source: Text = ""


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
    counts: dict[str, float] = {"num_parameters": table.num_parameters, "num_parameters_rounded_to": table.rounded_to}
    if table.num_active is None:
        return counts
    return {**counts, "num_active": table.num_active, "num_active_rounded_to": table.active_rounded_to}
