"""The closed loop replayed: from stored samples and logs to the error on the run that was left out."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flopcast.reports.calibration import Calibrating, calibrate
from flopcast.reports.machine_runs import MachineRun, run_of_records
from flopcast.simulator.profile import parse_profile
from flopcast.simulator.profiled_cluster import cluster_of
from flopcast.simulator.specification import parse_model

FILE = Path(__file__).parent / "measurements" / "closed-loop-cpu.json"


@dataclass(frozen=True)
class Row:
    """One run: measured, forecast from the profile alone, and forecast by constants fitted to the other two."""

    run: str
    measured_step_s: float
    spread: float
    profile_alone_step_s: float
    left_out_step_s: float
    error: float

    def sentence(self) -> str:
        """One line for the terminal."""
        return (
            f"{self.run}: measured {self.measured_step_s:.3f} s, by the profile alone {self.profile_alone_step_s:.3f} "
            f"s, calibrated on the other two {self.left_out_step_s:.3f} s: {self.error:+.1%}"
        )


@dataclass(frozen=True)
class Loop:
    """All three runs, each left out in turn, and the fit to all of them."""

    rows: tuple[Row, ...]
    calibrating: Calibrating


def replay(document: Mapping[str, Any]) -> Loop:
    """The loop's errors from a stored document: nothing is measured or timed."""
    profile = parse_profile(json.dumps(document["profile"]), "profile")
    cluster = cluster_of(profile, Path(), "profile")
    runs: list[MachineRun] = []
    for name, text in document["models"].items():
        model = parse_model(text, name, name)
        runs.append(run_of_records(document["logs"][name], name, name, model=model))
    found = calibrate(runs, cluster, device=profile.device)
    rows = zip(runs, found.before_s.tolist(), found.left_out_s.tolist(), found.left_out_errors.tolist(), strict=True)
    return Loop(tuple(Row(r.name, r.step_s, r.spread, alone, left, error) for r, alone, left, error in rows), found)


def as_document(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The document with its results in front of the measurements."""
    loop = replay(measured)
    return {
        "what": "a CPU's profile, three models trained on it by gloo, each forecast by a calibration on the others",
        "rows": [asdict(row) for row in loop.rows],
        "largest_error": max(abs(row.error) for row in loop.rows),
        "constants": loop.calibrating.fit.constants,
        **measured,
    }
