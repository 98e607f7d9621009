"""The command and the files it writes."""

import json
import os
import re
from pathlib import Path

import pytest

from flopcast import Request, load_cluster, load_model
from flopcast.cli import main
from flopcast.errors import InputError
from flopcast.reports.document.markdown import escape
from flopcast.reports.document.study import study
from flopcast.reports.document.table import numbers_in
from flopcast.reports.document.write import Report, links_from, write_text

QUESTION = ["report", "pythia-1b", "--cluster", "dgx-a100", "--gpus", "16"]


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([*QUESTION, *arguments])
    return int(stopped.value.code or 0)


def test_the_page_is_written_and_the_recommendation_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "report.html"
    assert command("-o", str(page)) == 0
    output = capsys.readouterr()
    assert output.out.startswith("Run ")
    assert len(output.out.splitlines()) == 1
    assert f"flopcast: wrote {page}" in output.err
    assert output.out.strip() in page.read_text(encoding="utf-8")
    assert os.listdir(tmp_path) == ["report.html"]


def test_markdown_links_to_the_figures_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "plan" / "report.md"
    document.parent.mkdir()
    assert command("--format", "markdown", "--figures", str(tmp_path / "my figures"), "-o", str(document)) == 0
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"!\[[^\]]+\]\(<([^>]+)>\)", text)
    assert len(links) == 7
    for link in links:
        path = document.parent / link.replace("%20", " ")
        assert "<svg" in path.read_text(encoding="utf-8")
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert len(os.listdir(tmp_path / "my figures")) == 14
    for line in text.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in range(3, 13)


def test_without_a_file_the_document_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--format", "markdown") == 0
    assert capsys.readouterr().out.startswith("# Pythia-1B on 16 x a100-40gb")


def test_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--json", "--tokens", "3e11") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["recommendation"].startswith("Run ")
    cost = {row[0]: row[2] for row in document["tables"]["cost-table"]["rows"]}
    assert cost["GPU-hours"] == pytest.approx(cost["days"] * 24 * 16)
    assert cost["days"] > cost["days of training alone"]


def test_the_documents_numbers_are_those_that_the_tables_show_unrounded() -> None:
    # A run of minutes: its columns of time are in the unit of their heading as well.
    model, machine = load_model("gpt2"), load_cluster("dgx-h100")
    report = Report(study(model, machine, Request(8), 1e9))
    tables = report.as_json()["tables"]
    assert "minutes" in tables["strategies-table"]["headings"]
    compared = 0
    for shown in (table for section in report.sections for table in section.tables):
        for cells, values in zip(shown.rows, tables[shown.name]["rows"], strict=True):
            for cell, value in zip(cells, values, strict=True):
                words = numbers_in(cell.text.replace("+", "").replace("-", ""))
                if cell.order is None or not words or " of " in cell.text:
                    continue
                ends = value if isinstance(value, list) else [value]
                for word, end in zip(words, ends, strict=False):
                    number = float(word.replace(",", ""))
                    # Half of the last digit shown, or of the third where whole numbers are rounded to three.
                    last = 0.5 * 10.0 ** -len(word.partition(".")[2]) + 0.005 * number * ("." not in word)
                    assert abs(abs(end) - number) <= 1.001 * last, (shown.name, cell.text, value)
                    compared += 1
    assert compared > 200


@pytest.mark.parametrize("budget", ["0", "-1", "nan", "inf"])
def test_a_budget_that_is_none_is_bad_input(budget: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--tokens", budget) == 2
    assert "--tokens is" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_to_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("-o", str(tmp_path / "missing" / "report.html")) == 2
    assert "--output" in capsys.readouterr().err
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert command("--figures", str(tmp_path / "file")) == 2
    assert "--figures" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_to_is_told_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("-o", str(tmp_path)) == 2
    assert capsys.readouterr().err == f"flopcast: --output {tmp_path}: is a folder; name a file\n"
    assert command("-o", str(tmp_path / "plan.pdf")) == 2
    assert "a browser prints the page as PDF" in capsys.readouterr().err


def test_a_file_called_md_is_markdown(tmp_path: Path) -> None:
    assert command("-o", str(tmp_path / "plan.md")) == 0
    assert (tmp_path / "plan.md").read_text(encoding="utf-8").startswith("# Pythia-1B")


def test_a_name_that_is_no_text_is_written_all_the_same(tmp_path: Path) -> None:
    write_text("caf\udce9", tmp_path / "report.md")
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == "caf?"


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "report.html"
    page.write_text("before", encoding="utf-8")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        write_text("after", page)
    assert page.read_text(encoding="utf-8") == "before"


def test_a_device_is_written_to_and_not_replaced() -> None:
    write_text("text", Path(os.devnull))
    assert Path(os.devnull).is_char_device()


def test_links_are_relative_to_the_document() -> None:
    figures = [Path("a/figures/memory.svg"), Path("a/figures/memory.png")]
    assert links_from(Path("a/report.md"), figures) == {"memory-figure": "figures/memory.svg"}


def test_markdown_escapes_what_it_would_read_otherwise(hostile: Report) -> None:
    assert escape("<b>|`*_[x]$") == r"&lt;b&gt;\|\`\*\_\[x\]\$"
    text = hostile.as_markdown()
    outside_code = re.sub(r"`[^`\n]*`", "", text.replace(r"\`", ""))
    assert not re.search(r"<(?:script|img|b|/)", outside_code)
    heading = next(line for line in text.splitlines() if line.startswith("# "))
    assert "&lt;/title&gt;" in heading
