"""How a command shows its result: one JSON document, or text as wide as the terminal."""

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Columns of a table written to a file or a pipe.
PIPE_WIDTH = 120


def print_json(document: dict[str, Any]) -> None:
    """Print the document and nothing else; a number that JSON cannot hold is a fault of ours."""
    print(json.dumps(document, indent=2, allow_nan=False))


def console() -> "Console":
    """A terminal at its own width; a file or a pipe at one that holds every table."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
