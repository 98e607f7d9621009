"""Runs of one machine, for its calibration: the trainer's JSONL logs, or a CSV with the columns of published runs."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from flopcast.errors import InputError
from flopcast.reports.runs import read_runs
from flopcast.simulator.blocks.transformer import TransformerBlock
from flopcast.simulator.catalogue import load_model
from flopcast.simulator.model import Model
from flopcast.simulator.plan import Plan
from flopcast.simulator.textfile import read_text

LOG = "log.jsonl"
# The first steps compile, allocate and connect; a tenth of the run and at least this many are passed over.
WARM_UP_STEPS, WARM_UP_SHARE = 3, 0.1
FEWEST_STEPS = 3


@dataclass(frozen=True)
class MachineRun:
    """One run: the median seconds of its steps after the warm-up, and the distance of their quartiles over it.

    ``device``: as the log names it, or a table's GPU. ``share_of_step``: of the plan's tokens that a step really had.
    ``dtype``: what matrices were multiplied in, empty where the log does not say.
    """

    name: str
    model: Model
    plan: Plan
    device: str
    step_s: float
    spread: float
    num_steps: int
    share_of_step: float = 1.0
    dtype: str = ""


def read_machine_runs(paths: Iterable[Path]) -> list[MachineRun]:
    """Every run of the folders, JSONL logs and CSV tables named. Raises InputError for one that cannot be used."""
    found: list[MachineRun] = []
    files: set[Path] = set()
    for path in paths:
        file = (path / LOG if path.is_dir() else path).resolve()
        if file in files:
            raise InputError(f"{path}: is named twice; a run counts once")
        files.add(file)
        found += _table(path) if path.suffix.lower() == ".csv" else [_log(path)]
    names = [run.name for run in found]
    return [
        replace(run, name=f"{run.name} ({place})") if names.count(run.name) > 1 else run
        for place, run in enumerate(found, 1)
    ]


def _table(path: Path) -> list[MachineRun]:
    runs = []
    for run in read_runs(path):
        if run.model is None or run.plan is None or run.cluster is None:
            raise InputError(f"{path}: run '{run.id}' cannot be expressed ({run.skipped}); mend it or leave it out")
        share = run.share_of_step
        runs.append(MachineRun(run.id, run.model, run.plan, run.cluster.gpu.name, run.measured_step_s, 0.0, 1, share))
    return runs


def _log(path: Path) -> MachineRun:
    file = path / LOG if path.is_dir() else path
    records = []
    for line in read_text(file, "a run's folder, its log.jsonl, or a CSV of runs").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:  # cut short by a kill
            continue
    return run_of_records(records, file.parent.name, str(file), file.parent)


def run_of_records(
    records: Sequence[Any], name: str, origin: str, folder: Path | None = None, model: Model | None = None
) -> MachineRun:
    """The run that a log's records tell of, from the last start that enough steps follow.

    Its name says which where fewer steps follow a later one. ``model`` where it is known; else it is the one that the
    log names, whose path may be relative to ``folder``. Raises InputError, naming ``origin``.
    """
    kept = [record for record in records if isinstance(record, dict)]
    starts = [place for place, record in enumerate(kept) if record.get("event") == "start"]
    if not starts:
        raise InputError(f"{origin}: is not the log of a run (no start event); name a folder that the trainer wrote to")
    found = [(kept[place], _step_times(kept[place + 1 : end])) for place, end in pairwise([*starts, len(kept)])]
    used = next((place for place in reversed(range(len(found))) if _is_enough(found[place][1])), len(found) - 1)
    start, times = found[used]
    begun = f"its start from step {start.get('step', 0)}"
    warm = _warm_up(times)
    if not _is_enough(times):
        said = f"{origin}: " if len(found) == 1 else f"{origin}: no start has enough steps; {begun}, the last, "
        raise InputError(
            f"{said}has {len(times)} steps, of which {warm} are warm-up; train at least {warm + FEWEST_STEPS}"
        )
    if any(later for _, later in found[used + 1 :]):
        name = f"{name}, {begun}"
    times = times[warm:]
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return MachineRun(
        name=name,
        model=model or _model(start.get("model"), origin, folder),
        plan=_plan(start.get("plan"), origin),
        device=str(start.get("device", "")),
        step_s=median,
        spread=(high - low) / median,
        num_steps=len(times),
        dtype=str(start.get("dtype", "")),
    )


def _step_times(records: Sequence[dict[str, Any]]) -> list[float]:
    seconds = [record.get("step_s") for record in records if "event" not in record]
    return [float(value) for value in seconds if isinstance(value, int | float) and value > 0]


def _warm_up(times: Sequence[float]) -> int:
    return max(WARM_UP_STEPS, round(WARM_UP_SHARE * len(times)))


def _is_enough(times: Sequence[float]) -> bool:
    return len(times) >= _warm_up(times) + FEWEST_STEPS


def _plan(table: Any, origin: str) -> Plan:
    known = {field.name for field in fields(Plan)}
    if not isinstance(table, dict) or not set(table) <= known:
        raise InputError(f"{origin}: its start event has no plan that this version knows; train again with it")
    try:
        return Plan(**table)
    except TypeError:
        raise InputError(f"{origin}: the plan of its start event lacks fields; train again") from None


def _model(table: Any, origin: str, folder: Path | None) -> Model:
    """The model as the log names it: a catalogue name, or a path from where the run was started or from its folder."""
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise InputError(f"{origin}: its start event names no model; train again with this version")
    name = table["name"]
    beside = [] if folder is None else [parent / name for parent in (folder, *folder.parents[:3])]
    found = next((path for path in beside if path.suffix and path.is_file()), None)
    try:
        model = load_model(found or name)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None
    if table.get("qk_norm") is None:
        return model
    layers = tuple(
        replace(block, attention=replace(block.attention, qk_norm=bool(table["qk_norm"])))
        if isinstance(block, TransformerBlock)
        else block
        for block in model.layers
    )
    return replace(model, layers=layers)
