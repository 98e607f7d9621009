"""What a benchmark of collectives answers: rows, in nccl-tests' columns, as JSON and as a CSV of measurements."""

import csv
import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flopcast.errors import InputError
from flopcast.files import replacing, write_atomically

COLUMNS = (
    *("source", "gpu", "gpus_per_node", "n_nodes", "interconnect", "nics_per_node", "nic_gbit", "fabric", "sharp"),
    *("collective", "bytes", "time_us", "algbw_GBps", "busbw_GBps", "in_place", "nccl_version", "notes", "series"),
)
MORE_COLUMNS = ("count", "type", "redop", "root", "spread", "wrong", "forecast_us", "ratio", "algorithm")


@dataclass(frozen=True)
class Forecast:
    """The cost model's answer: ``time_s`` seconds, and what it chose, such as "ring/LL128"."""

    time_s: float
    algorithm: str


@dataclass(frozen=True)
class Row:
    """One collective at one size, in place or not.

    ``time_s`` is the median over iterations of the mean over ranks (of an imported log: its time), ``spread`` the
    distance between the quartiles over the median (None where a log has none). ``num_wrong`` counts wrong elements
    over all ranks, None where they were not checked. Bandwidths are bytes/s by nccl-tests' definitions.
    """

    collective: str
    num_bytes: int
    count: int
    dtype: str
    reduction: str
    root: int
    in_place: bool
    time_s: float
    algbw_bytes_per_s: float
    busbw_bytes_per_s: float
    spread: float | None = None
    num_wrong: int | None = None
    forecast: Forecast | None = None

    @property
    def ratio(self) -> float | None:
        """Forecast over measured time."""
        return self.forecast.time_s / self.time_s if self.forecast and self.time_s else None


@dataclass(frozen=True)
class Report:
    """A finished benchmark: ``about`` holds versions, devices, topology, arguments and the date."""

    rows: tuple[Row, ...]
    about: dict[str, Any]

    @property
    def num_wrong(self) -> int:
        """Wrong elements in all rows."""
        return sum(row.num_wrong or 0 for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """One document: ``about``'s keys, ``num_wrong`` and ``rows``."""
        rows = [{**asdict(row), "ratio": row.ratio} for row in self.rows]
        return {**self.about, "num_wrong": self.num_wrong, "rows": rows}


def quartile_spread(times: Sequence[float]) -> float:
    """The distance between the quartiles of the times over their median; 0 of a single one."""
    if len(times) < 2:
        return 0.0
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return (high - low) / median


def introduction(about: dict[str, Any]) -> list[str]:
    """What stands above the tables: where and how it ran."""
    arguments, where, versions = about["arguments"], about["topology"], about["versions"]
    devices = enumerate(zip(where["hosts"], about["devices"], strict=True))
    step = f"{arguments['factor']}(factor)" if arguments.get("step") is None else f"{arguments['step']}(bytes)"
    group = f"{_count(where['ranks'], 'rank')} on {_count(where['nodes'], 'node')}"
    return [
        f"# flopcast {versions['flopcast']}, torch {versions['torch']}, {about['backend']}: {group}, "
        f"torus {where['torus'][0]} x {where['torus'][1]}",
        f"# minBytes {arguments['begin']} maxBytes {arguments['end']} step: {step} "
        f"warmup iters: {arguments['warmup']} iters: {arguments['iterations']} validation: 1",
        "# Using devices",
        *(f"#  Rank {rank:2d} on {host} {device}" for rank, (host, device) in devices),
        "# Times are medians; spread is the distance between the quartiles over the median.",
        "#",
    ]


def header(collective: str, with_forecast: bool) -> list[str]:
    """The head of one collective's table; the first thirteen columns are nccl-tests' own."""
    head = f"{'size':>12}  {'count':>12}  {'type':>8}  {'redop':>6}  {'root':>6}"
    units = f"{'(B)':>12}  {'(elements)':>12}  {'':>8}  {'':>6}  {'':>6}"
    names = f"{'time':>8}  {'algbw':>6}  {'busbw':>6}  {'#wrong':>6}"
    sizes = f"{'(us)':>8}  {'(GB/s)':>6}  {'(GB/s)':>6}  {'':>6}"
    more = f"  {'spread':>7}  {'spread':>7}" + (f"  {'forecast':>9}  {'ratio':>6}  algorithm" if with_forecast else "")
    more_units = f"  {'out (%)':>7}  {'in (%)':>7}" + (f"  {'(us)':>9}" if with_forecast else "")
    return [
        f"# Collective test starting: {collective}",
        f"# {'':>10}  {'':>12}  {'':>8}  {'':>6}  {'':>6}           out-of-place                       in-place",
        f"#{head[1:]}  {names}  {names}{more}",
        f"#{units[1:]}  {sizes}  {sizes}{more_units}",
    ]


def line(rows: list[Row]) -> str:
    """One line for a size: its rows out of place and in place, either of which may be missing."""
    first = rows[0]
    by_place = {row.in_place: row for row in rows}
    text = f"{first.num_bytes:>12}  {first.count:>12}  {first.dtype:>8}  {first.reduction:>6}  {first.root:>6}"
    spreads = ""
    for in_place in (False, True):
        row = by_place.get(in_place)
        if row is None:
            text += f"  {'N/A':>8}  {'N/A':>6}  {'N/A':>6}  {'N/A':>6}"
        else:
            wrong = "N/A" if row.num_wrong is None else str(row.num_wrong)
            text += f"  {_fit(row.time_s * 1e6, 8)}  {_fit(row.algbw_bytes_per_s / 1e9, 6)}"
            text += f"  {_fit(row.busbw_bytes_per_s / 1e9, 6)}  {wrong:>6}"
        spread = row.spread if row else None
        spreads += "  " + (f"{'N/A':>7}" if spread is None else f"{100 * spread:>7.1f}")
    text += spreads
    if first.forecast is not None and first.ratio is not None:
        text += f"  {_fit(first.forecast.time_s * 1e6, 9)}  {first.ratio:>6.2f}  {first.forecast.algorithm}"
    return text


def footer(rows: Iterable[Row]) -> list[str]:
    """nccl-tests' last lines: wrong elements, and the mean bus bandwidth in GB/s."""
    found = list(rows)
    wrong = sum(row.num_wrong or 0 for row in found)
    mean = sum(row.busbw_bytes_per_s for row in found) / len(found) / 1e9 if found else 0.0
    return [
        f"# Out of bounds values : {wrong} {'FAILED' if wrong else 'OK'}",
        f"# Avg bus bandwidth    : {mean:g}",
        "#",
    ]


def table(report: Report) -> Iterator[str]:
    """The whole report in lines."""
    yield from introduction(report.about)
    for collective in dict.fromkeys(row.collective for row in report.rows):
        rows = [row for row in report.rows if row.collective == collective]
        yield from header(collective, any(row.forecast for row in rows))
        for size in dict.fromkeys(row.num_bytes for row in rows):
            yield line([row for row in rows if row.num_bytes == size])
        yield from footer(rows)


def records(rows: Iterable[Row], machine: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows in the columns of a table of measured collectives; ``machine`` fills those that describe it.

    Such a table is what ``flopcast accuracy --collectives`` reads and what a calibration is fitted to.
    """
    return [
        {
            **dict.fromkeys(COLUMNS, ""),
            **machine,
            "collective": row.collective,
            "bytes": row.num_bytes,
            "time_us": row.time_s * 1e6,
            "algbw_GBps": row.algbw_bytes_per_s / 1e9,
            "busbw_GBps": row.busbw_bytes_per_s / 1e9,
            "in_place": int(row.in_place),
            "count": row.count,
            "type": row.dtype,
            "redop": row.reduction,
            "root": row.root,
            "spread": _blank(row.spread),
            "wrong": _blank(row.num_wrong),
            "forecast_us": row.forecast.time_s * 1e6 if row.forecast else "",
            "ratio": _blank(row.ratio),
            "algorithm": row.forecast.algorithm if row.forecast else "",
        }
        for row in rows
    ]


def write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write records to ``path``, whole or not at all. Raises InputError where it cannot be written."""
    with _writing(path), replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, (*COLUMNS, *MORE_COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document to ``path``, whole or not at all. Raises InputError where it cannot be written."""
    with _writing(path):
        write_atomically(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); make room or name another file") from None


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _blank(value: float | None) -> float | str:
    return "" if value is None else value


def _fit(value: float, width: int) -> str:
    """As many decimals, up to two, as fit the column."""
    for decimals in (2, 1, 0):
        text = f"{value:{width}.{decimals}f}"
        if len(text) <= width:
            return text
    return f"{value:{width}.0e}"
