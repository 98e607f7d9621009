"""Commands that measure this machine."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flopcast.cli.app import Flag, bench
from flopcast.cli.output import print_json


@bench.command
def collectives(
    *names: str,
    begin: Annotated[str, Parameter(name=["-b", "--begin"])] = "1K",
    end: Annotated[str, Parameter(name=["-e", "--end"])] = "64M",
    factor: Annotated[int, Parameter(name=["-f", "--factor"])] = 2,
    iterations: Annotated[int, Parameter(name=["-n", "--iterations"])] = 20,
    warm_up: Annotated[int, Parameter(name=["-w", "--warm-up"])] = 1,
    data_type: Annotated[str, Parameter(name=["-d", "--data-type"])] = "float",
    cluster: str | None = None,
    backend: str | None = None,
    timeout: float = 120.0,
    csv: Path | None = None,
    json: Flag = False,
) -> None:
    """Time collectives under torchrun, in nccl-tests' columns, beside the forecast.

    Parameters
    ----------
    names
        all_reduce (the default), all_gather, reduce_scatter, all_to_all, broadcast, reduce, sendrecv,
        quantised_all_gather, torus_all_reduce.
    begin
        Smallest size, e.g. 8K.
    end
        Largest size, e.g. 2G.
    factor
        Ratio of one size to the one before.
    iterations
        Timed calls of each size.
    warm_up
        Calls before them.
    data_type
        float, bfloat16, half, int32, int64, ...
    cluster
        Catalogue name or TOML file of this machine: adds the forecast and the algorithm.
    backend
        nccl or gloo; by default what the devices allow.
    timeout
        Seconds after which a rank that does not answer is an error on every rank.
    csv
        Also write every row, with versions and devices.
    json
        Print one JSON document and nothing else.

    """
    from flopcast.collectives.running.agreement import CollectiveError
    from flopcast.collectives.running.benchmark import Options, machine, run
    from flopcast.collectives.running.results import records, write_csv
    from flopcast.collectives.running.sizes import parse_size

    fabric = None
    if cluster:
        from flopcast.simulator.catalogue import load_cluster
        from flopcast.simulator.hardware import Hardware

        fabric = Hardware.of([load_cluster(cluster)]).fabric
    sizes = parse_size(begin), parse_size(end)
    options = Options(tuple(names) or ("all_reduce",), *sizes, factor, iterations, warm_up, data_type, backend, timeout)
    try:
        report = run(options, fabric, show=None if json else print, quiet=json)
    except CollectiveError as error:
        print("flopcast: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(1)
    if report is None:  # only rank 0 reports
        return
    if csv:
        write_csv(csv, records(report.rows, machine(report)))
    if json:
        print_json(report.as_json())
    if report.num_wrong:
        sys.exit(1)
