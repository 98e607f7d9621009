"""The forecast beside PyTorch's engine on N fake ranks: every collective of one optimizer step, and the peak of memory.

The step is the trainer's own: the same model, the same FSDP2 and tensor-parallel code, one sequence per micro-batch,
full recompute, bf16 with fp32 gradients. Memory is the sum of the tensors alive at the peak of a step after the first
(the optimizer's state exists), set beside the forecast without its ``slack``, which stands for what no tensor is: the
CUDA context, NCCL's buffers and the holes of the caching allocator.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from flopcast.errors import InputError
from flopcast.simulator.constants import default_constants
from flopcast.simulator.memory import memory
from flopcast.simulator.model import Model
from flopcast.simulator.operations import step_operations
from flopcast.simulator.plan import Plan, Plans, placement
from flopcast.simulator.traffic import collective_totals
from flopcast.trainer.engine import OptimizerSettings, assemble
from flopcast.trainer.fake_cluster import Issued, Recorder, fake_cluster, fake_tensors

MEMORY_TOLERANCE = 0.05

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Row:
    """All calls of one collective over one kind of group in one phase; bytes sum full tensors, padding included.

    ``group``: "world" (all data-parallel ranks), "node", "across-nodes" or "tp". ``phase``: forward, backward (which
    recomputes) or step. ``count``: the engine's calls.
    """

    collective: str
    group: str
    phase: str
    count: int
    engine_bytes: int
    forecast_bytes: int


@dataclass(frozen=True)
class Verification:
    """What the engine did and what was forecast, for one step of ``plan``."""

    model: str
    plan: Plan
    gpus_per_node: int
    rows: tuple[Row, ...]
    engine_memory_bytes: int
    forecast_memory_bytes: int

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
        return self.max_byte_error == 0 and abs(self.memory_error) <= MEMORY_TOLERANCE

    def as_json(self) -> dict[str, Any]:
        """The document that ``flopcast verify --json`` prints."""
        return {
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

    def as_text(self) -> str:
        """A table for people, and the verdict."""
        plan = self.plan
        head = ("collective", "group", "phase", "calls", "engine bytes", "forecast bytes", "difference")
        lines = [
            (r.collective, r.group, r.phase, f"{r.count:,}", f"{r.engine_bytes:,}", f"{r.forecast_bytes:,}",
             f"{r.forecast_bytes - r.engine_bytes:+,}" if r.forecast_bytes != r.engine_bytes else "0")
            for r in self.rows
        ]  # fmt: skip
        widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head))]
        aligned = [str.ljust] * 3 + [str.rjust] * 4
        table = [
            "  ".join(align(cell, width) for align, cell, width in zip(aligned, line, widths, strict=True)).rstrip()
            for line in (head, *lines)
        ]
        title = (
            f"{self.model}, {plan.strategy} on {plan.num_gpus} GPUs, {self.gpus_per_node} per node: one optimizer step "
            f"of {plan.grad_accum} micro-batch{'es' if plan.grad_accum > 1 else ''} of {plan.seq_len} tokens, PyTorch "
            f"{torch.__version__.split('+')[0]} on fake ranks"
        )
        traffic = (
            "Traffic agrees to the byte."
            if self.max_byte_error == 0
            else f"Traffic DIFFERS by up to {self.max_byte_error:,} bytes."
        )
        held = (
            f"Memory: engine {self.engine_memory_bytes / 2**30:.2f} GiB of tensors at the peak, forecast "
            f"{self.forecast_memory_bytes / 2**30:.2f} GiB without slack ({self.memory_error:+.1%}, "
            f"{'within' if abs(self.memory_error) <= MEMORY_TOLERANCE else 'OUTSIDE'} {MEMORY_TOLERANCE:.0%})."
        )
        return "\n".join([title, "", *table, "", traffic, held])


def verify(
    model: Model,
    num_gpus: int,
    strategy: str,
    gpus_per_node: int = 8,
    micro_batches: int = 1,
    seq_len: int | None = None,
    tp: int = 1,
    sequence_parallel: bool = False,
) -> Verification:
    """Trace one optimizer step of the engine on ``num_gpus`` fake ranks and set the forecast beside it.

    ``tp`` splits layers under a strategy other than tpN too. Raises InputError for a plan that the engine cannot run,
    and inside a running process group.
    """
    plan = _plan(model, num_gpus, strategy, gpus_per_node, micro_batches, seq_len, tp, sequence_parallel)
    issued, peak_bytes = trace(model, plan, gpus_per_node)
    forecast, forecast_memory = _forecast(model, plan, gpus_per_node)
    count: Counter[Key] = Counter()
    engine: Counter[Key] = Counter()
    for call in issued:
        if len(call.ranks) > 1:
            key = (call.collective, _group_name(call.ranks, plan, gpus_per_node), call.phase)
            count[key] += 1
            engine[key] += call.tensor_bytes
    keys = dict.fromkeys([*engine, *forecast])
    rows = tuple(Row(*key, count[key], engine[key], forecast.get(key, 0)) for key in keys)
    return Verification(model.name, plan, gpus_per_node, rows, peak_bytes, forecast_memory)


def trace(model: Model, plan: Plan, gpus_per_node: int) -> tuple[list[Issued], int]:
    """The collectives of one step of the engine's rank 0, and the peak of its memory in bytes."""
    device = torch.device("cpu")
    with fake_cluster(plan.num_gpus):
        skeleton = assemble(model, plan, gpus_per_node=gpus_per_node, device_type=device.type, dtype=torch.bfloat16)
        with fake_tensors(), Recorder() as recorder:
            engine = skeleton.materialise(device, OptimizerSettings())
            tokens = torch.zeros(plan.micro_batch, plan.seq_len, dtype=torch.int64)
            for _ in range(2):  # the first step makes the optimizer's state
                recorder.issued.clear()
                recorder.reset_peak()
                for micro_batch in range(plan.grad_accum):
                    engine.accumulate(tokens, tokens, is_last=micro_batch == plan.grad_accum - 1)
                recorder.phase = "step"
                engine.step()
                recorder.phase = ""
    return recorder.issued, recorder.peak_bytes


def _plan(
    model: Model,
    num_gpus: int,
    strategy: str,
    gpus_per_node: int,
    micro_batches: int,
    seq_len: int | None,
    tp: int,
    sequence_parallel: bool,
) -> Plan:
    for name, value in (("gpus", num_gpus), ("gpus-per-node", gpus_per_node), ("micro-batches", micro_batches)):
        if value < 1:
            raise InputError(f"--{name} is {value}; it must be at least 1")
    if num_gpus > gpus_per_node and num_gpus % gpus_per_node:
        raise InputError(
            f"--gpus is {num_gpus}: it does not fill nodes of --gpus-per-node {gpus_per_node}; use a multiple of it"
        )
    fields = placement(strategy, num_gpus, gpus_per_node, tp=tp)
    return Plan(
        **fields,  # type: ignore[arg-type]
        seq_len=seq_len or model.context,
        grad_accum=micro_batches,
        recompute="full",
        sequence_parallel=sequence_parallel,
    )


def _forecast(model: Model, plan: Plan, gpus_per_node: int) -> tuple[dict[Key, int], int]:
    plans = Plans.of([plan])
    operations = step_operations(model, plans, np.array([gpus_per_node]))
    totals = {
        (total.collective, total.group, total.phase): total.tensor_bytes
        for total in collective_totals(operations, plans, 0)
        if total.count
    }
    held = memory(model, operations, plans, default_constants())
    return totals, round(float(held.total[0] - held.parts["slack"][0]))


def _group_name(ranks: tuple[int, ...], plan: Plan, gpus_per_node: int) -> str:
    if len(ranks) in (plan.num_gpus, plan.shard_ranks) and ranks[0] == 0 and ranks != tuple(range(plan.tp)):
        return "world"
    if plan.tp > 1 and ranks == tuple(range(plan.tp)):
        return "tp"
    return "node" if ranks[-1] < gpus_per_node else "across-nodes"
