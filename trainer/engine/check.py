"""Which plans the engine can run; the rest is refused before anything is built."""

from typing import NoReturn

from flopcast.errors import InputError
from flopcast.simulator.blocks.transformer import TransformerBlock
from flopcast.simulator.model import Model
from flopcast.simulator.plan import Plan, Plans
from flopcast.simulator.recompute import check_layers_in_full


def check_plan(model: Model, plan: Plan, world_size: int) -> None:
    """Raise InputError, one sentence, where PyTorch's engine has no form of ``plan`` for ``model``."""
    if plan.num_gpus != world_size:
        _refuse(plan, f"num_gpus={plan.num_gpus} but {world_size} ranks are running; start one rank per GPU")
    if plan.cp > 1:
        _refuse(plan, f"cp={plan.cp}: the trainer has no context parallelism; set cp=1")
    if plan.ep > 1:
        _refuse(plan, f"ep={plan.ep}: the trainer has no mixture of experts; set ep=1")
    if plan.precision != "bf16":
        _refuse(plan, f"precision={plan.precision}: the trainer computes in bf16 or fp32; set precision=bf16")
    if plan.cuda_graphs != "none":
        _refuse(plan, f"cuda_graphs={plan.cuda_graphs}: the trainer launches every kernel; set cuda_graphs=none")
    if model.positions == "learned" and plan.seq_len > model.num_positions:
        _refuse(
            plan, f"seq_len={plan.seq_len} but {model.name} has {model.num_positions} positions; use at most as many"
        )
    check_layers_in_full(model, Plans.of([plan]))
    _check_shards(plan)
    if plan.tp > 1:
        if plan.compiled:
            _refuse(plan, f"compiled with tp={plan.tp}: the trainer compiles whole layers; set tp=1 or compiled=false")
        _check_tensor_parallel(model, plan)
    if plan.pp > 1:
        _check_pipeline(model, plan)


def _refuse(plan: Plan, message: str) -> NoReturn:
    raise InputError(f"plan '{plan.strategy}': {message}")


def _check_shards(plan: Plan) -> None:
    p, g, o = plan.parameter_shard, plan.gradient_shard, plan.optimizer_shard
    if g not in (1, o):
        _refuse(plan, f"gradient_shard={g} between 1 and optimizer_shard={o}: FSDP2 has no such form; use 1 or {o}")
    if 1 < p < o and plan.tp > 1:
        _refuse(
            plan,
            f"tp={plan.tp} with parameter_shard={p}: FSDP2 cannot reshard tensor-parallel parameters to a part of the "
            "data-parallel ranks; set tp=1, or use zero1, zero3 or hsdp",
        )
    if 1 < p < o < plan.dp:
        _refuse(plan, f"parameter_shard={p} < optimizer_shard={o} < {plan.dp} ranks: use optimizer_shard={plan.dp}")


def _check_tensor_parallel(model: Model, plan: Plan) -> None:
    for block in model.kinds:
        block.check_tensor_parallel(plan.tp)
        assert isinstance(block, TransformerBlock)
        attention = block.attention
        if attention.fused_qkv and attention.num_kv_heads % plan.tp:
            _refuse(
                plan,
                f"tp={plan.tp} cannot split one fused q, k, v matrix of {attention.num_kv_heads} key/value heads; "
                "choose a tp that divides them",
            )


def _check_pipeline(model: Model, plan: Plan) -> None:
    if plan.schedule not in ("1f1b", "gpipe"):
        _refuse(plan, f"schedule={plan.schedule}: the trainer runs 1f1b and gpipe; choose one of them")
    if plan.pp > model.num_layers:
        _refuse(plan, f"pp={plan.pp} but {model.name} has {model.num_layers} layers; use at most one stage per layer")
    if model.tied_embeddings:
        _refuse(plan, f"pp={plan.pp} with tied embeddings needs one matrix on two stages; untie them or set pp=1")
    if plan.gradient_shard > 1:
        _refuse(
            plan,
            f"pp={plan.pp} with gradient_shard={plan.gradient_shard}: torch.distributed.pipelining gathers once and "
            "reduces once per step; use ddp or zero1 with it",
        )
    if plan.schedule == "1f1b" and plan.grad_accum < plan.pp:
        _refuse(plan, f"schedule=1f1b with grad_accum={plan.grad_accum} needs at least pp={plan.pp} micro-batches")
