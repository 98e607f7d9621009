"""A TOML document as checked tables: the base class, a figure with its source, and errors as sentences."""

import tomllib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from flopcast.errors import InputError, nearest
from flopcast.simulator.units import (
    parse_bandwidth,
    parse_compute,
    parse_memory,
    parse_network_rate,
    parse_power,
    shown,
)

Value = TypeVar("Value")
AnyTable = TypeVar("AnyTable", bound="Table")

MAX_COUNT = 1_000_000_000


class Table(BaseModel):
    """A table of a document: strict types, frozen, unknown keys refused."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", protected_namespaces=())


class Figure(Table, Generic[Value]):
    """One figure: a plain value, or ``{value = ..., source = "...", assumed = true}``.

    ``assumed`` marks what is not published; ``source`` then says why this value.
    """

    value: Value
    source: str = ""
    assumed: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_plain(cls, data: object) -> object:
        return data if isinstance(data, dict | Figure) else {"value": data}


class Section(Table):
    """A table of figures, which may name one source for all of them."""

    source: Annotated[str, Field(max_length=2000, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""


def one_of(names: Sequence[str]) -> BeforeValidator:
    """Accept only these names; anything else is refused with the nearest of them."""

    def check(value: object) -> object:
        if isinstance(value, str) and value not in names:
            known = ", ".join(f"'{name}'" for name in names)
            offer = nearest(value, list(names))
            also = f" ({offer})" if offer.startswith("did you") else ""
            raise InputError(f"{shown(value)} is not one of {known}{also}")
        return value

    return BeforeValidator(check)


PositiveInt = Annotated[int, Field(gt=0, le=MAX_COUNT)]
Count = Figure[PositiveInt]
Number = Figure[Annotated[float, Field(gt=0, le=MAX_COUNT, allow_inf_nan=False)]]
Flag = Figure[bool]
Bandwidth = Figure[Annotated[float, BeforeValidator(parse_bandwidth)]]
NetworkRate = Figure[Annotated[float, BeforeValidator(parse_network_rate)]]
Memory = Figure[Annotated[float, BeforeValidator(parse_memory)]]
Compute = Figure[Annotated[float, BeforeValidator(parse_compute)]]
Power = Figure[Annotated[float, BeforeValidator(parse_power)]]
Text = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00-\x1f\x7f]*$")]


def parse_toml(text: str, origin: str) -> dict[str, Any]:
    """The document as plain tables; InputError names the line where it is not TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{origin}: is not TOML: {_one_line(str(error))}") from None
    except RecursionError:
        raise InputError(f"{origin}: is not TOML that can be read: its arrays nest too deeply") from None
    except ValueError as error:  # a number of thousands of digits, an impossible date
        raise InputError(f"{origin}: is not TOML that can be read: {_one_line(str(error))}") from None


def check_table(table: type[AnyTable], data: Mapping[str, Any], origin: str) -> AnyTable:
    """The data as that kind of table, or one InputError line that lists every fault with its path."""
    try:
        return table.model_validate(data)
    except ValidationError as error:
        faults = [_sentence(fault, table) for fault in error.errors(include_url=False)]
        raise InputError(f"{origin}: " + "; ".join(faults)) from None


def _sentence(fault: Any, table: type[Table]) -> str:
    """One fault as "path is value; mend"."""
    location = [str(part) for part in fault["loc"]]
    if location and location[-1] == "value":
        location.pop()
    path, kind = ".".join(location) or "the document", fault["type"]
    if kind == "missing":
        return f"{path} is missing; add it{_example(table, location)}"
    if kind == "extra_forbidden":
        where = f" in {'.'.join(location[:-1])}" if location[:-1] else ""
        return f"unknown key {shown(location[-1])}{where}; {_known(table, location)}"
    if kind == "value_error":
        return f"{path}: {fault['ctx']['error']}"
    return f"{path} is {shown(fault['input'])}; {_mend(kind, fault)}"


def _mend(kind: str, fault: Any) -> str:
    context = fault.get("ctx", {})
    sentences = {
        "int_type": "write a whole number",
        "float_type": "write a number",
        "bool_type": "write true or false",
        "string_type": "write text in quotes",
        "list_type": "write a list in brackets",
        "finite_number": "write a finite number",
        "string_pattern_mismatch": "write one line of text",
        "string_too_short": "write some text",
    }
    if kind in sentences:
        return sentences[kind]
    if kind in {"model_type", "model_attributes_type", "dict_type"}:
        return "write a table"
    if kind == "greater_than":
        return f"it must be greater than {context['gt']:g}"
    if kind == "greater_than_equal":
        return f"it must be at least {context['ge']:g}"
    if kind == "less_than_equal":
        return f"it must be at most {context['le']}"
    if kind == "literal_error":
        return f"write {context['expected']}"
    return _one_line(str(fault["msg"]))


def _table_at(table: type[Table], location: list[str]) -> type[Table] | None:
    """The kind of table that stands at a path, found through optional and repeated tables."""
    for part in location:
        if part.isdigit():
            continue
        field = table.model_fields.get(part)
        if field is None:
            return None
        kinds = [kind for kind in _flatten(field.annotation) if isinstance(kind, type)]
        found = next((kind for kind in kinds if issubclass(kind, Table)), None)
        if found is None:
            return None
        table = found
    return table


def _flatten(annotation: object) -> list[object]:
    arguments = get_args(annotation)
    return [a for argument in arguments for a in _flatten(argument)] if arguments else [annotation]


def _known(table: type[Table], location: list[str]) -> str:
    inside = _table_at(table, location[:-1])
    return nearest(location[-1], list(inside.model_fields)) if inside else "remove it"


def _example(table: type[Table], location: list[str]) -> str:
    """``, such as nic = "200 Gbit/s"``, where the field carries an example."""
    inside = _table_at(table, location[:-1])
    field = inside.model_fields.get(location[-1]) if inside else None
    return f", such as {location[-1]} = {field.examples[0]}" if field is not None and field.examples else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())
