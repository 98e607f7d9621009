"""Every notebook runs from top to bottom as it is committed: asks a question, has no outputs, raises nothing."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def load(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_short_asks_a_question_and_holds_no_outputs(path: Path) -> None:
    notebook = load(path)
    nbformat.validate(notebook)
    first, *rest = notebook.cells
    question = first.source.splitlines()[0]
    assert question.startswith("# ")
    assert question.endswith("?")
    assert 10 <= len(notebook.cells) <= 20
    code = [cell for cell in rest if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    notebook = load(path)
    # The kernel starts where no file of ours lies, as for a reader who installed the package.
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error"] == []
    assert [output.text for output in outputs if output.get("name") == "stderr" and "Warning" in output.text] == []
    # Measurements end in a ratio: the last table has the column.
    assert "ratio" in str(outputs[-1].get("data", {}).get("text/plain", ""))


def test_the_index_has_every_notebook_and_its_question() -> None:
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"\| \[[a-z0-9-]+\]\(([a-z0-9-]+\.ipynb)\) \| (.+?) \|", index))
    assert listed == {path.name: load(path).cells[0].source.splitlines()[0].removeprefix("# ") for path in NOTEBOOKS}
