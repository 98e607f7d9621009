"""Rows of a DataFrame as objects, for code that writes them out one by one."""

from typing import Any

import pandas as pd


def rows_of(frame: pd.DataFrame) -> list[Any]:
    """One object per row with the columns as attributes; a column's type is its maker's to state."""
    return list(frame.itertuples(index=False))
