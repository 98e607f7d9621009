"""The fields of a config.json, one by one: right type, positive, finite, or a sentence naming the field."""

from collections.abc import Mapping
from types import EllipsisType
from typing import TypeVar

from flopcast.errors import InputError
from flopcast.simulator.units import shown

MAX_SIZE = 1_000_000_000
MAX_LAYERS = 10_000

Default = TypeVar("Default")


class Fields:
    """A config.json's fields. ``null`` counts as absent; ``...`` as a default means that the field is needed.

    Every method takes the field's name and the other names it goes by, and raises InputError naming the first
    of them that is there (or the first of all, where none is).
    """

    def __init__(self, config: Mapping[str, object], kind: str, name: str) -> None:
        self.config, self.kind, self.name = config, kind, name

    def size(self, *names: str, default: int | EllipsisType = ...) -> int:
        """A positive whole number, such as a hidden size."""
        field, value = self._get(names)
        if value is None:
            return self._absent(names, default)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise InputError(f"{field} is {shown(value)}; write a positive whole number")
        if value > MAX_SIZE:
            raise InputError(f"{field} is {shown(value)}; it must be at most {MAX_SIZE}")
        return value

    def optional_size(self, *names: str) -> int | None:
        """A positive whole number, or None where the field is absent."""
        return None if self._get(names)[1] is None else self.size(*names)

    def size_or_null(self, name: str, default: int) -> int | None:
        """A positive whole number, ``default`` where the field is absent, None where it is ``null``: that is said."""
        return self.optional_size(name) if name in self.config else default

    def num_layers(self, *names: str) -> int:
        """A number of layers."""
        num_layers = self.size(*names)
        if num_layers > MAX_LAYERS:
            raise InputError(f"{self._get(names)[0]} is {num_layers}; it must be at most {MAX_LAYERS}")
        return num_layers

    def flag(self, *names: str, default: bool | EllipsisType = ...) -> bool:
        """A truth value."""
        field, value = self._get(names)
        if value is None:
            return self._absent(names, default)
        if not isinstance(value, bool):
            raise InputError(f"{field} is {shown(value)}; write true or false")
        return value

    def share(self, *names: str, default: float | EllipsisType = ...) -> float:
        """A number from 0 to 1."""
        field, value = self._get(names)
        if value is None:
            return self._absent(names, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise InputError(f"{field} is {shown(value)}; write a number from 0 to 1")
        return float(value)

    def number(self, *names: str, default: float | EllipsisType = ...) -> float:
        """A positive finite number."""
        field, value = self._get(names)
        if value is None:
            return self._absent(names, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_SIZE:
            raise InputError(f"{field} is {shown(value)}; write a positive finite number")
        return float(value)

    def texts(self, name: str) -> list[str] | None:
        """A list of texts, or None where the field is absent."""
        value = self.config.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InputError(f"{name} is {shown(value)}; write a list of texts")
        return value

    def inside(self, name: str) -> "Fields":
        """The fields of an object within this one; none where it is absent."""
        value = self.config.get(name)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise InputError(f"{name} is {shown(value)}; write an object in braces")
        return Fields(value, self.kind, self.name)

    def rotary_share(self, *names: str, default: float = 1.0) -> float:
        """The share of a head that RoPE turns: in ``rope_parameters`` (transformers 5), or its own field."""
        inside = self.inside("rope_parameters")
        if inside.config.get("partial_rotary_factor") is not None:
            return inside.share("partial_rotary_factor")
        return self.share(*names, default=default) if names else default

    def divided(self, whole: str, num: int, by: str, parts: int) -> int:
        """``num / parts`` where it is a whole number; the names are those of the two fields."""
        if num % parts:
            raise InputError(f"{by} is {parts}, which does not divide {whole} = {num}; choose one that does")
        return num // parts

    def refuse(self, field: str, unless: object, why: str) -> None:
        """Refuse a field that is there with another value than ``unless``; absent and ``null`` pass."""
        value = self.config.get(field)
        if value is not None and value != unless:
            raise InputError(f"{field} is {shown(value)}; {why}")

    def _get(self, names: tuple[str, ...]) -> tuple[str, object]:
        for name in names:
            if self.config.get(name) is not None:
                return name, self.config[name]
        return names[0], None

    def _absent(self, names: tuple[str, ...], default: Default | EllipsisType) -> Default:
        if isinstance(default, EllipsisType):
            raise InputError(f"{names[0]} is missing; a {self.kind} config.json needs it, so add it")
        return default
