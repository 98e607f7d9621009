"""A language's score of each model: its standardised scores, averaged over the tasks."""

from collections.abc import Sequence

import pandas as pd

from flopcast.errors import InputError

# As the PLaMo-13B report does.
LEFT_OUT = ("jnli",)


def standardised(scores: pd.DataFrame) -> pd.DataFrame:
    """Standard scores, (x - mean) / deviation, of each task over the models, so that every task weighs the same.

    ``scores``: a row per model, a column per task. The deviation is the population's; the sample's would scale every
    column alike. Raises InputError for fewer than two models, a missing score, and a task on which all models tie.
    """
    if len(scores) < 2:
        raise InputError(f"standardised scores compare models, and there is {len(scores)}; give at least 2")
    for task in scores.columns:
        missing = scores.index[scores[task].isna()]
        if len(missing):
            raise InputError(f"task '{task}' has no score of {missing[0]}; fill it in, or leave the task or model out")
        if scores[task].nunique() == 1:
            raise InputError(f"task '{task}': all models score {scores[task].iloc[0]}, which ranks none; leave it out")
    return (scores - scores.mean()) / scores.std(ddof=0)


def language_score(scores: pd.DataFrame, left_out: Sequence[str] = LEFT_OUT) -> pd.Series:
    """The mean of a model's standardised scores over the tasks kept, the best model first.

    As the PLaMo-13B report's appendix B describes its scores: 0 is the average model, 1 a standard deviation better.
    Raises InputError as :func:`standardised` does, and where a task to leave out is not there or none is left.
    """
    unknown = [task for task in left_out if task not in scores.columns]
    if unknown:
        raise InputError(f"task '{unknown[0]}' cannot be left out; the tasks are {', '.join(scores.columns)}")
    kept = scores.drop(columns=list(left_out))
    if kept.empty:
        raise InputError("every task is left out; keep at least one")
    return standardised(kept).mean(axis=1).sort_values(ascending=False).rename("score")
