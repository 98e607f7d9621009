"""From a site's logs to its constants: columns for the calibration, and a piecewise fit that shows its residuals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flopcast.collectives.calibration import PiecewiseFit, fit_piecewise
from flopcast.collectives.running.nccl_tests import Log
from flopcast.collectives.running.results import COLUMNS, Row, records
from flopcast.errors import InputError


def columns(log: Log, series: str, **machine: Any) -> dict[str, NDArray[Any]]:
    """The log as columns of a table of measurements, for ``collectives.measured`` and its calibration.

    ``machine`` fills what a log does not tell: ``nics_per_node``, ``nic_gbit``, ``fabric``, ``gpus_per_node``, ``gpu``.
    """
    ranks = max(1, len(log.hosts))
    known = {
        "source": series,
        "series": series,
        "gpu": log.devices[0] if log.devices else "",
        "gpus_per_node": ranks // log.num_nodes,
        "n_nodes": log.num_nodes,
        "nccl_version": log.nccl_version,
        "notes": f"-g {log.gpus_per_process}" if log.gpus_per_process > 1 else "",
        **machine,
    }
    rows = records(log.rows, known)
    return {name: np.array([row[name] for row in rows], dtype=object) for name in COLUMNS}


def fit(rows: Sequence[Row], edges: Sequence[float] = (256 * 2**10, 16 * 2**20, 512 * 2**20, 2.0**44)) -> PiecewiseFit:
    """Latency and bandwidth of each range of sizes from the out-of-place rows of one collective, residuals beside.

    The ranges are those of the accuracy table: below 256 KiB, to 16 MiB, to 512 MiB, above.
    """
    names = sorted({row.collective for row in rows})
    if len(names) > 1:
        raise InputError(f"the rows are of {' and '.join(names)}; fit one collective at a time")
    used = _used(rows)
    if not used:
        raise InputError("no out-of-place row is there to fit to, only in-place ones or of 0 bytes; give a log of some")
    return fit_piecewise(
        np.array([row.num_bytes for row in used], dtype=np.float64), np.array([row.time_s for row in used]), edges
    )


def _used(rows: Sequence[Row]) -> list[Row]:
    """The rows that a fit is of, in the order of its residuals."""
    return [row for row in rows if not row.in_place and row.num_bytes > 0]


# Times tell a rate that grow by this many times the width of their residuals: those the fit itself bends to.
_CLEAR = 2.0


@dataclass(frozen=True)
class _Range:
    """Rows of one range of sizes: its end in bytes, None of the last, and what they tell of latency and rate."""

    up_to_bytes: int | None
    num_rows: int
    alpha_s: float | None
    bytes_per_s: float | None


def _ranges(used: Sequence[Row], fitted: PiecewiseFit) -> list[_Range]:
    """The ranges that have rows. One row tells no latency, and times that hardly grow beyond their scatter no rate."""
    size = np.array([row.num_bytes for row in used], dtype=np.float64)
    scatter_s = fitted.residuals * np.array([row.time_s for row in used])
    within = np.searchsorted(fitted.edges[:-1], size)
    found = []
    for k, (edge, alpha, rate) in enumerate(zip(fitted.edges, fitted.alpha_s, fitted.bytes_per_s, strict=True)):
        mine = within == k
        num_rows = int(np.sum(mine))
        if not num_rows:
            continue
        growth_s = np.ptp(size[mine]) / rate
        tells_rate = num_rows == 1 or growth_s > _CLEAR * np.ptp(scatter_s[mine])
        found.append(
            _Range(
                None if k == len(fitted.edges) - 1 else int(edge),
                num_rows,
                float(alpha) if num_rows > 1 else None,
                float(rate) if tells_rate else None,
            )
        )
    return found


def as_json(rows: Sequence[Row], fitted: PiecewiseFit) -> dict[str, Any]:
    """The same as a document; the last range's end, and a latency or rate that its rows do not tell, are None.

    Rows with a forecast have it in seconds, its ratio to the measured time, and what the cost model chose.
    """
    used = _used(rows)
    return {
        "collective": rows[0].collective,
        "ranges": [
            {
                "up_to_bytes": each.up_to_bytes,
                "rows": each.num_rows,
                "alpha_s": each.alpha_s,
                "bytes_per_s": each.bytes_per_s,
            }
            for each in _ranges(used, fitted)
        ],
        "rows": [
            {
                "bytes": row.num_bytes,
                "measured_s": row.time_s,
                "fitted_s": float(row.time_s * (1 + residual)),
                "residual": float(residual),
            }
            | _forecast_of(row)
            for row, residual in zip(used, fitted.residuals, strict=True)
        ],
    }


def _forecast_of(row: Row) -> dict[str, Any]:
    if row.forecast is None:
        return {}
    return {"forecast_s": row.forecast.time_s, "ratio": row.ratio, "algorithm": row.forecast.algorithm}


def residual_table(rows: Sequence[Row], fitted: PiecewiseFit) -> list[str]:
    """The fit in lines: each range's latency and algorithm bandwidth, then size, times and residual of every row.

    A range without rows is left out, and "-" stands for what its rows do not tell. Rows with a forecast end with it,
    forecast / measured, and the algorithm and protocol that the cost model chose.
    """
    used = _used(rows)
    lines = ["# out-of-place rows", f"# {'up to (B)':>14}  {'latency (us)':>12}  {'algbw (GB/s)':>12}"]
    for each in _ranges(used, fitted):
        size = "more" if each.up_to_bytes is None else str(each.up_to_bytes)
        latency = "-" if each.alpha_s is None else _digits(each.alpha_s * 1e6)
        bandwidth = "-" if each.bytes_per_s is None else _digits(each.bytes_per_s / 1e9)
        lines.append(f"# {size:>14}  {latency:>12}  {bandwidth:>12}")
    with_forecast = any(row.forecast for row in used)
    heads = f"  {'forecast (us)':>13}  ratio  algorithm" if with_forecast else ""
    lines.append(f"# {'size (B)':>14}  {'time (us)':>10}  {'fit (us)':>10}  residual (%){heads}")
    for row, residual in zip(used, fitted.residuals, strict=True):
        cells = f"  {row.num_bytes:>14}  {row.time_s * 1e6:>10.2f}  {row.time_s * (1 + residual) * 1e6:>10.2f}"
        cells += f"  {100 * residual:>12.1f}"
        if row.forecast and row.ratio is not None:
            cells += f"  {row.forecast.time_s * 1e6:>13.2f}  {row.ratio:>5.2f}  {row.forecast.algorithm}"
        elif with_forecast:
            cells += f"  {'-':>13}  {'-':>5}  -"
        lines.append(cells)
    return lines


def _digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:.{max(0, 2 - math.floor(math.log10(rounded)))}f}" if rounded > 0 else "0"
