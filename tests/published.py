"""Published runs, one row at a time: to express all takes seconds, and most tests need but some."""

from typing import Any

from flopcast.reports.runs import NEEDED, PUBLISHED_RUNS
from flopcast.reports.table_file import read_table


def rows() -> list[dict[Any, Any]]:
    """The cells of every row, for :func:`flopcast.reports.runs.express`."""
    return read_table(PUBLISHED_RUNS, NEEDED, "").to_dict("records")
