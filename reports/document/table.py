"""A table of the report: cells as text, and as what they sort by."""

import re
from dataclasses import dataclass

from flopcast.reports.document.numbers import digits

LONGEST_NAME = 28  # characters


@dataclass(frozen=True)
class Cell:
    """``order`` is what the cell sorts by; a cell with one is a number and stands at the right.

    It is in the unit of the cell's heading, unrounded, for the JSON document gives it beside that heading.
    ``ends``: of a cell that is a range, where that begins and ends. ``code``: its text is to be typed as it stands.
    """

    text: str
    order: float | None = None
    ends: tuple[float, float] | None = None
    code: bool = False


@dataclass(frozen=True)
class Table:
    """``name`` is unique in the document. Rows named in ``strong`` (by index) are the recommended ones."""

    name: str
    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    strong: tuple[int, ...] = ()

    def kind(self, column: int) -> str:
        """How a column is laid out: "number", "words" where its text may have to break, else "name"."""
        if any(row[column].order is not None for row in self.rows):
            return "number"
        return "words" if any(len(row[column].text) > LONGEST_NAME for row in self.rows) else "name"

    def numbers(self) -> set[str]:
        """Every number that a reader finds in the cells and the caption, as written."""
        cells = {match for row in self.rows for cell in row for match in numbers_in(cell.text)}
        return cells | set(numbers_in(self.caption))


def numbers_in(text: str) -> list[str]:
    """Numbers of a text as written, those inside names such as zero3 and a100-40gb left out."""
    return re.findall(r"(?<![\w.+-])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)", text)


def number(value: float, text: str | None = None) -> Cell:
    """A numeric cell, at three significant digits unless its text is given."""
    return Cell(digits(value) if text is None else text, float(value))


def band(low: float, middle: float, high: float) -> Cell:
    """A range that sorts by what lies in it."""
    return Cell(f"{digits(low)} to {digits(high)}", middle, (low, high))


def text(words: str) -> Cell:
    """A cell of words."""
    return Cell(words)
