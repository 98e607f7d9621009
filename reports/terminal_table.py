"""A table as every command prints it."""

from collections.abc import Iterable

from rich import box
from rich.table import Table


def terminal_table(words: Iterable[str], numbers: Iterable[str] = ()) -> Table:
    """An empty table with headings of columns of words, then of numbers, none of which wraps."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in words:
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
