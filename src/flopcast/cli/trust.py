"""Commands that say how far to trust a forecast, and that fit it."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flopcast.cli.app import Flag, app
from flopcast.cli.output import console, print_json
from flopcast.errors import InputError


@app.command
def accuracy(
    *,
    runs: Path | None = None,
    collectives: str | None = None,
    json: Flag = False,
) -> None:
    """The forecast against measured training steps, or collectives: the error of every source, beside a null model's.

    Parameters
    ----------
    runs
        A CSV with the columns of reports/measurements/training_runs.md; by default the published runs we hold.
    collectives
        Instead: a CSV with the columns of reports/measurements/collectives.md, or "published" for the rows we hold.
    json
        Print one JSON document and nothing else: every row, the sources, the whole.

    """
    if collectives:
        from flopcast.reports import collective_accuracy as by_size

        path = by_size.PUBLISHED_COLLECTIVES if collectives == "published" else Path(collectives)
        found = by_size.collective_accuracy(path)
        if json:
            print_json(found.as_json())
        else:
            console().print(by_size.render(found))
        return
    from flopcast.reports.accuracy import PUBLISHED_RUNS
    from flopcast.reports.accuracy import accuracy as measure

    result = measure(runs or PUBLISHED_RUNS)
    if json:
        print_json(result.as_json())
        return
    from flopcast.reports.accuracy_table import render

    out = console()
    for part in render(result):
        out.print(part)


@app.command
def calibrate(
    *,
    global_: Annotated[bool, Parameter(name="--global", negative="")] = False,
    nccl_log: Path | None = None,
    collective: str | None = None,
    write: Flag = False,
) -> None:
    """Fit constants to measurements, and say how good the fit is: the forecast's own, or a site's collectives.

    Parameters
    ----------
    global_
        Fit the constants of simulator/constants.toml to the published runs together, each framework left out in turn.
    nccl_log
        Fit latency and bandwidth by size to a log of nccl-tests (its text, or its -J JSON), with residuals.
    collective
        What the log's rows are of, where the log does not say.
    write
        Store the constants, and the band from the runs left out.

    """
    if nccl_log:
        from flopcast.collectives.running.log_calibration import fit, residual_table
        from flopcast.collectives.running.nccl_tests_log import read_log

        rows = read_log(nccl_log, collective).rows
        print("\n".join(residual_table(rows, fit(rows))))
        return
    if not global_:
        raise InputError("calibrate: say --global, or give --nccl-log FILE")
    from flopcast.reports.accuracy import PUBLISHED_RUNS
    from flopcast.reports.accuracy_table import render_constants
    from flopcast.reports.global_fit import calibrate as fit_all

    result = fit_all(PUBLISHED_RUNS)
    out = console()
    out.print(render_constants(result.before, result.after))
    out.print(
        f"mean over sources of the median |error|: {result.in_sample:.1%} on the runs fitted to, "
        f"{result.left_out:.1%} on runs of a framework left out"
    )
    if write:
        result.write()
        out.print("written: simulator/constants.toml, simulator/residuals.toml")
