"""The command that writes a capacity plan for people who never ran the tool."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from flopcast.cli.app import Flag, app
from flopcast.cli.output import check_place, print_document, print_json
from flopcast.cli.question import Question
from flopcast.errors import InputError

MARKDOWN = (".md", ".markdown")


@app.command
def report(
    model: str,
    /,
    *,
    question: Question,
    output: Annotated[Path | None, Parameter(name=["-o", "--output"])] = None,
    format: Literal["html", "markdown"] | None = None,
    figures: Path | None = None,
    json: Flag = False,
) -> None:
    """Write a report: what to run, what it costs, how sure that is, and why.

    Parameters
    ----------
    model
        A catalogue name (plamo-13b) or the path of a Hugging Face config.json.
    question
        What is asked.
    output
        The file to write; without it the document is printed.
    format
        html, one page that needs nothing else, or markdown; by default as the file's name ends, else html.
    figures
        Also write every figure as SVG and PNG into this folder; Markdown links to them.
    json
        Print the recommendation and every table as one JSON document; files are written all the same.

    """
    if output is not None:
        check_place("--output", output)
    if output is not None and output.suffix.lower() == ".pdf":
        raise InputError(f"--output {output}: name a .html or .md file; a browser prints the page as PDF")
    if figures is not None and figures.exists() and not figures.is_dir():
        raise InputError(f"--figures {figures}: is a file; name a folder")
    markdown = format == "markdown" or (format is None and output is not None and output.suffix.lower() in MARKDOWN)
    from flopcast.reports.document.study import study
    from flopcast.reports.document.write import Report, links_from, write_text
    from flopcast.simulator.catalogue import load_cluster, load_model

    def say(words: str) -> None:
        print(f"flopcast: {words}", file=sys.stderr)

    request = question.request()
    typed = sys.argv[1:]
    command = f"flopcast {shlex.join(typed)}" if typed[:1] == ["report"] else ""
    found = Report(study(load_model(model), load_cluster(question.cluster), request, question.tokens, say), command)
    drawn = found.write_figures(figures) if figures else []
    if drawn:
        say(f"wrote {len(drawn)} figures to {figures}")
    document = None
    if output or not json:
        document = found.as_markdown(links_from(output, drawn)) if markdown else found.as_html()
    if output and document:
        write_text(document, output, say)
    if json:
        print_json(found.as_json())
    elif output:
        print(found.recommendation.sentence)
    elif document:
        print_document(document)
