"""Reading a table that a user hands us: a CSV with the columns we need, or one line that says what is wrong."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from flopcast.errors import InputError


def read_table(path: Path, needed: Sequence[str], described_in: str) -> pd.DataFrame:
    """The CSV at ``path``, of commas, semicolons or tabs.

    Raises InputError where it is absent, no CSV, empty, or lacks a column (see ``described_in``).
    """
    try:
        separator, decimal = _separators(path)
        table = pd.read_csv(path, sep=separator, decimal=decimal)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a CSV file: {' '.join(str(error).split())}") from None
    missing = [column for column in needed if column not in table.columns]
    if missing:
        raise InputError(f"{path}: columns {', '.join(missing)} are missing; see {described_in}")
    if table.empty:
        raise InputError(f"{path}: has no rows; see {described_in}")
    return table


def _separators(path: Path) -> tuple[str, str]:
    """What the heading's columns are separated by, and the decimal point: a comma where that is a semicolon."""
    heading = pd.read_csv(path, nrows=0).columns
    if len(heading) == 1 and ";" in heading[0]:
        return ";", ","
    return ("\t" if len(heading) == 1 and "\t" in heading[0] else ","), "."
