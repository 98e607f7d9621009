"""What ``flopcast verify`` found: the engine's bytes and memory beside the forecast's, as a document and as a table."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from flopcast.simulator.plan import Plan

MEMORY_TOLERANCE = 0.05


@dataclass(frozen=True)
class Row:
    """All calls of one collective over one kind of group in one phase; bytes sum full tensors, padding included.

    ``group``: "world" (all data-parallel ranks), "node", "across-nodes", "tp" or "pp". ``phase``: forward, backward
    (which recomputes) or step. ``count``: the engine's calls.
    """

    collective: str
    group: str
    phase: str
    count: int
    engine_bytes: int
    forecast_bytes: int


@dataclass(frozen=True)
class StageVerification:
    """The first rank of one stage of the pipeline, counted from 0; the only stage where there is none."""

    stage: int
    rows: tuple[Row, ...]
    engine_memory_bytes: int
    forecast_memory_bytes: int

    @property
    def memory_error(self) -> float:
        """How far the forecast of memory is above the engine's, as a share of the engine's."""
        return self.forecast_memory_bytes / self.engine_memory_bytes - 1


@dataclass(frozen=True)
class Verification:
    """What the engine did and what was forecast, for one step of ``plan``.

    ``stages``: the first, the second and the last. ``forecast_memory_bytes`` is the fullest stage's, as every command
    says it.
    """

    model: str
    plan: Plan
    gpus_per_node: int
    stages: tuple[StageVerification, ...]
    forecast_memory_bytes: int

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every stage's rows, one stage after the other."""
        return tuple(row for stage in self.stages for row in stage.rows)

    @property
    def engine_memory_bytes(self) -> int:
        """The peak of the stage that holds most."""
        return max(stage.engine_memory_bytes for stage in self.stages)

    @property
    def max_byte_error(self) -> int:
        """The largest difference of a row, in bytes."""
        return max((abs(row.engine_bytes - row.forecast_bytes) for row in self.rows), default=0)

    @property
    def memory_error(self) -> float:
        """How far the forecast of memory is above the engine's, as a share of the engine's."""
        return self.forecast_memory_bytes / self.engine_memory_bytes - 1

    @property
    def agrees(self) -> bool:
        """Every byte of every collective, and memory within 5 %."""
        errors = (self.memory_error, *(stage.memory_error for stage in self.stages))
        return self.max_byte_error == 0 and all(abs(error) <= MEMORY_TOLERANCE for error in errors)

    def as_json(self) -> dict[str, Any]:
        """The document that ``flopcast verify --json`` prints; of a pipeline ``rows`` and ``stages`` name the stage."""
        document: dict[str, Any] = {
            "model": self.model,
            "strategy": self.plan.strategy,
            "num_gpus": self.plan.num_gpus,
            "gpus_per_node": self.gpus_per_node,
            "micro_batches": self.plan.grad_accum,
            "seq_len": self.plan.seq_len,
            "rows": [asdict(row) for row in self.rows],
            "max_byte_error": self.max_byte_error,
            "engine_memory_bytes": self.engine_memory_bytes,
            "forecast_memory_bytes": self.forecast_memory_bytes,
            "memory_error": self.memory_error,
            "agrees": self.agrees,
        }
        if self.plan.pp > 1:
            document["pp"] = self.plan.pp
            document["rows"] = [{"stage": stage.stage, **asdict(row)} for stage in self.stages for row in stage.rows]
            names = ("stage", "engine_memory_bytes", "forecast_memory_bytes", "memory_error")
            document["stages"] = [{name: getattr(stage, name) for name in names} for stage in self.stages]
        return document

    def as_text(self) -> str:
        """A table for people, and the verdict."""
        plan, pipeline = self.plan, self.plan.pp > 1
        head = ["collective", "group", "phase", "calls", "engine bytes", "forecast bytes", "difference"]
        lines = [
            [str(stage.stage), r.collective, r.group, r.phase, f"{r.count:,}", f"{r.engine_bytes:,}",
             f"{r.forecast_bytes:,}",
             f"{r.forecast_bytes - r.engine_bytes:+,}" if r.forecast_bytes != r.engine_bytes else "0"]
            for stage in self.stages for r in stage.rows
        ]  # fmt: skip
        table = [["stage", *head], *lines] if pipeline else [head, *(line[1:] for line in lines)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        aligned = [str.ljust] * (len(widths) - 4) + [str.rjust] * 4
        rows = [
            "  ".join(align(cell, width) for align, cell, width in zip(aligned, line, widths, strict=True)).rstrip()
            for line in table
        ]
        stages = f" in {plan.pp} pipeline stages" if pipeline else ""
        title = (
            f"{self.model}, {plan.strategy} on {plan.num_gpus} GPUs{stages}, {self.gpus_per_node} per node: one "
            f"optimizer step of {plan.grad_accum} micro-batch{'es' if plan.grad_accum > 1 else ''} of {plan.seq_len} "
            f"tokens, PyTorch {torch.__version__.split('+')[0]} on fake ranks"
        )
        traffic = (
            "Traffic agrees to the byte."
            if self.max_byte_error == 0
            else f"Traffic DIFFERS by up to {self.max_byte_error:,} bytes."
        )
        held = [_memory_line(f"Memory of stage {stage.stage}", stage) for stage in self.stages if pipeline]
        fullest = "Memory of the fullest stage" if pipeline else "Memory"
        held.append(_memory_line(fullest, self))
        return "\n".join([title, "", *rows, "", traffic, *held])


def _memory_line(what: str, found: StageVerification | Verification) -> str:
    error = round(found.memory_error, 3) + 0.0  # which makes 0.0 of -0.0
    within = "within" if abs(found.memory_error) <= MEMORY_TOLERANCE else "OUTSIDE"
    return (
        f"{what}: engine {found.engine_memory_bytes / 2**30:.2f} GiB of tensors at the peak, forecast "
        f"{found.forecast_memory_bytes / 2**30:.2f} GiB without slack "
        f"({error:+.1%}, {within} {MEMORY_TOLERANCE:.0%})."
    )
