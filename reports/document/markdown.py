"""The report as Markdown: the same sections, tables as GitHub's pipes, figures as links to their files."""

import html
import re
from collections.abc import Mapping, Sequence

from flopcast.reports.document.recommendation import Recommendation
from flopcast.reports.document.section import Heading, Section
from flopcast.reports.document.table import Table


def as_markdown(
    heading: Heading,
    recommendation: Recommendation,
    sections: Sequence[Section],
    links: Mapping[str, str] | None = None,
) -> str:
    """The document; ``links`` maps a picture's name to its file, and pictures without one are left to their text."""
    links = links or {}
    lines = [f"# {escape(heading.title)}", "", f"{escape(heading.subtitle)}. {heading.date}.", ""]
    lines += [line for note in heading.notes for line in (escape(note), "")]
    lines += [f"**{escape(recommendation.sentence)}**", ""]
    lines += ["| | | |", "|---|---|---|"]
    lines += [
        f"| {escape(answer.question)} | **{escape(answer.answer)}** | {escape(answer.note)} |"
        for answer in recommendation.answers
    ]
    for section in sections:
        lines += ["", f"## {escape(section.title)}"]
        for paragraph in section.paragraphs:
            lines += ["", escape(paragraph)]
        for picture in section.pictures:
            if picture.name in links:
                lines += ["", f"![{escape(picture.alternative)}](<{links[picture.name]}>)"]
        for table in section.tables:
            lines += ["", f"**{escape(table.caption)}**", "", *_pipes(table)]
        for remark in section.remarks:
            lines += ["", escape(remark)]
    if heading.command:
        lines += ["", f"Made by `{heading.command.replace('`', '')}`"]
    return "\n".join(lines) + "\n"


def _pipes(table: Table) -> list[str]:
    columns = range(len(table.headings))
    lines = ["| " + " | ".join(escape(heading) for heading in table.headings) + " |"]
    lines.append("|" + "|".join("---:" if table.kind(column) == "number" else "---" for column in columns) + "|")
    for index, row in enumerate(table.rows):
        cells = [_code(cell.text) if cell.code else escape(cell.text) for cell in row]
        if index in table.strong:
            cells = [f"**{cell}**" if cell else cell for cell in cells]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _code(words: str) -> str:
    """Text to be typed, in which only what would end the cell or the code is replaced."""
    return f"`{words.replace('`', '').replace('|', '')}`"


def escape(words: str) -> str:
    """Text on one line that Markdown and the HTML in it read as text."""
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(" ".join(words.split()), quote=False))
