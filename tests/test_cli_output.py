"""How wide what a command answers is printed."""

import os

import pytest
from rich import box
from rich.table import Table
from rich.text import Text

from flopcast.cli.output import PIPE_WIDTH, show


@pytest.mark.parametrize(("columns", "is_terminal", "width"), [
    (80, True, 80), (200, True, 200), (80, False, PIPE_WIDTH),
])  # fmt: skip
def test_sentences_and_tables_fit_the_terminal(
    columns: int, is_terminal: bool, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal, raising=False)
    wide = Table(expand=True, show_header=False)
    wide.add_column("x")
    show([Text("word " * 100), wide])
    widths = [len(line.rstrip("\n")) for line in capsys.readouterr().out.splitlines()]
    assert width - 5 <= widths[0] <= width
    assert max(widths) == width


@pytest.mark.parametrize(("columns", "space"), [(20, 1), (60, 1), (100, 3)])
def test_no_number_and_no_word_is_cut_short(
    columns: int, space: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("step, s\n(80 % band)", justify="right", no_wrap=True)
    table.add_column("what bounds it", overflow="fold")
    table.add_row("4.38 (4.01-5.22)", "bound by tensor-parallel communication")
    show([table])
    out = Text.from_ansi(capsys.readouterr().out).plain
    assert "…" not in out
    assert "4.38 (4.01-5.22)" + " " * space + "bound" in out
    assert "tensor-parallel" in out
    # Of 20 columns the number and the longest word need 32.
    assert max(len(line.rstrip()) for line in out.splitlines()) <= max(columns, 16 + 1 + 15)
