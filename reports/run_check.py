"""Faults in a table of measured runs: cells that are no values, units, and figures that contradict each other."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from rich.console import RenderableType
from rich.text import Text

from flopcast.reports.run_shards import zero_stage
from flopcast.reports.run_words import width_in
from flopcast.reports.runs import NEEDED, Run, read_runs
from flopcast.reports.table_file import read_table
from flopcast.reports.terminal_table import terminal_table
from flopcast.simulator.conventions import CONVENTIONS, model_flop_per_token
from flopcast.simulator.plan import CHOICES

# A published rate and a step time of the same run are rounded: they agree within this share.
AGREEMENT = 0.03
# No run does more FLOPs than the peak, and one below a hundredth of it is likelier a unit than a run.
PLAUSIBLE = (0.005, 1.0)
# A convention is named where it is this close to the published rate, and recognised where no other is closer.
RECOGNISED = 0.05


def _precision(cell: str) -> str:
    if width_in(cell.lower()) is None:
        raise ValueError("Input should be bf16, fp16 or fp8")
    return cell


def _recompute(cell: str) -> str:
    if cell not in CHOICES["recompute"] and not re.fullmatch(r"\d+/\d+", cell):
        raise ValueError("Input should be none, selective, full or so many of the layers, such as 10/80")
    return cell


def _sharding(cell: str) -> str:
    zero_stage(cell.lower())
    return cell


Count = Annotated[float, Field(ge=1, multiple_of=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(gt=0, le=100)]
Flag = Annotated[float, Field(ge=0, le=1)]


class Cells(BaseModel):
    """The cells of a row that are not blank: type and range of every column that is not free text."""

    model_config = ConfigDict(extra="allow", coerce_numbers_to_str=True)

    id: str
    source_key: str
    source: Annotated[str, Field(min_length=8)]
    gpu: str
    seq_len: Count
    n_gpus: Count
    trust: Literal["A", "B", "C"] | None = None
    hidden: Count | None = None
    n_layers: Count | None = None
    ffn_hidden: Count | None = None
    n_heads: Count | None = None
    n_kv_heads: Count | None = None
    vocab: Count | None = None
    mlp_type: Literal["gelu", "swiglu", "geglu", "sqrelu"] | None = None
    parallel_layers: Flag | None = None
    gpus_per_node: Count | None = None
    node_gbit: Amount | None = None
    sharding: Annotated[str, AfterValidator(_sharding)] | None = None
    shard_group_size: Count | None = None
    tp: Count | None = None
    pp: Count | None = None
    vpp: Count | None = None
    cp: Count | None = None
    sequence_parallel: Flag | None = None
    micro_batch: Count | None = None
    global_batch_seqs: Amount | None = None
    grad_accum: Count | None = None
    recompute: Annotated[str, AfterValidator(_recompute)] | None = None
    precision: Annotated[str, AfterValidator(_precision)] | None = None
    torch_compile: Flag | None = None
    measured_step_s: Amount | None = None
    measured_tokens_per_s_per_gpu: Amount | None = None
    measured_tflops_per_gpu: Amount | None = None
    measured_mfu_pct: Percent | None = None
    measured_hfu_pct: Percent | None = None
    memory_gb: Annotated[float, Field(gt=0, lt=400)] | None = Field(default=None, alias="measured_mem_GB")


@dataclass(frozen=True)
class Checked:
    """``faults`` and ``cautions``: id and sentence; ``conventions``: rows, by source, whose rate each one explains."""

    num_rows: int
    faults: tuple[tuple[str, str], ...]
    cautions: tuple[tuple[str, str], ...]
    conventions: pd.DataFrame

    def as_json(self) -> dict[str, Any]:
        """The document that ``flopcast accuracy --check --json`` prints."""
        return {
            "num_rows": self.num_rows,
            "faults": [{"id": name, "fault": words} for name, words in self.faults],
            "cautions": [{"id": name, "caution": words} for name, words in self.cautions],
            "conventions": self.conventions.to_dict("records"),
        }


def check_table(path: Path) -> Checked:
    """Every row of a CSV with the columns of the published runs. Faults are certain, cautions ask for a look."""
    rows = read_table(path, NEEDED, "reports/measurements/training_runs.md").to_dict("records")
    faults: list[tuple[str, str]] = []
    cautions: list[tuple[str, str]] = []
    published: list[dict[str, str]] = []
    seen: set[str] = set()
    for row, run in zip(rows, read_runs(path), strict=True):
        cells = {str(column): value for column, value in row.items() if not (pd.isna(value) or value == "")}
        name = run.id
        if name in seen:
            faults.append((name, "id occurs twice"))
        seen.add(name)
        cautions += [(name, f"is forecast with {words}") for words in run.doubts if not run.skipped]
        try:
            Cells(**cells)
        except ValidationError as error:
            faults += [(name, _fault(found)) for found in error.errors()]
            continue
        if run.skipped:
            cautions.append((name, f"is not forecast: {run.skipped}"))
            continue
        faults += [(name, words) for words in contradictions(run, cells)]
        cautions += [(name, words) for words in doubts(run)]
        if "measured_tflops_per_gpu" in cells:
            convention = convention_of(run, float(cells["measured_tflops_per_gpu"]))
            published.append({"source": run.source, "convention": convention})
    table = pd.DataFrame(published, columns=["source", "convention"]).groupby(["source", "convention"]).size()
    return Checked(len(rows), tuple(faults), tuple(cautions), table.rename("rows").reset_index())


def _fault(error: ErrorDetails) -> str:
    column = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"{column} is blank"
    said = f"{column} is {error['input']!r}"
    return f"{said}: {error['msg'].removeprefix('Value error, ').removeprefix(f'{said}; ')}"


def tokens_per_s_per_gpu(run: Run) -> float:
    """What the step time says."""
    assert run.plan is not None
    tokens = run.plan.global_batch_sequences * run.plan.seq_len * run.share_of_step
    return tokens / (run.measured_step_s * run.plan.num_gpus)


def contradictions(run: Run, cells: dict[str, Any]) -> Iterator[str]:
    """Where the published rate is not what the published step time makes of the batch."""
    published, own = cells.get("measured_tokens_per_s_per_gpu"), tokens_per_s_per_gpu(run)
    if published is not None and abs(own / float(published) - 1) > AGREEMENT:
        yield (
            f"measured_step_s makes {own:,.0f} tokens/s per GPU of the batch, but measured_tokens_per_s_per_gpu is "
            f"{float(published):,.0f}"
        )


def doubts(run: Run) -> Iterator[str]:
    """Efficiencies that no machine reaches, or that a slip of units would explain."""
    assert run.model is not None
    assert run.plan is not None
    assert run.cluster is not None
    peak = run.cluster.gpu.tensor_flop_per_s
    if run.plan.precision == "fp8":
        peak = max(peak, run.cluster.gpu.fp8_flop_per_s)
    share = flop_per_s(run, "6n") / peak
    if not PLAUSIBLE[0] <= share <= PLAUSIBLE[1]:
        yield f"6N tokens/s are {share:.2%} of the peak; look at units, batch and number of GPUs"


def flop_per_s(run: Run, convention: str, recomputed: bool = False) -> float:
    """FLOP/s per GPU by a convention, from the step time."""
    assert run.model is not None
    assert run.plan is not None
    flop = model_flop_per_token(run.model, run.plan.seq_len, convention)
    return tokens_per_s_per_gpu(run) * (flop.total + recomputed * flop.layers_forward)


def convention_of(run: Run, tflops: float) -> str:
    """The convention by which the step time comes closest to the published FLOP/s, "none" where none is close."""
    readings = {name: flop_per_s(run, name) for name in CONVENTIONS}
    readings |= {f"{name}, recomputation counted": flop_per_s(run, name, recomputed=True) for name in CONVENTIONS}
    nearest = min(readings, key=lambda name: abs(readings[name] / (tflops * 1e12) - 1))
    return nearest if abs(readings[nearest] / (tflops * 1e12) - 1) <= RECOGNISED else "none"


def render(checked: Checked) -> Iterator[RenderableType]:
    """Faults, cautions by kind, and which FLOP convention explains the published rates of each source."""
    for name, words in checked.faults:
        yield Text(f"{name}: {words}")
    yield Text(f"{checked.num_rows} rows, {len(checked.faults)} faults, {len(checked.cautions)} cautions")
    for name, words in checked.cautions:
        yield Text(f"caution: {name}: {words}")
    table = terminal_table(("source", "published FLOP/s are by"), ["rows"])
    for row in checked.conventions.to_dict("records"):
        table.add_row(str(row["source"]), str(row["convention"]), str(row["rows"]))
    yield table
