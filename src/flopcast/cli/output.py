"""How a command shows its result: one JSON document, or text as wide as the terminal."""

import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopcast.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

# Columns of a table written to a file or a pipe.
PIPE_WIDTH = 120
# On a narrower terminal one space stands between the columns of a table.
ROOMY_WIDTH = 100
# What a figure's file name may end in.
PICTURES = (".svg", ".png", ".pdf")


def print_json(document: dict[str, Any]) -> None:
    """Print the document and nothing else; a number that JSON cannot hold is a fault of ours."""
    print(json.dumps(document, indent=2, allow_nan=False))


def print_document(text: str) -> None:
    """Print a page or Markdown in UTF-8, whatever the terminal's encoding."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    print(text, end="")


def check_place(option: str, path: Path, endings: Sequence[str] = ()) -> None:
    """Raise InputError before the work is done where its file could not be written afterwards."""
    if path.is_dir():
        raise InputError(f"{option} {path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise InputError(f"{option} {path}: there is no folder {path.parent}; make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{option} {path}: may not be written to; choose another place")
    if endings and path.suffix.lower() not in endings:
        raise InputError(f"{option} {path}: a name ends in {', '.join(endings[:-1])} or {endings[-1]}")


def show(parts: "Iterable[RenderableType]") -> None:
    """Print what a command answers as wide as the terminal, and tables wider where that would cut numbers short.

    A file or a pipe takes a width that holds every table.
    """
    import shutil

    from rich.console import Console
    from rich.table import Table

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # main ends as it does wherever nobody reads on

    terminal = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH
    console = Output(highlight=False)
    for part in parts:
        console.width = terminal
        if isinstance(part, Table):
            if terminal < ROOMY_WIDTH:
                part.padding = 0
            console.width = max(terminal, _least_width(part, console))
        console.print(part)


def _least_width(table: "Table", console: "Console") -> int:
    """At which no word of the table is broken, and in columns that do not wrap no line."""
    from rich.measure import Measurement

    unbounded = console.options.update(max_width=sys.maxsize)
    for column in table.columns:
        sizes = [Measurement.get(console, unbounded, cell) for cell in (column.header, *column.cells)]
        column.min_width = max(size.maximum if column.no_wrap else size.minimum for size in sizes)
    return Measurement.get(console, unbounded, table).minimum
