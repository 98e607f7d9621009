"""A table of measured training runs: each row as a model, a cluster and a plan, or refused with the reason."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from flopcast.errors import InputError
from flopcast.reports.frameworks import Framework, framework_of, is_known
from flopcast.reports.run_fit import INFERRED, made_to_fit
from flopcast.reports.run_model import model_of
from flopcast.reports.run_plan import plan_of
from flopcast.reports.run_rate import measured_step_s
from flopcast.reports.run_row import Row
from flopcast.reports.table_file import read_table
from flopcast.simulator.batch import Case
from flopcast.simulator.catalogue import generic_cluster
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.forecast import check
from flopcast.simulator.model import Model
from flopcast.simulator.plan import Plan, Plans

PUBLISHED_RUNS = Path(__file__).parent / "measurements" / "training_runs.csv"
# A server holds at most so many GPUs; more are a rack that NVLink joins.
LARGEST_NODE = 16
# The memory of the card that a chip's bare name is taken for; the smaller one computes as fast.
USUAL_MEMORY = {"a100": "80gb", "v100": "32gb"}
NEEDED = ("id", "source_key", "gpu", "n_gpus", "seq_len")


@dataclass
class Run:
    """One measured step. ``assumed`` says what the table leaves open and how it was filled.

    ``doubts``: those of them that stand against what a cell says, because it is not understood or contradicts others.
    ``share_of_step``: tokens of the published step over those of the plan's whole micro-batches (a last micro-batch
    may be smaller). ``skipped`` is the reason where the row cannot be expressed; then only its names are set.
    """

    id: str
    source: str
    gpu: str
    framework: str
    measured_step_s: float
    model: Model | None = None
    cluster: Cluster | None = None
    plan: Plan | None = None
    share_of_step: float = 1.0
    measured_memory_bytes: float | None = None
    assumed: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    skipped: str = ""


def read_runs(path: Path) -> list[Run]:
    """Every row of a CSV with the columns of the published runs, in order; InputError for a file that is not one."""
    table = read_table(path, NEEDED, "reports/measurements/training_runs.md")
    return express_all(table.to_dict("records"))


@cache
def published_runs() -> tuple[Run, ...]:
    """Every row of the published table, read once: it takes seconds, and whoever asks again gets the same runs."""
    return tuple(read_runs(PUBLISHED_RUNS))


def express(cells: dict[Any, Any]) -> Run:
    """One row as a run, or skipped with the reason."""
    return express_all([cells])[0]


def express_all(rows: Sequence[dict[Any, Any]]) -> list[Run]:
    """Every row as a run: what their tables leave open is looked at for all of them at once."""
    runs, read = [], []
    for cells in rows:
        row = Row({str(name): value for name, value in cells.items()})
        run = Run(str(cells["id"]), str(cells["source_key"]), str(cells["gpu"]), row.text("framework"), math.nan)
        run.assumed, run.doubts = row.assumed, row.doubts
        runs.append(run)
        try:
            read.append((run, row, *_read(run, row)))
        except InputError as error:
            run.skipped = str(error)
    fitting = made_to_fit([case for _, _, case, _, _ in read], [blank for *_, blank in read])
    for (run, row, case, share, _), (plan, said) in zip(read, fitting, strict=True):
        row.assumed += said
        try:
            _fill(run, row, replace(case, plan=plan), share)
        except InputError as error:
            run.skipped = str(error)
    return runs


def _read(run: Run, row: Row) -> tuple[Case, float, set[str]]:
    """What ran, its share of the step's whole micro-batches, and which columns of INFERRED are blank."""
    framework = _framework(run, row)
    model, cluster = model_of(row), _cluster(run, row)
    plan, share = plan_of(row, framework, model, cluster)
    check(model, cluster, Plans.of([plan]), "causal")
    blank = set() if framework.spills else {name for name in INFERRED if not row.has(name)}
    return Case(model, cluster, plan), share, blank


def _fill(run: Run, row: Row, case: Case, share: float) -> None:
    model, cluster, plan = case.model, case.cluster, case.plan
    run.measured_step_s = measured_step_s(row, plan, model, cluster, share)
    run.measured_memory_bytes = row.number("measured_mem_GB") * 2**30 if row.has("measured_mem_GB") else None
    run.model, run.cluster, run.plan, run.share_of_step = model, cluster, plan, share


def _framework(run: Run, row: Row) -> Framework:
    tp = row.whole("tp", 1) if row.has("tp") else 1
    framework = framework_of(run.framework, tp, dated=str(row.cells.get("source", "")))
    if run.framework and not is_known(run.framework):
        row.doubt(f"framework {framework.engine}: '{row.cells['framework']}' is not known")
    return framework


def _cluster(run: Run, row: Row) -> Cluster:
    """Nodes of as many GPUs as the table says, or as NVLink joins where that is a rack (GB200 NVL72)."""
    num_gpus, gpu = row.whole("n_gpus"), _gpu(run, row)
    usual = generic_cluster(gpu).gpus_per_node
    stated = row.whole("gpus_per_node", min(usual, 8))
    joined = usual if usual > LARGEST_NODE else stated
    per_node = max(d for d in range(1, joined + 1) if num_gpus % d == 0) if num_gpus > joined else joined
    if per_node < joined == stated:
        row.doubt(f"gpus_per_node {per_node}: {num_gpus} GPUs do not fill nodes of {stated}")
    rate = row.number("node_gbit", 0.0) * per_node / stated if row.has("node_gbit") else 0.0
    cluster = generic_cluster(gpu, per_node, rate * 1e9 / 8 if rate > 0 else None)
    if num_gpus > per_node and not rate:
        row.assumed.append(f"node_gbit {cluster.node_bytes_per_s * 8e-9:.0f}")
    wires = row.text("interconnect")
    fabric = next((name for name in ("roce", "efa", "ethernet", "slingshot") if name in wires), cluster.fabric)
    return replace(cluster, fabric=fabric)


def _gpu(run: Run, row: Row) -> str:
    chip = re.fullmatch(r"(?:nvidia|tesla)?[-_ ]*(a100|v100)([-_ ]?(?:sxm\d?|pcie))?", run.gpu.strip().lower())
    if not chip:
        return run.gpu
    name = f"{chip[1]}-{USUAL_MEMORY[chip[1]]}{'-pcie' if (chip[2] or '').endswith('pcie') else ''}"
    row.assumed.append(f"gpu {name}")
    return name
