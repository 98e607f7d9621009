"""One row of a table of runs: cells by column, what is blank filled by defaults that are remembered."""

import math
from typing import Any

import pandas as pd

from flopcast.errors import InputError
from flopcast.reports.run_words import flag_in, number_in

# What stands in a cell of which the source says nothing.
UNSAID = ("", "-", "–", "?", "n/a", "unknown", "unsaid", "not stated")


class Row:
    """One row of the table: cells by column, blanks filled by defaults that are remembered.

    ``doubts``: those of ``assumed`` that stand against what a cell says, because it is not understood or cannot be.
    """

    def __init__(self, cells: dict[str, Any]) -> None:
        self.cells = cells
        self.assumed: list[str] = []
        self.doubts: list[str] = []

    def has(self, column: str) -> bool:
        """Whether the source states it."""
        value = self.cells.get(column)
        return value is not None and not pd.isna(value) and str(value).strip().lower() not in UNSAID

    def text(self, column: str, default: str = "") -> str:
        """The cell in lower case, or the default."""
        return str(self.cells[column]).strip().lower() if self.has(column) else self._default(column, default)

    def number(self, column: str, default: float | None = None) -> float:
        """The cell as a number; InputError names a blank one without default, one that is no number, or below 0."""
        if not self.has(column):
            if default is None:
                raise InputError(f"{column} is blank")
            return float(self._default(column, default))
        try:
            cell = str(self.cells[column])
            # What is measured may repeat its unit ("10,240 tokens/s"), and its thousands are not those of sizes.
            number = number_in(cell.split()[0], 1000) if column.startswith("measured_") else number_in(cell)
        except ValueError:
            raise InputError(f"{column} is '{self.cells[column]}'; write a number") from None
        if not 0 <= number < math.inf:
            raise InputError(f"{column} is {self.cells[column]}; it must be positive and finite")
        return number

    def positive(self, column: str, default: float | None = None) -> float:
        """The cell as a number above 0."""
        number = self.number(column, default)
        if not number > 0:
            raise InputError(f"{column} is {self.cells[column]}; it must be positive")
        return number

    def whole(self, column: str, default: int | None = None, least: int = 1) -> int:
        """The cell as a whole number of at least ``least``; InputError for another one."""
        number = self.number(column, default)
        # A size in thousands ("50.3k") is rounded already.
        rounded = self.has(column) and str(self.cells[column]).strip()[-1] in "kKmM"
        if number < least or not (rounded or number.is_integer()):
            raise InputError(f"{column} is {self.cells.get(column)}; write a whole number of at least {least}")
        return int(number)

    def flag(self, column: str, default: bool) -> bool:
        """Whether the cell says yes; a word that is not known is taken for one, which is remembered."""
        if not self.has(column):
            return bool(self._default(column, int(default)))
        return bool(self.known(column, flag_in(self.cells[column]), 1))

    def known(self, column: str, meaning: Any, else_: Any) -> Any:
        """What a word of a cell means, or ``else_`` where it means nothing here, which is remembered."""
        if meaning is None:
            self.doubt(f"{column} {else_}: '{self.cells[column]}' is not known")
        return else_ if meaning is None else meaning

    def doubt(self, words: str) -> None:
        """Remember what was assumed against what a cell says."""
        self.assumed.append(words)
        self.doubts.append(words)

    def _default(self, column: str, default: Any) -> Any:
        if default != "":
            self.assumed.append(f"{column} {default}")
        return default
