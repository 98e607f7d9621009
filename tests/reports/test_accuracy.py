"""The error on published runs: stored by source, better than the null model, and not allowed to get worse."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import published
import pytest

from flopcast import InputError
from flopcast.cli import main
from flopcast.reports.accuracy import Accuracy, accuracy
from flopcast.reports.accuracy_table import render, render_constants
from flopcast.reports.figures.accuracy import accuracy_figure
from flopcast.reports.global_fit import GlobalFit, RunSet, fit, weighted_quantiles, write_constants, write_residuals
from flopcast.reports.null_model import NullModel
from flopcast.reports.runs import express, published_runs, read_runs
from flopcast.reports.search_regret import regret
from flopcast.simulator.band import residual_quantiles
from flopcast.simulator.constants import FILE, default_constants, entries

STORED = Path(__file__).parent / "accuracy_by_source.json"
WORSE_BY_AT_MOST = 0.005


@pytest.fixture(scope="module")
def result() -> Accuracy:
    return accuracy()


def test_a_table_of_which_nothing_can_be_forecast_says_why(tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    rows = ("a,x,gpt2,Abacus,8,1024,1", "b,x,no-model,H100,8,1024,1")
    table.write_text("\n".join(["id,source_key,model_name,gpu,n_gpus,seq_len,measured_step_s", *rows]))
    found = accuracy(table)
    assert found.as_json()["overall"] == {"rows": 0.0, "skipped": 2.0}
    assert found.as_json()["sources"] == []
    assert ["unknown GPU 'Abacus'" in reason for reason in found.skipped["skipped"]] == [True, False]
    assert all("skipped 1 of x" in str(part) for part in render(found))
    with pytest.raises(InputError, match="none of the 2 runs can be forecast: a: unknown GPU"):
        RunSet.of(read_runs(table))
    with pytest.raises(InputError, match="nothing to draw"):
        accuracy_figure(found.rows)
    with pytest.raises(InputError, match=r"none of the table's rows can be scored \(a: unknown"):
        found.check_scored()


def test_the_command_ends_with_2_where_nothing_is_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "runs.csv"
    header = "id,source_key,model_name,gpu,n_gpus,seq_len,measured_step_s,global_batch_seqs"
    for rows, said in (
        ("", "has no rows"),
        ("a,x,gpt2,H100,8,1024,,8", "a: measured_step_s is blank"),
        ("a,x,gpt2,H100,8,1024,1,8", ""),
    ):
        table.write_text(f"{header}\n{rows}\n")
        for arguments in (["--json"], []):
            with pytest.raises(SystemExit) as stopped:
                main(["accuracy", "--runs", str(table), *arguments])
            assert stopped.value.code == (2 if said else 0)
            assert said in capsys.readouterr().err
    with pytest.raises(InputError, match="has no sweep"):
        regret(table)


def test_no_source_got_worse(result: Accuracy) -> None:
    stored = json.loads(STORED.read_text())
    found = result.sources["median"]
    assert set(found.index) == set(stored)
    worse = {s: (float(found[s]), stored[s]) for s in stored if found[s] > stored[s] + WORSE_BY_AT_MOST}
    assert not worse, f"median |error| rose; mend it or store the new figures with the reason: {worse}"


def test_better_than_the_null_model_on_most_sources_of_ten_rows_or_more(result: Accuracy) -> None:
    print(result.sources.to_string())
    large = result.sources[result.sources["rows"] >= 10]
    better = large["median"] < large["null_median"]
    assert better.sum() >= 0.9 * len(large)
    assert result.overall["median"] < 0.09
    assert result.overall["null_median"] > 0.2


def test_sums_by_source_are_those_of_the_rows(result: Accuracy) -> None:
    for source, rows in result.rows.groupby("source"):
        errors = (rows["predicted_step_s"] / rows["measured_step_s"] - 1).abs()
        assert result.sources.loc[source, "median"] == pytest.approx(np.median(errors))
        inside = (rows["low_s"] <= rows["measured_step_s"]) & (rows["measured_step_s"] <= rows["high_s"])
        assert result.sources.loc[source, "coverage"] == pytest.approx(inside.mean())


def test_json_keys(result: Accuracy) -> None:
    document = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert {"rows", "sources", "overall", "memory", "null_model"} == set(document)
    keys = {"id", "source", "measured_step_s", "predicted_step_s", "low_s", "high_s", "assumed"}
    assert keys == set(document["rows"][0])
    assert not any("skipped" in row for row in document["rows"])


def test_the_null_model_is_one_efficiency_per_gpu_and_precision() -> None:
    run = express(published.rows()[0])
    assert run.plan is not None
    seconds = run.measured_step_s
    # Efficiencies of 1 and 1/3 of the first run's: their median makes the same step take 3/2 of its time.
    slow = replace(run, measured_step_s=3 * seconds)
    other = replace(run, plan=replace(run.plan, precision="fp8"), measured_step_s=5 * seconds)
    runs = (run, slow, other)
    assert NullModel.of(runs).step_s(runs) == pytest.approx([1.5 * seconds, 1.5 * seconds, 5 * seconds])
    # Sources count alike, however many runs each has: the median of 2/3 and 1/4.
    elsewhere = replace(run, source="another", measured_step_s=4 * seconds)
    runs = (run, slow, elsewhere)
    assert NullModel.of(runs).step_s(runs) == pytest.approx([seconds / np.mean([2 / 3, 1 / 4])] * 3)


def test_the_null_model_of_a_users_table_has_not_seen_its_rows(tmp_path: Path) -> None:
    """On a row of the published table it is that table's own; on a GPU that this lacks, what the published runs do."""
    published_row = published.rows()[0]
    new = {**published_row, "id": "mi300x", "gpu": "MI300X"}
    table = tmp_path / "runs.csv"
    pd.DataFrame([published_row, new]).to_csv(table, index=False)
    found, known = accuracy(table), accuracy()
    null_step_s = known.rows.set_index("id")["null_step_s"]
    assert found.rows["null_step_s"][0] == pytest.approx(null_step_s[published_row["id"]])
    assert found.null_model.endswith("; of mi300x bf16, which they lack, that of all bf16.")
    # The 16-bit efficiencies of the published runs, from their own null model: ideal time over its time, by source.
    runs = RunSet.of([run for run in published_runs() if run.plan and run.plan.precision == "bf16"]).runs
    unit = NullModel({"all": 1.0}).step_s(runs) / [run.measured_step_s for run in runs]
    medians = pd.Series(unit).groupby([run.source for run in runs]).median()
    mine = NullModel({"all": 1.0}).step_s([express(new)])[0]
    assert found.rows["null_step_s"][1] == pytest.approx(mine / medians.median())


def test_the_table_names_every_source(result: Accuracy) -> None:
    from rich.console import Console

    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for part in render(result):
        console.print(part)
    text = console.export_text()
    console.file.close()
    for source in result.sources.index:
        assert source in text


def test_a_fit_finds_the_constants_that_made_the_times() -> None:
    """Times made by other constants, from a slice of the published runs: the fit moves from the defaults to them."""
    runs = [express(cells) for cells in published.rows()[::8]]
    made = default_constants().with_values(gemm_share_ampere=0.75, launch_s=4e-5, pointwise_scale=1.2)
    kept = RunSet.of(runs)
    for run, seconds in zip(kept.runs, kept.predicted_s(made), strict=True):
        run.measured_step_s = float(seconds)
    found = fit(kept)
    assert found.gemm_share_ampere == pytest.approx(0.75, rel=0.03)
    assert found.launch_s == pytest.approx(4e-5, rel=0.1)
    assert np.median(np.abs(kept.log_errors(found))) < 0.01


def test_quantiles_count_sources_alike() -> None:
    values = np.concatenate([np.zeros(1000), np.ones(10)])
    sources = np.array(["many"] * 1000 + ["few"] * 10)
    low, high = weighted_quantiles(values, sources, (0.4, 0.6))
    assert (low, high) == (0.0, 1.0)


def test_constants_and_residuals_are_rewritten_in_place(tmp_path: Path) -> None:
    import tomllib

    copy = tmp_path / "constants.toml"
    copy.write_text(FILE.read_text())
    write_constants(default_constants().with_values(network_leak=0.123456), copy)
    table = tomllib.loads(copy.read_text())
    assert table["network_leak"]["value"] == 0.1235
    assert table["network_leak"]["meaning"] == next(e for e in entries() if e.name == "network_leak").meaning
    assert table["memory_share"]["value"] == default_constants().memory_share

    runs = RunSet.of([express(cells) for cells in published.rows()[:40]])
    write_residuals(runs, np.linspace(-0.3, 0.3, 40), tmp_path / "residuals.toml")
    written = tomllib.loads((tmp_path / "residuals.toml").read_text())
    assert set(written) == set(residual_quantiles())
    # Of a single source, the band for another one takes in all.
    ends = [written[name][end] for name in written for end in ("low", "high")]
    assert min(ends) == -0.3
    assert max(ends) == 0.3


def test_constants_table_shows_before_and_after() -> None:
    table = render_constants(default_constants(), default_constants().with_values(network_leak=0.5))
    assert table.row_count == sum(entry.fitted for entry in entries())


def test_the_global_fit_as_json_is_its_table() -> None:
    """Every fitted constant before and after, and the two errors: of runs twice as fast as forecast both are 100 %."""
    runs = RunSet.of([express(cells) for cells in published.rows()[:6]])
    before, errors = default_constants(), np.log(2.0) * np.ones(len(runs.runs))
    changed = before.with_values(launch_s=2 * before.launch_s)
    document = GlobalFit(runs, before, changed, errors).as_json()
    fitted = [entry.name for entry in entries() if entry.fitted]
    assert [constant["name"] for constant in document["constants"]] == fitted
    differing = {c["name"]: c["after"] / c["before"] for c in document["constants"] if c["after"] != c["before"]}
    assert differing == {"launch_s": 2}
    assert document["error_left_out"] == pytest.approx(1.0)
    assert document["num_runs"] == len(runs.runs) == 6
    assert json.loads(json.dumps(document)) == document
