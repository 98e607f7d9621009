"""Console examples and the README's figure show what the program says; UPDATE_EXAMPLES=1 rewrites them."""

import os
import re
import shlex
from pathlib import Path

import pytest

from flopcast.cli import main
from flopcast.reports.figures.readme import asked, description, draw

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"```console\n\$ (flopcast [^\n]*)\n(.*?)```", re.DOTALL)
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
EXAMPLES = [(page, match[1], match[2]) for page in PAGES for match in BLOCK.finditer(page.read_text())]


def shown(output: str) -> str:
    return "\n".join(line.rstrip() for line in output.rstrip().splitlines()) + "\n"


@pytest.mark.parametrize(("page", "command", "golden"), EXAMPLES, ids=[f"{p.name}: {c}" for p, c, _ in EXAMPLES])
def test_example(
    page: Path, command: str, golden: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        main(shlex.split(command)[1:])
    assert not stopped.value.code
    output = shown(capsys.readouterr().out)
    if os.environ.get("UPDATE_EXAMPLES"):
        text = page.read_text().replace(f"$ {command}\n{golden}", f"$ {command}\n{output}")
        page.write_text(text)
    else:
        assert output == golden


def test_the_readmes_figure_shows_the_forecast() -> None:
    figure = ROOT / "docs" / "figures" / "plamo-13b-strategies.svg"
    assert figure.relative_to(ROOT).as_posix() in (ROOT / "README.md").read_text()
    if os.environ.get("UPDATE_EXAMPLES"):
        draw(figure)
    text = figure.read_text()
    assert len(text) < 150_000
    assert f"<dc:description>{description(asked())}</dc:description>" in text


def test_there_are_examples() -> None:
    assert any(page.name == "README.md" for page, _, _ in EXAMPLES)
