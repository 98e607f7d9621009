"""The parts that a report is made of, whatever it is written as."""

from dataclasses import dataclass

from matplotlib.figure import Figure

from flopcast.reports.document.table import Table


@dataclass(frozen=True)
class Picture:
    """A figure with what it shows (``caption``) and what a reader who cannot see it should know (``alternative``)."""

    name: str
    figure: Figure
    caption: str
    alternative: str


@dataclass(frozen=True)
class Heading:
    """What stands above and below a report: title, the question's size in a line, the day, the command that made it.

    ``notes``: what is unusual about the question, where it was left to the report.
    """

    title: str
    subtitle: str
    date: str
    command: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """One question of the report with its answer: paragraphs, pictures, tables, remarks."""

    name: str
    title: str
    paragraphs: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    remarks: tuple[str, ...] = ()
