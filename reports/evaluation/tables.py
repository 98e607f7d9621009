"""Published figures, read from the files beside this one."""

from pathlib import Path

import pandas as pd

FOLDER = Path(__file__).parent


def flop_efficiency() -> pd.DataFrame:
    """Table 3 of the PLaMo-13B report.

    Columns: model, gpu, num_gpus, seq_len, peak_flop_per_s (dense, 16 bits), flop_efficiency (a fraction).
    """
    return pd.read_csv(FOLDER / "flop_efficiency.csv")


def published_efficiency(model: str) -> float:
    """That table's efficiency of a model, as a fraction."""
    return float(flop_efficiency().set_index("model")["flop_efficiency"][model])


def statements() -> pd.DataFrame:
    """What else the report says in figures. Columns: name, published, unit, statement."""
    return pd.read_csv(FOLDER / "statements.csv")


def language_scores() -> pd.DataFrame:
    """Published scores in percent, a row per model, a column per Japanese task, then ``published_mean`` of them all."""
    return pd.read_csv(FOLDER / "scores.csv", index_col="model")
