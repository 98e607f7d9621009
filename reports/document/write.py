"""A report from a question to its files."""

import os
from collections.abc import Callable, Sequence
from datetime import date
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flopcast.errors import InputError
from flopcast.files import replacing
from flopcast.reports.comparison import batch_notes, nodes_in_words, num_parameters
from flopcast.reports.document.html import as_html
from flopcast.reports.document.markdown import as_markdown
from flopcast.reports.document.numbers import millions, tokens
from flopcast.reports.document.recommendation import Recommendation, recommend
from flopcast.reports.document.section import Heading, Section
from flopcast.reports.document.sections import sections
from flopcast.reports.document.study import Study
from flopcast.reports.document.table import Cell
from flopcast.reports.figures.canvas import save

ENDINGS = ("svg", "png")


class Report:
    """A study put into words, tables and figures, to be written as a page, as Markdown, or as figure files."""

    def __init__(self, study: Study, command: str = "", day: date | None = None) -> None:
        day = day or date.today()
        self.study = study
        self.heading = Heading(
            f"{study.model.name} on {study.num_gpus:,} x {study.cluster.gpu.name}, {study.cluster.name}",
            in_a_line(study),
            f"{day.day} {day:%B %Y}",
            command,
            tuple(batch_notes(study.comparison)),
        )
        self.recommendation: Recommendation = recommend(study)
        self.sections: tuple[Section, ...] = sections(study)

    def as_html(self) -> str:
        """One self-contained page."""
        return as_html(self.heading, self.recommendation, self.sections)

    def as_markdown(self, links: dict[str, str] | None = None) -> str:
        """GitHub's Markdown; ``links`` maps names of figures to their files."""
        return as_markdown(self.heading, self.recommendation, self.sections, links)

    def as_json(self) -> dict[str, Any]:
        """The recommendation and every table: headings and rows, numbers unrounded and in the unit of their heading.

        A range is a list of its two ends.
        """
        return {
            "title": self.heading.title,
            "notes": list(self.heading.notes),
            "recommendation": self.recommendation.sentence,
            "answers": [vars(answer) for answer in self.recommendation.answers],
            "tables": {
                table.name: {
                    "caption": table.caption,
                    "headings": list(table.headings),
                    "rows": [[_value(cell) for cell in row] for row in table.rows],
                }
                for section in self.sections
                for table in section.tables
            },
        }

    def write_figures(self, folder: Path) -> list[Path]:
        """Every figure as SVG and PNG into the folder, which is made where it is missing."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--figures {folder}: cannot be made ({error.strerror or error})") from error
        written = []
        for section in self.sections:
            for picture in section.pictures:
                for ending in ENDINGS:
                    path = folder / f"{picture.name.removesuffix('-figure')}.{ending}"
                    save(picture.figure, path)
                    written.append(path)
        return written


def in_a_line(study: Study) -> str:
    """How large the question is: parameters, nodes, tokens per step and in all."""
    comparison = study.comparison
    batch = comparison.tokens_per_gpu * comparison.num_gpus
    return (
        f"{num_parameters(study.model)}; {nodes_in_words(study.cluster, study.num_gpus)}; "
        f"{millions(batch)} M tokens per step, {tokens(study.num_tokens)} in all"
    )


def _value(cell: Cell) -> float | str | list[float | None] | None:
    if cell.order is None:
        return cell.text
    return _finite(cell.order) if cell.ends is None else [_finite(end) for end in cell.ends]


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def links_from(document: Path | None, figures: Sequence[Path]) -> dict[str, str]:
    """Links from a Markdown document to its figures' SVG files, relative where both are files."""
    start = document.parent if document else Path()
    return {
        f"{path.stem}-figure": quote(Path(os.path.relpath(path, start)).as_posix())
        for path in figures
        if path.suffix == ".svg"
    }


def write_text(text: str, path: Path, say: Callable[[str], None] = lambda _: None) -> None:
    """Write a document whole or not at all. Raises InputError where the place cannot be written to."""
    try:
        with replacing(path) as place:
            place.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"--output {path}: cannot be written ({error.strerror or error})") from error
    say(f"wrote {path}")
