"""The collective cost model against measured rows of nccl-tests: the error by size, and every row."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import RenderableType
from rich.text import Text

from flopcast.collectives.columns import tidy
from flopcast.collectives.headings import why_untimed
from flopcast.collectives.machines import gpu
from flopcast.collectives.measured import forecast_rows
from flopcast.errors import InputError
from flopcast.reports.table_file import read_table
from flopcast.reports.terminal_table import terminal_table

PUBLISHED_COLLECTIVES = Path(__file__).parent / "measurements" / "collectives.csv"
_DESCRIBED = "reports/measurements/collectives.md"
# Mean errors are stated by size because latency, protocol switches and bandwidth are different things to get right.
EDGES = (2**10, 2**18, 2**24, 2**29, np.inf)
BINS = ("1 KiB - 256 KiB", "256 KiB - 16 MiB", "16 MiB - 512 MiB", "512 MiB and more")


@dataclass(frozen=True)
class CollectiveAccuracy:
    """``rows``: series, collective, bytes, in_place, measured_s, predicted_s, error; ``skipped``: with the reason.

    ``bins``: of out-of-place rows of at least 1 KiB, by size: rows, mean and median size of the error, bias, the mean
    after each series' latency is fitted to its own smallest rows, and by how much series of the same collective on
    machines of one specification differ at a size, the slowest over the fastest, in the mean of each specification: the
    least and the most of these.
    ``unknown_gpus``: names that tell no rate, whose rows are forecast as of PCIe cards.
    """

    rows: pd.DataFrame
    skipped: pd.DataFrame
    bins: pd.DataFrame
    unknown_gpus: tuple[str, ...] = ()

    def check_scored(self) -> None:
        """Raise InputError where no row counts, with the reasons."""
        if self.bins.empty:
            uncounted = len(self.rows)
            reasons = [f"{uncounted} in place or below 1 KiB"] if uncounted else []
            reasons += [f"{number} skipped: {reason}" for reason, number in self.reasons.items()]
            said = f"none of the table's rows can be scored ({'; '.join(reasons)})"
            raise InputError(f"{said}; give out-of-place rows of 1 KiB or more")

    @property
    def reasons(self) -> dict[str, int]:
        """Why rows are skipped, and how many are for that."""
        return {str(reason): int(number) for reason, number in self.skipped["skipped"].value_counts().items()}

    def as_json(self) -> dict[str, Any]:
        """The document that ``flopcast accuracy --collectives FILE --json`` prints."""
        names = ["series", "collective", "bytes", "in_place", "measured_s", "predicted_s"]
        return {
            "rows": [*self.rows[names].to_dict("records"), *self.skipped.to_dict("records")],
            "bins": self.bins.astype(object).where(self.bins.notna(), None).reset_index(names="bin").to_dict("records"),
        }


def collective_accuracy(path: Path = PUBLISHED_COLLECTIVES) -> CollectiveAccuracy:
    """Forecast every row of a table of measured collectives from its specification alone."""
    table = read_table(path, (), _DESCRIBED)
    try:
        columns = tidy({str(name): table[name].to_numpy() for name in table.columns})
    except InputError as error:
        raise InputError(f"{path}: {error}; see {_DESCRIBED}") from None
    predicted, reasons = forecast_rows(columns)
    calibrated, _ = forecast_rows(columns, calibrated=True)
    measured = columns["time_us"] * 1e-6
    untimed = why_untimed({str(name): table[name] for name in table.columns})
    reasons = np.where(reasons == "", np.where(measured > 0, "", untimed), reasons)
    rows = pd.DataFrame(
        {
            "series": columns["series"],
            "collective": columns["collective"],
            "bytes": np.nan_to_num(columns["bytes"], nan=-1.0).astype(np.int64),
            "in_place": columns["in_place"].astype(np.int64),
            "measured_s": measured,
            "predicted_s": predicted,
            "error": predicted / measured - 1,
            "calibrated_error": calibrated / measured - 1,
        }
    )
    rows["machine"] = _machines(columns)
    skipped = rows[["series", "collective", "bytes", "in_place"]].assign(skipped=reasons)[reasons != ""]
    kept = rows[reasons == ""]
    machines = zip(columns["gpu"], columns["interconnect"], reasons, strict=True)
    unknown = dict.fromkeys(str(name) for name, joined, why in machines if not why and not gpu(name, joined).known)
    return CollectiveAccuracy(kept.drop(columns="machine"), skipped, _by_size(kept), tuple(unknown))


def render(accuracy: CollectiveAccuracy) -> Iterator[RenderableType]:
    """The error by size, from specifications and after each series' latency is calibrated; what is skipped and why."""
    headings = (
        "rows",
        "mean\n|error| %",
        "median\n%",
        "bias\n%",
        "calibrated\nmean %",
        "twin machines\ndiffer by %",
    )
    table = terminal_table(["size of the tensor"], headings)
    for name, row in accuracy.bins.iterrows():
        shares = [f"{100 * row[column]:.1f}" for column in ("mean", "median", "bias", "calibrated_mean")]
        least, most = (f"{100 * row[column]:.0f}" for column in ("twins_least", "twins_most"))
        twins = "-" if pd.isna(row["twins_most"]) else most if least == most else f"{least}-{most}"
        table.add_row(str(name), str(int(row["rows"])), *shares, twins)
    yield table
    for reason, number in accuracy.reasons.items():
        yield Text(f"skipped {number}: {reason}")
    if accuracy.unknown_gpus:
        names = ", ".join(accuracy.unknown_gpus)
        yield Text(f"taken for PCIe 4.0 cards, as their names are unknown and no interconnect is given: {names}")


def _by_size(rows: pd.DataFrame) -> pd.DataFrame:
    scored = rows[(rows["in_place"] == 0) & (rows["bytes"] >= EDGES[0])]
    size = pd.cut(scored["bytes"], EDGES, right=False, labels=BINS)
    groups = scored.assign(size=scored["error"].abs(), calibrated=scored["calibrated_error"].abs()).groupby(
        size, observed=True
    )
    spreads = _twins(scored)
    by_machine = [pd.cut(spreads["bytes"], EDGES, right=False, labels=BINS), "machine", "collective"]
    twins = spreads.groupby(by_machine, observed=True)["spread"].mean().groupby(level=0, observed=True)
    return pd.DataFrame(
        {
            "rows": groups.size(),
            "mean": groups["size"].mean(),
            "median": groups["size"].median(),
            "bias": groups["error"].mean(),
            "calibrated_mean": groups["calibrated"].mean(),
            "twins_least": twins.min(),
            "twins_most": twins.max(),
        },
        index=groups.size().index,
    )


def _machines(columns: Mapping[str, Any]) -> list[str]:
    """What makes two machines alike: the GPU without its memory, the nodes, and between nodes the network."""
    names = ("gpu", "n_nodes", "gpus_per_node", "nics_per_node", "nic_gbit", "fabric")
    rows = zip(*(columns[name] for name in names), strict=True)
    return [
        " ".join(map(str, (str(gpu).split("-")[0], nodes, gpus, *(network if nodes > 1 else ()))))
        for gpu, nodes, gpus, *network in rows
    ]


def _twins(scored: pd.DataFrame) -> pd.DataFrame:
    """Of each machine, collective and size that several series measured the ``spread``: slowest over fastest, - 1."""
    keys = ["machine", "collective", "bytes"]
    times = scored.groupby([*keys, "series"])["measured_s"].median().groupby(keys)
    spread = (times.max() / times.min() - 1)[times.size() > 1]
    return spread.rename("spread").reset_index()
