"""How wide what a command answers is printed."""

import os

import pytest
from rich.table import Table
from rich.text import Text

from flopcast.cli.output import LEAST_WIDTH, PIPE_WIDTH, show


@pytest.mark.parametrize(("columns", "is_terminal", "prose", "table"), [
    (80, True, 80, LEAST_WIDTH), (200, True, 200, 200), (80, False, PIPE_WIDTH, PIPE_WIDTH),
])  # fmt: skip
def test_sentences_fit_the_terminal_and_tables_are_not_cut_short(
    columns: int, is_terminal: bool, prose: int, table: int,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal, raising=False)
    wide = Table(expand=True, show_header=False)
    wide.add_column("x")
    show([Text("word " * 100), wide])
    widths = [len(line.rstrip("\n")) for line in capsys.readouterr().out.splitlines()]
    assert prose - 5 <= widths[0] <= prose
    assert max(widths) == table
