"""Commands that measure this machine."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flopcast.cli.app import Flag, bench
from flopcast.cli.output import PICTURES, check_place, print_json, show
from flopcast.errors import InputError


@bench.command
def collectives(
    *names: str,
    begin: Annotated[str, Parameter(name=["-b", "--begin"])] = "1K",
    end: Annotated[str, Parameter(name=["-e", "--end"])] = "64M",
    factor: Annotated[int, Parameter(name=["-f", "--factor"])] = 2,
    step: Annotated[str | None, Parameter(name=["-i", "--step"])] = None,
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
    step
        Instead: bytes from one size to the next, e.g. 1M.
    iterations
        Timed calls of each size.
    warm_up
        Calls before them.
    data_type
        float, bfloat16, half, int32, int64, ...
    cluster
        Catalogue name, TOML file or profile of this machine: adds the forecast and the algorithm.
    backend
        nccl or gloo; by default what the devices allow.
    timeout
        Seconds after which a rank that does not answer is an error on every rank.
    csv
        Also write every row, with versions and devices.
    json
        Print one JSON document and nothing else.

    """
    from flopcast.trainer.installed import require_torch

    require_torch()
    if backend not in (None, "nccl", "gloo"):
        raise InputError(f"--backend is '{backend}'; choose nccl or gloo")
    if csv:
        check_place("--csv", csv)
    from flopcast.collectives.running.agreement import CollectiveError
    from flopcast.collectives.running.benchmark import Options, machine, run
    from flopcast.collectives.running.results import records, write_csv
    from flopcast.collectives.running.sizes import parse_size

    on = None
    if cluster:
        from flopcast.simulator.catalogue import load_cluster
        from flopcast.simulator.machine import machine_of

        on = machine_of(load_cluster(cluster))
    sizes, apart = (parse_size(begin), parse_size(end)), None if step is None else parse_size(step)
    options = Options(
        tuple(names) or ("all_reduce",), *sizes, factor, iterations, warm_up, data_type, backend, timeout, apart
    )

    def show(text: str) -> None:
        with contextlib.suppress(*[BrokenPipeError] if csv else []):  # the rows are still wanted in the file
            print(text, flush=True)

    try:
        report = run(options, on, show=None if json else show, quiet=json)
    except CollectiveError as error:
        print("flopcast: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(1)
    if report is None:  # only rank 0 reports, and not where nobody reads
        return
    if csv:
        write_csv(csv, records(report.rows, machine(report)))
    if json:
        print_json(report.as_json())
    if report.num_wrong:
        sys.exit(1)


@bench.command
def kernels(
    *,
    device: str | None = None,
    tokens: Annotated[list[int] | None, Parameter(consume_multiple=True, negative="")] = None,
    hidden: Annotated[list[int] | None, Parameter(consume_multiple=True, negative="")] = None,
    dtype: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    ops: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    providers: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    samples: int = 20,
    budget_seconds: float = float("inf"),
    output: Annotated[Path | None, Parameter(name=["-o", "--output"])] = None,
    figure: Path | None = None,
    json: Flag = False,
) -> None:
    """Time our kernels beside eager PyTorch, its fused forms, torch.compile, Liger-Kernel and QuACK where installed.

    Parameters
    ----------
    device
        cuda, cuda:1 or cpu; by default the GPU where there is one. On a CPU the reference runs, and the answer says so.
    tokens
        Rows, by default 1 K to 128 K (fewer on a CPU).
    hidden
        Hidden sizes, by default 2048 to 8192.
    dtype
        bfloat16 (the default), float16, float32.
    ops
        rms_norm, add_rms_norm, add_add_rms_norm, rope, packed_rope, swiglu, nf4_quantise, nf4_dequantise.
    providers
        flopcast, eager, torch, compiled, liger, quack.
    samples
        Timings of each, whose median and spread are shown.
    budget_seconds
        Stop after about this long with what is measured by then.
    output
        Folder for the rows as CSV and JSON, with device, clocks and versions.
    figure
        Draw the roofline into this file.
    json
        Print one JSON document and nothing else.

    """
    from flopcast.trainer.installed import require_torch

    require_torch()
    if figure:
        check_place("--figure", figure, PICTURES)
    import torch

    from flopcast.kernels import benchmark, roofline

    types = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    unknown = [name for name in dtype or [] if name not in types]
    if unknown:
        raise InputError(f"--dtype is '{unknown[0]}'; choose one of {', '.join(types)}")
    if samples < 1:
        raise InputError(f"--samples is {samples}; give at least 1")
    if not budget_seconds > 0:
        raise InputError(f"--budget-seconds is {budget_seconds:g}; give a positive number of seconds")
    if output and output.exists() and not output.is_dir():
        raise InputError(f"--output {output}: is no folder; name one, its files are kernels.csv and kernels.json")
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtypes = tuple(types[name] for name in dtype or ["bfloat16"])
    result = benchmark.run(
        where, tokens=tokens, hidden=hidden, dtypes=dtypes, ops=ops, providers=providers, samples=samples,
        budget_s=budget_seconds, quiet=json,
    )  # fmt: skip
    if output:
        benchmark.write(result, output)
    if figure:
        roofline.draw(result, figure)
    if json:
        print_json(result)
    else:
        from flopcast.reports.kernel_table import render

        show(render(result))
    if wrong := benchmark.failures(result):
        print(*wrong, sep="\n", file=sys.stderr)
        sys.exit(1)
