"""From a model and a plan to an :class:`Engine` on every rank."""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from flopcast.errors import InputError
from flopcast.simulator.engines import ENGINES
from flopcast.simulator.model import Model
from flopcast.simulator.placement import layers_of_chunks
from flopcast.simulator.plan import Plan
from flopcast.trainer.engine import weights
from flopcast.trainer.engine.check import check_plan
from flopcast.trainer.engine.engine import Engine, Passes, Sharding, WholePasses
from flopcast.trainer.engine.mesh import PIPELINE, TENSOR, Ranks
from flopcast.trainer.engine.pipeline import PipelinePasses
from flopcast.trainer.engine.settings import OptimizerSettings
from flopcast.trainer.engine.sharding import Fsdp2
from flopcast.trainer.engine.split import split_over
from flopcast.trainer.model import Decoder
from flopcast.trainer.numerics import Numerics


def build(
    model: Model,
    plan: Plan,
    *,
    gpus_per_node: int,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    optimizer: OptimizerSettings,
    z_loss: float = 0.0,
    numerics: Numerics | None = None,
) -> Engine:
    """Shard ``model`` over the ranks of the default process group as ``plan`` says, and draw its weights from ``seed``.

    ``dtype``: bf16 or fp32, what is computed and gathered in; parameters and optimizer state are fp32. Call it on every
    rank; a process without a process group becomes a group of one. Raises InputError for a plan that the engine cannot
    run.
    """
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=0, world_size=1, store=dist.HashStore())  # type: ignore[attr-defined]
    skeleton = assemble(
        model,
        plan,
        gpus_per_node=gpus_per_node,
        device_type=device.type,
        dtype=dtype,
        z_loss=z_loss,
        numerics=numerics,
    )
    engine = skeleton.materialise(device, optimizer)
    weights.initialise(engine.module, model, skeleton.ranks, seed)
    return engine


@dataclass(frozen=True)
class Skeleton:
    """A sharded decoder on the meta device: everything but its memory."""

    module: Decoder
    plan: Plan
    ranks: Ranks
    sharding: Sharding
    dtype: torch.dtype

    def materialise(self, device: torch.device, optimizer: OptimizerSettings) -> Engine:
        """The engine, its weights not yet set."""
        self.module.to_empty(device=device)
        passes: Passes = WholePasses(self.module, self.sharding, self.plan.grad_accum)
        if self.plan.pp > 1:
            passes = PipelinePasses(self.module, self.sharding, self.plan, self.ranks, self.dtype)
        return Engine(self.module, passes, self.plan, self.ranks, optimizer)


def assemble(
    model: Model,
    plan: Plan,
    *,
    gpus_per_node: int,
    device_type: str,
    dtype: torch.dtype,
    z_loss: float = 0.0,
    numerics: Numerics | None = None,
) -> Skeleton:
    """What :func:`build` builds before it takes memory."""
    if dtype not in (torch.bfloat16, torch.float32):
        raise InputError(f"dtype is {dtype}; train in torch.bfloat16 or torch.float32")
    check_plan(model, plan, dist.get_world_size())
    if gpus_per_node % plan.tp:
        raise InputError(f"tp={plan.tp} does not divide the node's {gpus_per_node} GPUs; choose a tp that does")
    ranks = Ranks.of(plan, device_type)
    stages = layers_of_chunks(model.num_layers, plan.pp, 1, ENGINES[plan.engine].counts_ends)
    with torch.device("meta"):
        module = Decoder(
            model,
            numerics,
            parallel=ranks.tensor_parallel,
            recompute=plan.recompute,
            recompute_layers=plan.recompute_layers,
            fused_kernels=plan.fused_kernels,
            compiled=plan.compiled,
            z_loss=z_loss,
            layers=stages[ranks.place(PIPELINE)],
        )
    if plan.tp > 1:
        split_over(module, model, ranks.mesh[TENSOR])
    return Skeleton(module, plan, ranks, Fsdp2(module, plan, ranks, dtype), dtype)
