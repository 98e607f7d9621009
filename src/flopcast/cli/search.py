"""The command that searches the whole space of plans."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from flopcast.cli.app import Flag, app
from flopcast.cli.numbers import amount, whole_numbers
from flopcast.cli.output import PICTURES, check_place, print_json, show

# A search that takes longer shows how far it is.
PATIENCE_S = 1.0
INTERRUPTED = 130


@app.command
def search(
    model: str,
    /,
    *,
    cluster: str,
    gpus: Annotated[list[int], Parameter(consume_multiple=True, negative="", converter=whole_numbers)],
    objective: Literal["time", "cost", "memory", "energy"] = "time",
    global_batch_tokens: int | None = None,
    seq_len: int | None = None,
    fix: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    memory_margin: float = 0.08,
    top: int = 5,
    convention: Literal["6n", "causal", "full"] = "causal",
    tokens: Annotated[float | None, Parameter(converter=amount)] = None,
    figure: Path | None = None,
    json: Flag = False,
) -> None:
    """The best plans out of every legal one, why the rest lost, and time against memory.

    Ctrl-C ends the search with the best so far.

    Parameters
    ----------
    model
        A catalogue name (plamo-13b) or the path of a Hugging Face config.json.
    cluster
        A catalogue name (abci-a) or the path of a TOML file.
    gpus
        GPUs of the job: within one node, or whole nodes. Several numbers are searched each, at the same global batch.
    objective
        What to have least of: time, cost or energy of a step, or memory per GPU. Cost needs gpu_hour_price in the
        cluster file, energy node_power.
    global_batch_tokens
        Tokens per optimizer step over all GPUs; by default about 4 Mi, at most 16 Mi.
    seq_len
        Tokens per sequence; by default those of the model's pre-training, for a config.json its longest.
    fix
        FIELD=VALUE, any field of a plan (pp=1, recompute=full); several values (tp=2,4) are all tried.
    memory_margin
        Share of the GPU's memory that a plan leaves free; 0 uses all of it.
    top
        Placements shown.
    convention
        What MFU and HFU count: 6n (no attention), causal (half the scores) or full.
    tokens
        Token budget of the whole training, e.g. 1.4T, 300B or 1.4e12; by default 20 per parameter.
    figure
        Draw all placements in time and memory, with the front (.svg, .png, .pdf); of several GPU counts the scaling.
    json
        Print one JSON document and nothing else.

    """
    from flopcast.simulator.catalogue import load_cluster, load_model
    from flopcast.simulator.fixed import parse_fixed
    from flopcast.simulator.goodput import check_tokens
    from flopcast.simulator.search import SearchRequest
    from flopcast.simulator.search import search as run

    if tokens is not None:
        check_tokens(tokens)
    if figure is not None:
        check_place("--figure", figure, PICTURES)
    request = SearchRequest(
        num_gpus=gpus,
        objective=objective,
        global_batch_tokens=global_batch_tokens,
        seq_len=seq_len,
        fixed=parse_fixed(fix or []),
        memory_margin=memory_margin,
        top=top,
        convention=convention,
    )
    with _progress() as progress:
        result = run(load_model(model), load_cluster(cluster), request, progress)
    rate = result.num_plans / result.elapsed_s
    print(f"flopcast: {result.num_plans:,} plans in {result.elapsed_s:.2f} s, {rate:,.0f} plans/s", file=sys.stderr)
    if figure is not None:
        from flopcast.reports.figures.canvas import save
        from flopcast.reports.figures.pareto import draw
        from flopcast.reports.figures.scaling import search_scaling

        save(draw(result) if len(result.found) == 1 else search_scaling(result), figure)
    if json:
        from flopcast.reports.search import as_json

        print_json(as_json(result, tokens))
    else:
        from flopcast.reports.search import render

        show(render(result, tokens))
    if not result.complete:
        print("flopcast: interrupted, this is the best so far", file=sys.stderr)
        sys.exit(INTERRUPTED)


@contextmanager
def _progress() -> Iterator[Callable[[float, int], None]]:
    """A bar on stderr from the moment the search has taken longer than a second, where someone is there to see it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), TextColumn("{task.fields[plans]:,} plans"), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("search", total=1.0, plans=0)
    started = time.perf_counter()

    def advance(share: float, num_plans: int) -> None:
        bar.update(task, completed=share, plans=num_plans)
        if time.perf_counter() - started > PATIENCE_S and bar.console.is_terminal and not bar.live.is_started:
            bar.start()

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
