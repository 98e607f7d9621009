"""The forecast: every reading of the operations of many plans at once, as arrays, rows or a DataFrame."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from flopcast.errors import InputError
from flopcast.simulator.band import band
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.constants import Constants, default_constants
from flopcast.simulator.conventions import CONVENTIONS, model_flop_per_token
from flopcast.simulator.engines import has_habit
from flopcast.simulator.hardware import Hardware
from flopcast.simulator.memory import Memory, memory
from flopcast.simulator.model import Model
from flopcast.simulator.operation import Array, Operation
from flopcast.simulator.operations import step_operations
from flopcast.simulator.placement import num_dealt
from flopcast.simulator.plan import Plan, Plans
from flopcast.simulator.recompute import check_layers_in_full, share_in_full
from flopcast.simulator.step import StepTime, step_time
from flopcast.simulator.traffic import Traffic, traffic

if TYPE_CHECKING:
    import pandas as pd

# Share of a GPU's memory that a plan had better leave free: less, and the forecast's own error, the allocator or one
# long sequence may decide whether it runs.
MEMORY_MARGIN = 0.08


# What a notebook shows of a row; ``to_frame`` has all of it.
SHOWN = (
    *("strategy", "tp", "cp", "pp", "ep", "micro_batch", "grad_accum", "recompute", "step_s", "low_s", "high_s"),
    *("tokens_per_s_per_gpu", "mfu", "hfu", "memory_bytes", "fits", "tight", "inter_node_bytes", "intra_node_bytes"),
)


@dataclass(frozen=True)
class Row:
    """One plan's forecast. Efficiencies are shares of the dense 16-bit peak under the forecast's FLOP convention.

    ``plan``: the fields of the :class:`Plan`, so that ``Plan(**row.plan)`` is it. ``step_s``: seconds of one optimizer
    step, four in five comparable runs between ``low_s`` and ``high_s``. ``mfu``, ``hfu``: fractions. ``memory_bytes``:
    the peak of one GPU. ``tight``: it fits, but leaves less than :data:`MEMORY_MARGIN` of the GPU's memory free.
    ``inter_node_bytes``: what one node's NICs send in a step; ``intra_node_bytes``: what its GPUs send each other.
    ``seconds``: the parts of ``step_s``; ``memory``: those of ``memory_bytes``.
    """

    strategy: str
    plan: dict[str, Any]
    step_s: float
    low_s: float
    high_s: float
    tokens_per_s_per_gpu: float
    mfu: float
    hfu: float
    memory_bytes: float
    fits: bool
    tight: bool
    inter_node_bytes: float
    intra_node_bytes: float
    exposed_communication_s: float
    seconds: dict[str, float]
    memory: dict[str, float]


@dataclass(frozen=True, repr=False)
class Forecast:
    """Many plans of one model on one cluster; every array broadcasts to the plans' shape."""

    model: Model
    cluster: Cluster
    convention: str
    plans: Plans
    operations: list[Operation]
    step: StepTime
    constants: Constants

    @cached_property
    def memory(self) -> Memory:
        """Bytes per GPU."""
        return memory(self.model, self.operations, self.plans, self.constants)

    @cached_property
    def traffic(self) -> Traffic:
        """Bytes that one node sends in a step."""
        return traffic(self.operations, self.plans)

    @cached_property
    def step_s(self) -> Array:
        """Seconds of one optimizer step."""
        return self.step.total

    @cached_property
    def band_s(self) -> tuple[Array, Array]:
        """The 80 % interval around ``step_s``."""
        factors = band(self.plans, self.cluster.gpus_per_node, self.model.num_experts > 0)
        if self.cluster.calibration is not None:
            factors = self.cluster.calibration.widened(factors, self.model, self.plans)
        return self.step_s * factors[0], self.step_s * factors[1]

    @cached_property
    def tokens_per_s_per_gpu(self) -> Array:
        """Tokens trained on per second and GPU."""
        plans = self.plans
        tokens = plans.seq_len * plans.dp * plans.micro_batch * plans.grad_accum
        return np.asarray(tokens / self.step_s / plans.num_gpus)

    @cached_property
    def fits(self) -> np.ndarray:
        """Whether the peak fits the GPU's memory."""
        return np.asarray(self.memory.total <= self.cluster.gpu.memory_bytes)

    @cached_property
    def tight(self) -> np.ndarray:
        """Whether the peak fits with less than :data:`MEMORY_MARGIN` to spare."""
        return np.asarray(self.fits & (self.memory.total > (1 - MEMORY_MARGIN) * self.cluster.gpu.memory_bytes))

    @cached_property
    def mfu(self) -> Array:
        """Model FLOPs per second over the peak: what training needs, recomputation not counted."""
        return self._efficiency(0.0)

    @cached_property
    def hfu(self) -> Array:
        """Hardware FLOPs per second over the peak: with the forward FLOPs of layers that are computed again in full."""
        return self._efficiency(share_in_full(self.plans, self.model.num_layers))

    def _efficiency(self, recomputed: Array | float) -> Array:
        lengths, where = np.unique(self.plans.seq_len, return_inverse=True)
        per_token = [model_flop_per_token(self.model, int(length), self.convention) for length in lengths]
        of_length = where.reshape(self.plans.seq_len.shape)
        total = np.array([flop.total for flop in per_token])[of_length]
        forward = np.array([flop.layers_forward for flop in per_token])[of_length]
        return np.asarray(
            (total + recomputed * forward) * self.tokens_per_s_per_gpu / self.cluster.gpu.tensor_flop_per_s
        )

    def row(self, index: int) -> Row:
        """One plan's forecast as plain Python values."""
        low, high = self.band_s
        return Row(
            strategy=str(self.plans.strategy[index]),
            plan=self.plans.describe(index),
            step_s=float(self.step_s[index]),
            low_s=float(low[index]),
            high_s=float(high[index]),
            tokens_per_s_per_gpu=float(self.tokens_per_s_per_gpu[index]),
            mfu=float(self.mfu[index]),
            hfu=float(self.hfu[index]),
            memory_bytes=float(self.memory.total[index]),
            fits=bool(self.fits[index]),
            tight=bool(self.tight[index]),
            inter_node_bytes=float(self.traffic.inter_node_bytes[index]),
            intra_node_bytes=float(self.traffic.intra_node_bytes[index]),
            exposed_communication_s=float(self.step.exposed_communication[index]),
            seconds={name: float(part[index]) for name, part in self.step.parts.items()},
            memory={name: float(part[index]) for name, part in self.memory.parts.items()},
        )

    def rows(self) -> list[Row]:
        """Each plan's forecast as plain Python values, in order."""
        return [self.row(index) for index in range(len(self.plans))]

    def to_frame(self) -> "pd.DataFrame":
        """One row per plan: the plan's fields, then the forecast; column names carry units."""
        return frame_of(self.rows())

    def __repr__(self) -> str:
        number = math.prod(self.plans.shape)
        return f"<Forecast of {self.model.name} on {self.cluster.name}: {number:,} plan{'s' if number > 1 else ''}>"

    def _repr_html_(self) -> str:
        return shown_in_a_notebook(repr(self), self.rows())


def frame_of(rows: Iterable[Row]) -> "pd.DataFrame":
    """One row per plan: the plan's fields, then the forecast; column names carry units."""
    import pandas as pd

    records = []
    for row in rows:
        record = dict(vars(row))
        seconds, held, plan = record.pop("seconds"), record.pop("memory"), record.pop("plan")
        record.pop("strategy")
        parts = {f"{name}_s": value for name, value in seconds.items()}
        kinds = {f"memory_{name}_bytes": value for name, value in held.items()}
        records.append({**plan, **record, **parts, **kinds})
    return pd.DataFrame.from_records(records)


def shown_in_a_notebook(title: str, rows: Sequence[Row]) -> str:
    """What stands in a cell: the title, and a table of the rows' main figures, of many the first and the last."""
    frame = frame_of(rows)
    table = frame[[name for name in SHOWN if name in frame]].to_html(max_rows=20, float_format=lambda x: f"{x:,.4g}")
    return f"<p>{escape(title)}</p>{table}"


def check_specifications(model: object, cluster: object) -> None:
    """Raise InputError for a name where a Model or a Cluster belongs."""
    for name, value, kind in (("model", model, Model), ("cluster", cluster, Cluster)):
        if not isinstance(value, kind):
            raise InputError(f"{name} is {value!r}; give a {kind.__name__}, e.g. load_{name}({str(value)!r})")


def forecast(
    model: Model,
    cluster: Cluster,
    plans: Plan | Iterable[Plan] | Plans,
    convention: str = "causal",
    constants: Constants | None = None,
) -> Forecast:
    """Step time, memory and traffic of ``model`` on ``cluster`` under each plan.

    ``convention``: what MFU and HFU count, 6n, causal or full. ``constants``: the formulas', by default the committed.

    Raises InputError for GPUs that do not fill nodes, a tensor- or expert-parallel size the model does not divide by,
    more pipeline stages than layers, fp8 on a GPU without it, or an unknown convention.
    """
    check_specifications(model, cluster)
    if not isinstance(plans, Plans):
        plans = Plans.of([plans] if isinstance(plans, Plan) else plans)
    check(model, cluster, plans, convention)
    constants = machine_constants(cluster, constants)
    hardware = Hardware.of([cluster])
    gpus_per_node = np.full_like(plans.num_gpus, cluster.gpus_per_node)
    operations = step_operations(model, plans, gpus_per_node)
    num_layers = np.full_like(plans.num_gpus, model.num_layers)
    return Forecast(
        model=model,
        cluster=cluster,
        convention=convention,
        plans=plans,
        operations=operations,
        step=with_waiting(step_time(operations, plans, num_layers, hardware, constants), plans, cluster),
        constants=constants,
    )


def machine_constants(cluster: Cluster, constants: Constants | None = None) -> Constants:
    """The constants, committed ones by default, with those that were measured on the cluster."""
    constants = constants or default_constants()
    return constants if cluster.measured is None else constants.with_values(**cluster.measured.constants)


def with_waiting(step: StepTime, plans: Plans, cluster: Cluster) -> StepTime:
    """The step with what waiting for the slowest rank adds, where a calibration knows it."""
    if cluster.measured is None or not cluster.measured.straggler:
        return step
    return replace(step, overhead=step.overhead + step.total * cluster.measured.waiting_share(plans.num_gpus))


def check(model: Model, cluster: Cluster, plans: Plans, convention: str) -> None:
    """Raise InputError where the model or the cluster cannot carry a plan."""
    if not isinstance(convention, str) or convention not in CONVENTIONS:
        raise InputError(f"convention '{convention}' is unknown; choose one of {', '.join(CONVENTIONS)}")
    if cluster.gpu.fp8_flop_per_s == 0 and np.any(plans.has(precision="fp8")):
        raise InputError(
            f"precision=fp8: {cluster.gpu.name} has no 8-bit peak (fp8); choose bf16, or a GPU of the Hopper, Ada or "
            "Blackwell generation"
        )
    for num_gpus in np.unique(plans.num_gpus):
        cluster.check_num_gpus(int(num_gpus))
    for tp in np.unique(plans.tp):
        for block in model.kinds:
            block.check_tensor_parallel(int(tp))
    for ep in np.unique(plans.ep):
        model.check_expert_parallel(int(ep))
    chunks = plans.pp * plans.virtual_pp
    most_chunks = num_dealt(model.num_layers, plans.pp, has_habit("counts_ends", plans.engine))
    too_many = (chunks > most_chunks) | (plans.pp > model.num_layers)
    if np.any(too_many):
        most = int(np.max(chunks[too_many]))
        raise InputError(
            f"pp x virtual_pp is {most} but {model.name} has {model.num_layers} layers; use at most one stage per layer"
        )
    check_layers_in_full(model, plans)


def best_of(rows: Sequence[Row]) -> Row:
    """The fastest row that fits and is not tight, else the fastest that fits, else the one that needs least memory."""
    fitting = [row for row in rows if row.fits]
    if fitting:
        return min(fitting, key=lambda row: (row.tight, row.step_s))
    return min(rows, key=lambda row: row.memory_bytes)
