"""The report as one page that needs nothing else: style, script and figures are in it."""

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from flopcast.reports.document.inline_svg import inline_svg
from flopcast.reports.document.recommendation import Recommendation
from flopcast.reports.document.section import Heading, Section
from flopcast.version import __version__

TEMPLATES = files(__package__)


def read(name: str) -> str:
    """The text of a template, style sheet or script beside this file."""
    return TEMPLATES.joinpath(name).read_text(encoding="utf-8")


def as_html(heading: Heading, recommendation: Recommendation, sections: Sequence[Section]) -> str:
    """The page; names and strings are escaped, and its security policy lets it load nothing and run only our script."""
    script = read("page.js")
    environment = Environment(
        loader=FunctionLoader(read), autoescape=True, undefined=StrictUndefined, finalize=_with_its_number
    )
    return environment.get_template("page.html.j2").render(
        **vars(heading),
        version=__version__,
        recommendation=recommendation,
        sections=sections,
        drawings={
            picture.name: Markup(inline_svg(picture.figure, picture.name))  # noqa: S704 - matplotlib's, parsed
            for section in sections
            for picture in section.pictures
        },
        style=Markup(read("page.css")),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _with_its_number(value: object) -> object:
    """Keeps a per cent sign on its number's line."""
    return re.sub(r"(?<=[0-9]) %", "\N{NO-BREAK SPACE}%", value) if type(value) is str else value
