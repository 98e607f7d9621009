"""What the settings ask to be trained and how: the simulator's own Model and Plan."""

import dataclasses

import torch

from flopcast.errors import InputError
from flopcast.simulator.blocks.transformer import TransformerBlock
from flopcast.simulator.catalogue import load_model
from flopcast.simulator.model import Block, Model
from flopcast.simulator.plan import Plan, placement
from flopcast.trainer.settings import ModelTable, PlanTable

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def make_model(settings: ModelTable) -> Model:
    """The model of that name, with QK-norm as the settings say. Raises InputError for an unknown name."""
    model = load_model(settings.name)
    if settings.qk_norm is None:
        return model
    layers = tuple(_with_qk_norm(block, settings.qk_norm) for block in model.layers)
    return dataclasses.replace(model, layers=layers)


def _with_qk_norm(block: Block, qk_norm: bool) -> Block:
    if not isinstance(block, TransformerBlock):
        raise InputError(f"model.qk_norm: a {block.kind} layer has no queries and keys to normalise; leave it out")
    return dataclasses.replace(block, attention=dataclasses.replace(block.attention, qk_norm=qk_norm))


def make_plan(settings: PlanTable, num_ranks: int, gpus_per_node: int) -> Plan:
    """The plan on that many ranks. Raises InputError where ranks or sequences do not divide."""
    if num_ranks > gpus_per_node and num_ranks % gpus_per_node:
        raise InputError(
            f"{num_ranks} ranks do not fill nodes of plan.gpus_per_node = {gpus_per_node}; start a multiple of it"
        )
    layout = placement(settings.strategy, num_ranks, gpus_per_node, tp=settings.tp, pp=settings.pp)
    plan = Plan(
        **layout,  # type: ignore[arg-type]
        seq_len=settings.seq_len,
        micro_batch=settings.micro_batch,
        sequence_parallel=settings.sequence_parallel,
        recompute=settings.recompute,
        recompute_layers=settings.recompute_layers,
        fused_kernels=settings.fused_kernels,
        compiled=settings.compiled,
    )
    sequences = plan.dp * settings.micro_batch
    if settings.global_batch % sequences:
        below = settings.global_batch // sequences * sequences
        raise InputError(
            f"plan.global_batch = {settings.global_batch} does not divide over {plan.dp} data-parallel ranks with "
            f"plan.micro_batch = {settings.micro_batch}; use a multiple of {sequences}, such as {below + sequences}"
        )
    passes = settings.global_batch // sequences
    if passes < plan.pp:
        raise InputError(
            f"plan.global_batch = {settings.global_batch} gives {passes} micro-batch{'es' * (passes > 1)} a step, and "
            f"plan.pp = {plan.pp} stages need as many; use at least {plan.pp * sequences}, or fewer stages"
        )
    return dataclasses.replace(plan, grad_accum=passes)
