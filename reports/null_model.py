"""The null model beside the forecast: a step takes its FLOPs at one constant efficiency, by GPU type and precision."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from flopcast.reports.runs import Run
from flopcast.simulator.conventions import model_flop_per_token
from flopcast.simulator.operation import Array
from flopcast.simulator.plan import Plans
from flopcast.simulator.recompute import share_in_full


@dataclass(frozen=True)
class NullModel:
    """``efficiencies``: medians over the sources' medians, by kind of run: a GPU type and precision, and coarser ones.

    Of hardware FLOPs by the causal convention, recomputation counted where the plan recomputes.
    """

    efficiencies: dict[str, float]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "NullModel":
        """The efficiencies of these runs, none of them skipped."""
        efficiency = [_ideal_step_s(run) / run.measured_step_s for run in runs]
        found: dict[str, float] = {}
        for kinds in zip(*(_kinds(run) for run in runs), strict=True):
            table = pd.DataFrame({"kind": kinds, "source": [run.source for run in runs], "efficiency": efficiency})
            medians = table.groupby(["kind", "source"])["efficiency"].median().groupby("kind").median()
            found |= {str(kind): float(value) for kind, value in medians.items()}
        return cls(found)

    def step_s(self, runs: Sequence[Run]) -> Array:
        """Seconds per step of runs, each by the finest of its kinds that is known."""
        return np.array([_ideal_step_s(run) / self.efficiencies[self._kind(run)] for run in runs])

    def borrowed(self, runs: Sequence[Run]) -> dict[str, str]:
        """Of the finest kinds of these runs that are not known: the coarser one that stands in."""
        return {_kinds(run)[0]: self._kind(run) for run in runs if self._kind(run) != _kinds(run)[0]}

    def _kind(self, run: Run) -> str:
        return next(kind for kind in _kinds(run) if kind in self.efficiencies)


def _kinds(run: Run) -> tuple[str, ...]:
    """The GPU type and precision of a run, and what stands in for them where they are not known; finest first."""
    assert run.cluster is not None
    assert run.plan is not None
    gpu, precision = run.cluster.gpu, run.plan.precision
    return f"{gpu.name} {precision}", f"all {gpu.architecture} {precision}", f"all {precision}", "all"


def _ideal_step_s(run: Run) -> float:
    assert run.model is not None
    assert run.plan is not None
    assert run.cluster is not None
    flop = model_flop_per_token(run.model, run.plan.seq_len, "causal")
    per_token = flop.total + float(share_in_full(Plans.of([run.plan]), run.model.num_layers)[0]) * flop.layers_forward
    tokens = run.plan.global_batch_sequences * run.plan.seq_len * run.share_of_step
    return float(tokens * per_token / (run.plan.num_gpus * run.cluster.gpu.tensor_flop_per_s))
