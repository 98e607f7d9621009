"""Language scores: against z-scores worked by hand, and against the published means of the table."""

import pandas as pd
import pytest

from flopcast.errors import InputError
from flopcast.reports.evaluation.standardised import language_score, standardised
from flopcast.reports.evaluation.tables import language_scores


def table() -> pd.DataFrame:
    """Deviations by hand: easy 10 around 80, hard 1 around 2, jnli 20 around 40."""
    columns = {"easy": [70.0, 90.0], "hard": [3.0, 1.0], "jnli": [20.0, 60.0]}
    return pd.DataFrame(columns, index=["a", "b"])


def test_each_task_has_mean_0_and_deviation_1() -> None:
    found = standardised(table())
    assert found.to_numpy().ravel() == pytest.approx([-1, 1, -1, 1, -1, 1])
    every = standardised(language_scores().drop(columns="published_mean"))
    assert every.mean().to_numpy() == pytest.approx(0, abs=1e-12)
    assert every.std(ddof=0).to_numpy() == pytest.approx(1)


def test_jnli_decides_only_where_it_is_counted() -> None:
    assert language_score(table()).to_dict() == pytest.approx({"a": 0.0, "b": 0.0})
    assert language_score(table(), left_out=()).to_dict() == pytest.approx({"a": -1 / 3, "b": 1 / 3})


def test_points_and_fractions_score_alike() -> None:
    scores = language_scores().drop(columns="published_mean")
    assert language_score(scores / 100).to_numpy() == pytest.approx(language_score(scores).to_numpy())


def test_the_transcribed_scores_have_the_published_means() -> None:
    scores = language_scores()
    means = scores.drop(columns="published_mean").mean(axis=1)
    assert means.to_numpy() == pytest.approx(scores["published_mean"].to_numpy(), abs=0.011)  # rounded inputs


@pytest.mark.parametrize(
    ("scores", "left_out", "message"),
    [
        (table().head(1), (), "there is 1; give at least 2"),
        (table().replace(90.0, float("nan")), ("jnli",), "'easy' has no score of b"),
        (table().replace(3.0, 1.0), ("jnli",), "'hard': all models score 1.0"),
        (table(), ("jlni",), "'jlni' cannot be left out; the tasks are easy, hard, jnli"),
        (table(), ("easy", "hard", "jnli"), "keep at least one"),
    ],
)
def test_what_cannot_be_scored_is_said(scores: pd.DataFrame, left_out: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        language_score(scores, left_out)
