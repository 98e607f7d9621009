"""How a command shows its result: one JSON document, or text as wide as the terminal."""

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Columns of a table written to a file or a pipe.
PIPE_WIDTH = 120
# A narrower terminal breaks lines itself, where a table of its width would cut numbers short.
LEAST_WIDTH = 100


def print_json(document: dict[str, Any]) -> None:
    """Print the document and nothing else; a number that JSON cannot hold is a fault of ours."""
    print(json.dumps(document, indent=2, allow_nan=False))


def console() -> "Console":
    """A terminal at its own width, unless that is too little; a file or a pipe at one that holds every table."""
    import shutil

    from rich.console import Console

    width = max(shutil.get_terminal_size().columns, LEAST_WIDTH) if sys.stdout.isatty() else PIPE_WIDTH
    return Console(width=width, highlight=False)
