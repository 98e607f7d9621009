"""From a site's logs to its constants: columns for the calibration, and a piecewise fit that shows its residuals."""

from collections.abc import Sequence
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


# A rate above this, bytes/s, is of rows whose times do not grow with their sizes: they tell none.
_NO_RATE = 1e17


def fit(rows: Sequence[Row], edges: Sequence[float] = (256 * 2**10, 16 * 2**20, 512 * 2**20, 2.0**44)) -> PiecewiseFit:
    """Latency and bandwidth of each range of sizes from the out-of-place rows of one collective, residuals beside.

    The ranges are those of the accuracy table: below 256 KiB, to 16 MiB, to 512 MiB, above.
    """
    names = sorted({row.collective for row in rows})
    if len(names) > 1:
        raise InputError(f"the rows are of {' and '.join(names)}; fit one collective at a time")
    used = _usable(rows)
    if not used:
        raise InputError("no out-of-place row is there to fit to, only in-place ones or of 0 bytes; give a log of some")
    return fit_piecewise(
        np.array([row.num_bytes for row in used], dtype=np.float64), np.array([row.time_s for row in used]), edges
    )


def _usable(rows: Sequence[Row]) -> list[Row]:
    """Those that tell of the machine: out of place, and not of 0 bytes."""
    return [row for row in rows if not row.in_place and row.num_bytes > 0]


def as_json(rows: Sequence[Row], fitted: PiecewiseFit) -> dict[str, Any]:
    """The same as a document; the last range's end, a single row's latency and a rate that no row tells are None."""
    used = _usable(rows)
    within = np.searchsorted(fitted.edges[:-1], [row.num_bytes for row in used])
    last = len(fitted.edges) - 1
    return {
        "collective": rows[0].collective,
        "ranges": [
            {
                "up_to_bytes": None if k == last else int(fitted.edges[k]),
                "rows": int(num_rows),
                "alpha_s": float(fitted.alpha_s[k]) if num_rows > 1 else None,
                "bytes_per_s": float(rate) if (rate := fitted.bytes_per_s[k]) < _NO_RATE else None,
            }
            for k in range(last + 1)
            if (num_rows := np.sum(within == k))
        ],
        "rows": [
            {
                "bytes": row.num_bytes,
                "measured_s": row.time_s,
                "fitted_s": float(row.time_s * (1 + residual)),
                "residual": float(residual),
            }
            for row, residual in zip(used, fitted.residuals, strict=True)
        ],
    }


def residual_table(rows: Sequence[Row], fitted: PiecewiseFit) -> list[str]:
    """The fit in lines: each range's latency and bandwidth, then size, measured, fitted and residual of every row.

    A range without rows is left out; one with a single row has no latency of its own, and one whose times do not grow
    no bandwidth.
    """
    lines = [f"# {'up to (B)':>14}  {'alpha (us)':>10}  {'B (GB/s)':>10}"]
    used = _usable(rows)
    within = np.searchsorted(fitted.edges[:-1], [row.num_bytes for row in used])
    for k, (edge, alpha, rate) in enumerate(zip(fitted.edges, fitted.alpha_s, fitted.bytes_per_s, strict=True)):
        if num_rows := np.sum(within == k):
            size = "more" if k == len(fitted.edges) - 1 else f"{edge:.0f}"
            latency = f"{alpha * 1e6:.2f}" if num_rows > 1 else "-"
            bandwidth = f"{rate / 1e9:.2f}" if rate < _NO_RATE else "-"
            lines.append(f"# {size:>14}  {latency:>10}  {bandwidth:>10}")
    lines.append(f"# {'size (B)':>14}  {'time (us)':>10}  {'fit (us)':>10}  residual (%)")
    for row, residual in zip(used, fitted.residuals, strict=True):
        fitted_us = row.time_s * (1 + residual) * 1e6
        lines.append(f"  {row.num_bytes:>14}  {row.time_s * 1e6:>10.2f}  {fitted_us:>10.2f}  {100 * residual:>11.1f}")
    return lines
