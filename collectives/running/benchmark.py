"""The benchmark of collectives: nccl-tests' flags and columns, on any backend of torch.distributed, under torchrun.

Beside every time stands how many elements were wrong, its spread, and where the machine is known the time that the
forecast names, the ratio of the two and the algorithm and protocol that the cost model chose.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from flopcast.collectives import Group
from flopcast.collectives.running import results
from flopcast.collectives.running.agreement import reporting
from flopcast.collectives.running.cases import CASES, Case, Context
from flopcast.collectives.running.forecasts import Machine
from flopcast.collectives.running.payload import Layout
from flopcast.collectives.running.results import Forecast, Report, Row
from flopcast.collectives.running.sizes import sweep
from flopcast.collectives.running.surroundings import (
    Topology,
    gather_text,
    nccl_settings,
    process_group,
    topology,
    versions,
)
from flopcast.errors import InputError, nearest

# nccl-tests' names of types (-d).
DTYPES = {
    "float": torch.float32,
    "bfloat16": torch.bfloat16,
    "half": torch.float16,
    "double": torch.float64,
    "int64": torch.int64,
    "int32": torch.int32,
    "int8": torch.int8,
    "uint8": torch.uint8,
}
_QUANTISED = ("float", "bfloat16", "half")


@dataclass(frozen=True)
class Options:
    """What to measure; letters are nccl-tests' flags.

    ``collectives`` names from ``CASES``; sizes in bytes from ``begin`` (-b) by ``factor`` (-f) to ``end`` (-e), or
    ``step`` (-i) bytes apart; ``iterations`` (-n) timed after ``warmup`` (-w); ``dtype`` (-d) a name from ``DTYPES``;
    ``backend`` None takes nccl on GPUs and gloo elsewhere; ``timeout_s`` after which a missing rank is an error.
    """

    collectives: tuple[str, ...] = ("all_reduce",)
    begin: int = 1024
    end: int = 64 * 2**20
    factor: int = 2
    iterations: int = 20
    warmup: int = 1
    dtype: str = "float"
    backend: str | None = None
    timeout_s: float = 120.0
    step: int | None = None

    @property
    def sizes(self) -> list[int]:
        """The sizes to measure, in bytes."""
        return sweep(self.begin, self.end, self.factor, self.step)

    def __post_init__(self) -> None:
        for name in self.collectives:
            if name not in CASES:
                raise InputError(f"collective '{name}' is unknown; {nearest(name, list(CASES))}")
        if self.dtype not in DTYPES:
            raise InputError(f"dtype '{self.dtype}' is unknown; {nearest(self.dtype, list(DTYPES))}")
        if "quantised_all_gather" in self.collectives and self.dtype not in _QUANTISED:
            raise InputError(f"quantised_all_gather has no dtype '{self.dtype}'; give {', '.join(_QUANTISED)}")
        if not self.collectives:
            raise InputError("no collective is named; give at least one of " + ", ".join(CASES))
        if self.iterations < 1 or self.warmup < 0:
            raise InputError(
                f"iterations is {self.iterations} and warmup {self.warmup}; give -n of at least 1 and -w of at least 0"
            )
        if not 0 < self.timeout_s < 1e6:
            raise InputError(f"timeout is {self.timeout_s} s; give a positive number of seconds")
        sweep(self.begin, self.end, self.factor, self.step)


def run(
    options: Options, on: Machine | None = None, show: Callable[[str], None] | None = None, quiet: bool = False
) -> Report | None:
    """Measure on all ranks; the report on rank 0, None on the others.

    ``on``: the machine, which adds forecasts. ``show`` gets the lines of the table on rank 0 as they are known; where
    nobody reads them (BrokenPipeError) every rank stops, without a report. A progress bar goes to standard error unless
    ``quiet``. Raises InputError for a bad option or environment and CollectiveError where a rank is lost.
    """
    with process_group(options.backend, options.timeout_s) as device, reporting("bench collectives"):
        _agree_on(options, device)
        found = topology(device)
        if on is not None:
            on.check(found.ranks_per_node, found.num_nodes)
        mesh = init_device_mesh(device.type, found.grid)
        about = _about(options, found)
        main = dist.get_rank() == 0
        say = _Reader(show if main else None)
        for text in results.introduction(about):
            say(text)
        rows: list[Row] = []
        with _progress(options, main and not quiet) as advance:
            for name in options.collectives:
                for text in results.header(name, on is not None):
                    say(text)
                mine: list[Row] = []
                for num_bytes in options.sizes:
                    measured = _measure(name, num_bytes, options, mesh, device, found, on)
                    advance(name, num_bytes)
                    if measured:
                        say(results.line(measured))
                        mine += measured
                    if say.has_gone(device):
                        return None
                for text in results.footer(mine):
                    say(text)
                rows += mine
        return Report(tuple(rows), about) if main else None


def _about(options: Options, found: Topology) -> dict[str, Any]:
    return {
        "tool": "flopcast bench collectives",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": asdict(options),
        "backend": dist.get_backend(),
        "versions": versions(),
        "settings": nccl_settings(),
        "topology": {
            "ranks": len(found.hosts),
            "nodes": found.num_nodes,
            "ranks_per_node": found.ranks_per_node,
            "torus": list(found.grid),
            "hosts": list(found.hosts),
        },
        "devices": list(found.devices),
    }


def _agree_on(options: Options, device: torch.device) -> None:
    """Raise InputError on every rank unless all were started with the same arguments."""
    step = f"-f {options.factor}" if options.step is None else f"-i {options.step}"
    sizes = f"-b {options.begin} -e {options.end} {step} -n {options.iterations} -w {options.warmup}"
    given = gather_text(f"{' '.join(options.collectives)} {sizes} -d {options.dtype}", device)
    for rank, words in enumerate(given):
        if words != given[0]:
            raise InputError(
                f"rank {rank} was started with '{words}' and rank 0 with '{given[0]}'; give all the same arguments"
            )


class _Reader:
    """Who reads the table on rank 0, nobody elsewhere; may go away before its end, as ``head`` does."""

    def __init__(self, show: Callable[[str], None] | None) -> None:
        self._show, self._is_gone = show, False

    def __call__(self, text: str) -> None:
        if self._show is None or self._is_gone:
            return
        try:
            self._show(text)
        except BrokenPipeError:
            self._is_gone = True

    def has_gone(self, device: torch.device) -> bool:
        """Whether it has, the same on all ranks."""
        gone = torch.tensor([self._is_gone], dtype=torch.int64, device=device)
        dist.all_reduce(gone)
        return bool(gone)


def machine(report: Report) -> dict[str, Any]:
    """The columns of a table of measurements that describe where a report was measured, as far as it is known."""
    about = report.about
    return {
        "source": f"{about['tool']} {about['versions']['flopcast']}, {about['date']}",
        "gpu": about["devices"][0],
        "gpus_per_node": about["topology"]["ranks_per_node"],
        "n_nodes": about["topology"]["nodes"],
        "nccl_version": about["versions"].get("nccl", ""),
        "notes": f"backend {about['backend']}",
        "series": f"{about['topology']['hosts'][0]}-{about['date']}",
    }


def _measure(
    name: str,
    num_bytes: int,
    options: Options,
    mesh: DeviceMesh,
    device: torch.device,
    where: Topology,
    on: Machine | None,
) -> list[Row]:
    """The rows of one collective at one size; none where the size leaves a rank without an element."""
    ranks = dist.get_world_size()
    case = CASES[name](Context(dist.get_rank(), ranks, mesh, device, DTYPES[options.dtype]), num_bytes)
    if case.count == 0:
        return []
    forecast = _forecast(name, case, where, on)
    rows = []
    for in_place in (False, True) if case.has_in_place else (False,):
        times = _time(case, in_place, options, device)
        wrong = torch.tensor([case.num_wrong(in_place)], dtype=torch.int64, device=device)
        dist.all_reduce(wrong)
        median = statistics.median(times)
        rows.append(
            Row(
                collective=name,
                num_bytes=case.num_bytes,
                count=case.count,
                dtype=options.dtype,
                reduction=case.reduction,
                root=case.root,
                in_place=in_place,
                time_s=median,
                algbw_bytes_per_s=case.num_bytes / median,
                busbw_bytes_per_s=case.num_bytes / median * case.bus_factor(ranks),
                spread=results.quartile_spread(times),
                num_wrong=int(wrong),
                forecast=forecast,
            )
        )
    return rows


def _time(case: Case, in_place: bool, options: Options, device: torch.device) -> list[float]:
    """Seconds of every iteration, the mean over ranks; on a GPU between events, without a stop between iterations."""
    case.fill(in_place)
    for _ in range(options.warmup):
        case.run(in_place)
    if device.type == "cuda":
        events = [torch.cuda.Event(enable_timing=True) for _ in range(options.iterations + 1)]  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(device)
        dist.barrier()
        events[0].record()
        for event in events[1:]:
            case.run(in_place)
            event.record()
        torch.cuda.synchronize(device)
        mine = [a.elapsed_time(b) * 1e-3 for a, b in pairwise(events)]
    else:
        dist.barrier()
        mine = []
        for _ in range(options.iterations):
            begin = time.perf_counter()
            case.run(in_place)
            mine.append(time.perf_counter() - begin)
    times = torch.tensor(mine, dtype=torch.float64, device=device)
    dist.all_reduce(times)
    return [float(seconds) / dist.get_world_size() for seconds in times.tolist()]


def _forecast(name: str, case: Case, where: Topology, machine: Machine | None) -> Forecast | None:
    """The machine's forecast; the quantised gather's is of its payload alone."""
    if machine is None or where.ranks_per_node == 0 or dist.get_world_size() == 1:
        return None
    group = Group(len(where.hosts), where.ranks_per_node)
    if name == "quantised_all_gather":
        payload = Layout.whole(case.count, case.context.dtype).num_bytes
        return machine.forecast("all_gather", float(payload * len(where.hosts)), group)
    return machine.forecast(name, float(case.num_bytes), group)


@contextmanager
def _progress(options: Options, visible: bool) -> Iterator[Callable[[str, int], None]]:
    """A bar on standard error, one step per collective and size."""
    from rich.console import Console
    from rich.progress import Progress

    steps = len(options.collectives) * len(options.sizes)
    with Progress(console=Console(stderr=True), transient=True, disable=not visible) as progress:
        task = progress.add_task("collectives", total=steps)

        def advance(name: str, num_bytes: int) -> None:
            progress.update(task, advance=1, description=f"{name} {num_bytes} B")

        yield advance
