"""Commands that say how far to trust a forecast, and that fit it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from flopcast.cli.app import Flag, app
from flopcast.cli.output import PICTURES, check_place, print_json, show
from flopcast.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

# What the three uses of ``calibrate`` take beside their own argument.
TAKES = {
    "RUNS": {"cluster", "constants", "output", "json"},
    "--global": {"write", "json"},
    "--nccl-log": {"cluster", "collective", "json"},
}


@app.command
def accuracy(
    *,
    runs: Path | None = None,
    collectives: str | None = None,
    regret: Flag = False,
    check: Flag = False,
    figure: Path | None = None,
    json: Flag = False,
) -> None:
    """The forecast against measured training steps, or collectives: the error of every source, beside a null model's.

    Parameters
    ----------
    runs
        A CSV with the columns of reports/measurements/training_runs.md; by default the published runs we hold.
    collectives
        Instead: a CSV with the columns of reports/measurements/collectives.md, or "published" for the rows we hold.
    regret
        Instead: of every sweep in RUNS (same model, machine, GPU count and batch) how much slower than the fastest run
        the one is that the forecast ranks first.
    check
        Instead: look for faults in RUNS themselves: cells, units, rates that contradict each other, FLOP conventions.
    figure
        Draw predicted against measured step times (.svg, .png, .pdf).
    json
        Print one JSON document and nothing else: every row, the sources, the whole.

    """
    instead = [name for name, given in (("collectives", collectives), ("regret", regret), ("check", check)) if given]
    beside = [name for name, given in (("runs", runs and collectives), ("figure", figure and instead)) if given]
    if len(instead + beside) > 1:
        first, second = (instead + beside)[:2]
        raise InputError(f"accuracy --{first} and --{second} do not go together; ask for one of them")
    if figure is not None:
        check_place("--figure", figure, PICTURES)
    if regret:
        _regret(runs, json)
    elif check:
        _check(runs, json)
    elif collectives:
        _collectives(collectives, json)
    else:
        _errors(runs, figure, json)


def _errors(runs: Path | None, figure: Path | None, json: bool) -> None:
    from flopcast.reports.accuracy import accuracy as measure
    from flopcast.reports.runs import PUBLISHED_RUNS

    result = measure(runs or PUBLISHED_RUNS)
    if json:
        print_json(result.as_json())
    else:
        from flopcast.reports.accuracy_table import render

        show(render(result))
    result.check_scored()
    if figure is not None:
        from flopcast.reports.figures.accuracy import accuracy_figure
        from flopcast.reports.figures.canvas import save

        save(accuracy_figure(result.rows), figure)


def _regret(runs: Path | None, json: bool) -> None:
    from flopcast.reports.runs import PUBLISHED_RUNS
    from flopcast.reports.search_regret import regret, render

    sweeps = regret(runs or PUBLISHED_RUNS)
    if json:
        print_json(sweeps.as_json())
    else:
        show([render(sweeps)])


def _collectives(table: str, json: bool) -> None:
    from flopcast.reports.collective_accuracy import PUBLISHED_COLLECTIVES, collective_accuracy, render

    found = collective_accuracy(PUBLISHED_COLLECTIVES if table == "published" else Path(table))
    if json:
        print_json(found.as_json())
    elif not found.bins.empty:
        show(render(found))
    found.check_scored()


def _check(runs: Path | None, json: bool) -> None:
    from flopcast.reports.run_check import check_table, render
    from flopcast.reports.runs import PUBLISHED_RUNS

    found = check_table(runs or PUBLISHED_RUNS)
    if json:
        print_json(found.as_json())
    else:
        show(render(found))
    if found.faults:
        sys.exit(1)


@app.command
def calibrate(
    *runs: Path,
    cluster: Path | None = None,
    constants: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    output: Annotated[Path | None, Parameter(name=["-o", "--output"])] = None,
    global_: Annotated[bool, Parameter(name="--global", negative="")] = False,
    nccl_log: Path | None = None,
    collective: str | None = None,
    write: Flag = False,
    json: Flag = False,
) -> None:
    """Fit constants to measurements, and say how good the fit is: a machine's, its collectives', the forecast's own.

    Parameters
    ----------
    runs
        Runs of the machine that --cluster profiles: folders or logs of the trainer, or a CSV of training runs.
    cluster
        The machine's profile; its forecasts with and without the fit are compared. Of --nccl-log: catalogue name, TOML
        file or profile of its machine; adds the forecast of every row and forecast / measured.
    constants
        of compute_scale, dispatch_scale, overlap_leak, straggler; by default those that the runs can tell apart.
    output
        Write the profile with its calibration here; --cluster of every command accepts it.
    global_
        Fit the constants of simulator/constants.toml to the published runs together, each framework left out in turn.
    nccl_log
        Fit latency and bandwidth by size to a log of nccl-tests (its text, or its -J JSON), with residuals.
    collective
        What the log's rows are of, where the log does not say; a log of several gives a table of each.
    write
        Store the constants of --global, and the band from the runs left out.
    json
        Print the calibration of RUNS, the fit to the log, or the constants of --global, and nothing else.

    """
    asked = [name for name, value in (("RUNS", runs), ("--global", global_), ("--nccl-log", nccl_log)) if value]
    if len(asked) != 1:
        raise InputError("calibrate: give RUNS and --cluster PROFILE, or say --global, or give --nccl-log FILE")
    given: dict[str, object] = {"cluster": cluster, "constants": constants, "output": output, "json": json}
    given |= {"write": write, "collective": collective}
    stray = next((name for name, value in given.items() if value and name not in TAKES[asked[0]]), None)
    if stray:
        raise InputError(f"calibrate {asked[0]} takes no --{stray}; leave it out")
    if output is not None:
        check_place("--output", output)
    if runs:
        _calibrate_machine(runs, cluster, constants, output, json)
        return
    if nccl_log:
        _calibrate_collectives(nccl_log, collective, cluster, json)
        return
    from flopcast.reports.accuracy_table import render_constants
    from flopcast.reports.global_fit import calibrate as fit_all
    from flopcast.reports.runs import PUBLISHED_RUNS

    result = fit_all(PUBLISHED_RUNS)
    if write:
        result.write()
        print("flopcast: wrote simulator/constants.toml, simulator/residuals.toml", file=sys.stderr)
    if json:
        print_json(result.as_json())
        return
    parts: list[RenderableType] = [
        render_constants(result.before, result.after),
        f"mean over sources of the median |error|: {result.in_sample:.1%} on the runs fitted to, "
        f"{result.left_out:.1%} on runs of a framework left out",
    ]
    show(parts)


def _calibrate_collectives(path: Path, collective: str | None, cluster: Path | None, json: bool) -> None:
    from flopcast.collectives.running.forecasts import with_forecasts
    from flopcast.collectives.running.log_calibration import as_json, fit, residual_table
    from flopcast.collectives.running.nccl_tests_log import read_log

    log = read_log(path, collective)
    rows = log.rows
    if cluster is not None:
        from flopcast.simulator.catalogue import load_cluster
        from flopcast.simulator.machine import machine_of

        rows = with_forecasts(log, machine_of(load_cluster(str(cluster))), str(path))
    if wrong := [row for row in rows if row.num_wrong]:
        first = f"the first at {wrong[0].num_bytes} B"
        said = f"{len(wrong)} of {len(rows)} rows, whose results were wrong (#wrong; {first})"
        if len(wrong) == len(rows):
            raise InputError(f"{path}: nothing to fit to without {said}; mend the machine and run it again")
        print(f"flopcast: {path}: leaves out {said}", file=sys.stderr)
        rows = tuple(row for row in rows if not row.num_wrong)
    names = dict.fromkeys(row.collective for row in rows)
    of_each = [[row for row in rows if row.collective == name] for name in names]
    fits = [(mine, fit(mine)) for mine in of_each]
    if json:
        print_json({"collectives": [as_json(*each) for each in fits]})
        return
    for name, each in zip(names, fits, strict=True):
        print("\n".join([f"# {name}", *residual_table(*each)]))


def _calibrate_machine(
    paths: tuple[Path, ...], cluster: Path | None, constants: list[str] | None, output: Path | None, json: bool
) -> None:
    from flopcast.reports.calibration import calibrate as fit
    from flopcast.reports.calibration_table import lines
    from flopcast.reports.machine_runs import read_machine_runs
    from flopcast.simulator.profile import read_profile, write_profile
    from flopcast.simulator.profiled_cluster import cluster_of

    if cluster is None:
        raise InputError("calibrate RUNS needs --cluster PROFILE, which 'flopcast profile' wrote on their machine")
    profile = read_profile(cluster).model_copy(update={"calibration": None})
    machine = cluster_of(profile, cluster.parent, str(cluster))
    found = fit(read_machine_runs(paths), machine, constants, profile.device)
    section = found.section()
    if output is not None:
        write_profile(output, profile.model_copy(update={"calibration": section}))
    if json:
        print_json(section.model_dump(mode="json"))
    else:
        print("\n".join(lines(found)))
    if output is not None:
        print(f"flopcast: wrote {output}", file=sys.stderr)
