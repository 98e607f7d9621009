"""One row of a table of runs: cells by column, what is blank filled by defaults that are remembered."""

from typing import Any

import pandas as pd

from flopcast.errors import InputError
from flopcast.reports.run_words import flag_in, number_in

# What stands in a cell of which the source says nothing.
UNSAID = ("", "-", "–", "?", "n/a", "unknown", "unsaid", "not stated")


class Row:
    """One row of the table: cells by column, blanks filled by defaults that are remembered."""

    def __init__(self, cells: dict[str, Any]) -> None:
        self.cells = cells
        self.assumed: list[str] = []

    def has(self, column: str) -> bool:
        """Whether the source states it."""
        value = self.cells.get(column)
        return value is not None and not pd.isna(value) and str(value).strip().lower() not in UNSAID

    def text(self, column: str, default: str = "") -> str:
        """The cell in lower case, or the default."""
        return str(self.cells[column]).strip().lower() if self.has(column) else self._default(column, default)

    def number(self, column: str, default: float | None = None) -> float:
        """The cell as a number; InputError names a blank one without default and one that is no number."""
        if not self.has(column):
            if default is None:
                raise InputError(f"{column} is blank")
            return float(self._default(column, default))
        try:
            cell = str(self.cells[column])
            # What is measured may repeat its unit ("10,240 tokens/s"), and its thousands are not those of sizes.
            return number_in(cell.split()[0], 1000) if column.startswith("measured_") else number_in(cell)
        except ValueError:
            raise InputError(f"{column} is '{self.cells[column]}'; write a number") from None

    def whole(self, column: str, default: int | None = None) -> int:
        """The cell as a whole number."""
        return int(self.number(column, default))

    def flag(self, column: str, default: bool) -> bool:
        """Whether the cell says yes."""
        return flag_in(self.cells[column]) if self.has(column) else bool(self._default(column, int(default)))

    def known(self, column: str, meaning: Any, else_: Any) -> Any:
        """What a word of a cell means, or ``else_`` where it means nothing here, which is remembered."""
        if meaning is None:
            self.assumed.append(f"{column} {else_}: '{self.cells[column]}' is not known")
        return else_ if meaning is None else meaning

    def _default(self, column: str, default: Any) -> Any:
        if default != "":
            self.assumed.append(f"{column} {default}")
        return default
