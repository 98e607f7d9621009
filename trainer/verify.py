"""The forecast beside PyTorch's engine on N fake ranks: every collective of one optimizer step, and the peak of memory.

The step is the trainer's own: the same model, the same FSDP2 and tensor-parallel code, one sequence per micro-batch,
full recompute, bf16 with fp32 gradients. Memory is the sum of the tensors alive at the peak of a step whose optimizer
has its state already, set beside the forecast without its ``slack``, which stands for what no tensor is: the CUDA
context, NCCL's buffers and the holes of the caching allocator.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch

from flopcast.errors import InputError
from flopcast.simulator.constants import default_constants
from flopcast.simulator.memory import memory
from flopcast.simulator.model import Model
from flopcast.simulator.operations import step_operations
from flopcast.simulator.plan import Plan, Plans, placement
from flopcast.simulator.request import checked_seq_len
from flopcast.simulator.traffic import collective_totals
from flopcast.trainer.engine import Engine, OptimizerSettings, assemble
from flopcast.trainer.fake_cluster import Issued, Recorder, fake_cluster, fake_tensors
from flopcast.trainer.verification import Row, StageVerification, Verification

Key = tuple[str, str, str]


def verify(
    model: Model,
    num_gpus: int,
    strategy: str,
    gpus_per_node: int = 8,
    micro_batches: int = 1,
    seq_len: int | None = None,
    tp: int = 1,
    sequence_parallel: bool = False,
    pp: int = 1,
    recompute_layers: int = 0,
) -> Verification:
    """Trace one optimizer step of the engine on ``num_gpus`` fake ranks and set the forecast beside it.

    ``tp`` splits layers under a strategy other than tpN too, ``pp`` deals them out to the stages of a 1F1B pipeline, of
    which the first, the second and the last are traced; ``recompute_layers`` of a stage's first are computed again, 0
    being all. Raises InputError for a plan that the engine cannot run, and inside a running process group.
    """
    _check({"gpus": num_gpus, "gpus-per-node": gpus_per_node, "micro-batches": micro_batches, "tp": tp, "pp": pp})
    plan = Plan(
        **placement(strategy, num_gpus, gpus_per_node, tp=tp, pp=pp),  # type: ignore[arg-type]
        seq_len=checked_seq_len(model, seq_len),
        grad_accum=micro_batches,
        recompute="full",
        recompute_layers=recompute_layers,
        sequence_parallel=sequence_parallel,
    )
    stages = tuple(
        _verify_stage(model, plan, gpus_per_node, stage) for stage in sorted({0, 1, pp - 1} if pp > 1 else {0})
    )
    return Verification(model.name, plan, gpus_per_node, stages, _forecast(model, plan, gpus_per_node)[1])


def _verify_stage(model: Model, plan: Plan, gpus_per_node: int, stage: int) -> StageVerification:
    issued, peak_bytes = trace(model, plan, gpus_per_node, stage)
    forecast, forecast_memory = _forecast(model, plan, gpus_per_node, stage)
    count: Counter[Key] = Counter()
    engine: Counter[Key] = Counter()
    for call in issued:
        if len(call.ranks) > 1:
            key = _key(call, plan, gpus_per_node, stage)
            count[key] += 1
            engine[key] += call.tensor_bytes
    keys = dict.fromkeys([*engine, *forecast])
    rows = tuple(Row(*key, count[key], engine[key], forecast.get(key, 0)) for key in keys)
    return StageVerification(stage, rows, peak_bytes, forecast_memory)


def trace(model: Model, plan: Plan, gpus_per_node: int, stage: int = 0) -> tuple[list[Issued], int]:
    """The collectives of one step of the first rank of a stage, and the peak of its memory in bytes."""
    device = torch.device("cpu")
    with fake_cluster(plan.num_gpus, _first_rank(plan, stage)):
        skeleton = assemble(model, plan, gpus_per_node=gpus_per_node, device_type=device.type, dtype=torch.bfloat16)
        with fake_tensors(), Recorder() as recorder:
            engine = skeleton.materialise(device, OptimizerSettings())
            _make_optimizer_state(engine)
            tokens = torch.zeros(plan.micro_batch, plan.seq_len, dtype=torch.int64)
            # In its first step a pipeline agrees on shapes and makes more buffers than it keeps.
            for _ in range(2 if plan.pp > 1 else 1):
                recorder.issued.clear()
                recorder.reset_peak()
                for micro_batch in range(plan.grad_accum):
                    engine.accumulate(tokens, tokens, is_last=micro_batch == plan.grad_accum - 1)
                recorder.phase = "step"
                engine.step()
                recorder.phase = ""
    return recorder.issued, recorder.peak_bytes


def _make_optimizer_state(engine: Engine) -> None:
    """What the optimizer makes in its first update, without the passes that would come before it."""
    for parameter in engine.module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    engine.optimizer.step()
    engine.optimizer.zero_grad()


def _check(counts: Mapping[str, int]) -> None:
    """Raise InputError for a number below 1, and for GPUs that do not fill nodes."""
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"--{name} is {value}; it must be at least 1")
    num_gpus, node = counts["gpus"], counts["gpus-per-node"]
    if num_gpus > node and num_gpus % node:
        raise InputError(
            f"--gpus is {num_gpus}: it does not fill nodes of --gpus-per-node {node}; use a multiple of it"
        )


def _forecast(model: Model, plan: Plan, gpus_per_node: int, stage: int | None = None) -> tuple[dict[Key, int], int]:
    plans = Plans.of([plan])
    operations = step_operations(model, plans, np.array([gpus_per_node]), stage)
    totals = {
        (total.collective, total.group, total.phase): total.tensor_bytes
        for total in collective_totals(operations, plans)
        if total.count
    }
    held = memory(model, operations, plans, default_constants(), stage)
    return totals, round(float(held.total[0] - held.parts["slack"][0]))


def _first_rank(plan: Plan, stage: int) -> int:
    return stage * plan.num_gpus // plan.pp


def _key(call: Issued, plan: Plan, gpus_per_node: int, stage: int) -> Key:
    group = _group_name(call, plan, gpus_per_node, stage)
    phase = call.phase
    if call.to is not None:
        phase = "forward" if call.to > stage else "backward"
    elif group == "pp":  # the loss, from the last stage
        phase = "step"
    elif plan.pp > 1 and group != "tp" and call.collective in ("reduce_scatter", "all_reduce") and phase == "forward":
        phase = "backward"  # a pipeline reduces gradients when its last backward is over, outside of autograd
    return call.collective, group, phase


# The gradient's norm is one fp32 number.
NORM_BYTES = 4


def _group_name(call: Issued, plan: Plan, gpus_per_node: int, stage: int) -> str:
    if call.collective in ("point_to_point", "broadcast"):
        return "pp"
    ranks, first = call.ranks, _first_rank(plan, stage)
    if call.phase == "step" and call.tensor_bytes == NORM_BYTES:
        return "world"  # over all ranks, even where those are the tensor-parallel ones
    if plan.tp > 1 and ranks == tuple(range(first, first + plan.tp)):
        return "tp"
    if ranks in (tuple(range(plan.num_gpus)), tuple(range(first, first + plan.num_gpus // plan.pp, plan.tp))):
        return "world"
    return "node" if ranks[0] // gpus_per_node == ranks[-1] // gpus_per_node else "across-nodes"
