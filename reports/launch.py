"""What training programs are told to run a plan: their options, or why they have none for it.

Read from the programs themselves in August 2026: Megatron-LM d98e8a6 (``megatron/training/arguments.py`` and
``megatron/core/transformer/transformer_config.py``), DeepSpeed edaa722 (``deepspeed/runtime/zero/config.py``),
torchtitan b5bcd76 (``torchtitan/config/configs.py``).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from flopcast.simulator.cluster import Cluster
from flopcast.simulator.engines import ENGINES
from flopcast.simulator.model import Model
from flopcast.simulator.placement import layers_of_chunks, num_dealt
from flopcast.simulator.plan import Plan

Sharding = Literal["ddp", "zero1", "zero2", "zero3", "zero3-node", "hsdp", "other"]


@dataclass(frozen=True)
class Launch:
    """One program's ``options`` for a plan; empty where it has none, and ``note`` then says what it lacks.

    Else ``note`` says what the program does otherwise than the forecast takes it to.
    """

    software: str
    options: str
    note: str = ""


def launches(model: Model, cluster: Cluster, plan: Plan) -> list[Launch]:
    """How each program is told to run the plan, this package's trainer first."""
    programs: dict[str, Callable[[Model, Cluster, Plan], Launch]] = {
        "flopcast.trainer": _trainer,
        "Megatron-LM": _megatron,
        "DeepSpeed": _deepspeed,
        "torchtitan": _torchtitan,
    }
    return [program(model, cluster, plan) for program in programs.values()]


def sharding(plan: Plan) -> Sharding:
    """What a plan shards over which ranks, whatever its strategy is called."""
    shards, ranks = (plan.parameter_shard, plan.gradient_shard, plan.optimizer_shard), plan.shard_ranks
    forms: dict[tuple[int, int, int], Sharding] = {
        (plan.optimizer_shard,) * 3: "hsdp",
        (plan.parameter_shard, ranks, ranks): "zero3-node",
        (ranks, ranks, ranks): "zero3",
        (1, ranks, ranks): "zero2",
        (1, 1, ranks): "zero1",
        (1, 1, 1): "ddp",
    }
    return forms.get(shards, "other")


def _trainer(model: Model, cluster: Cluster, plan: Plan) -> Launch:
    name = "flopcast's trainer"
    lacks = _lacking(
        (plan.cp > 1, "context parallelism"),
        (any(block.kind != "transformer" for block in model.layers) or bool(model.num_experts), "layers of that kind"),
        (plan.precision != "bf16", "products in 8 bits"),
        (plan.pp > 1 and plan.schedule != "1f1b", f"the {plan.schedule} schedule"),
        (plan.tp > 1 and sharding(plan) == "zero3-node", "tensor parallelism in ZeRO-3 kept inside the node"),
        (plan.tp > 1 and plan.compiled, "torch.compile under tensor parallelism"),
        (plan.pp > 1 and plan.gradient_shard > 1, "sharded gradients in a pipeline"),
        (plan.pp > 1 and model.tied_embeddings, "tied embeddings in a pipeline"),
        (plan.gradient_bits != 32, "gradients reduced in 16 bits"),
        (plan.cuda_graphs != "none", "CUDA graphs"),
        (sharding(plan) == "other", "shards of those sizes"),
    )
    if lacks:
        return Launch(name, "", lacks)
    words: dict[str, Any] = {
        "strategy": plan.strategy,
        "tp": plan.tp if plan.tp > 1 and not plan.strategy.startswith("tp") else None,
        "pp": plan.pp if plan.pp > 1 else None,
        "sequence_parallel": plan.sequence_parallel or None,
        "seq_len": plan.seq_len,
        "micro_batch": plan.micro_batch,
        "global_batch": plan.global_batch_sequences,
        "recompute": plan.recompute,
        "recompute_layers": plan.recompute_layers or None,
        "compiled": plan.compiled or None,
    }
    flags = " ".join(f"--plan.{field} {str(value).lower()}" for field, value in words.items() if value is not None)
    on_a_node = min(plan.num_gpus, cluster.gpus_per_node)
    num_nodes = plan.num_gpus // on_a_node
    nodes = f"--nnodes {num_nodes} --rdzv-backend c10d --rdzv-endpoint HOST:29500 " if num_nodes > 1 else ""
    return Launch(name, f"torchrun {nodes}--nproc-per-node {on_a_node} -m flopcast.trainer run.toml {flags}")


def _megatron(model: Model, cluster: Cluster, plan: Plan) -> Launch:
    form = sharding(plan)
    fully_sharded = form in ("zero2", "zero3", "zero3-node", "hsdp")
    lacks = _lacking(
        (plan.gather_bits != 16, "a 4-bit all-gather"),
        (form == "other", "shards of those sizes"),
        (plan.pp > 1 and fully_sharded, "sharded gradients in a pipeline"),
        (plan.cuda_graphs != "none" and fully_sharded, "options for CUDA graphs of its FSDP"),
        (plan.pp > 1 and plan.schedule not in ("1f1b", "interleaved"), f"the {plan.schedule} schedule"),
    )
    if lacks:
        return Launch("Megatron-LM", "", lacks)
    exclusive = max(plan.tp, plan.cp) > 1 and not fully_sharded and cluster.gpu.architecture in ("ampere", "hopper")
    options = [
        *(["CUDA_DEVICE_MAX_CONNECTIONS=1"] if exclusive else []),
        f"--seq-length {plan.seq_len}",
        f"--micro-batch-size {plan.micro_batch}",
        f"--global-batch-size {plan.global_batch_sequences}",
        "--bf16",
        *(["--fp8-format hybrid"] if plan.precision == "fp8" else []),
        *([f"--tensor-model-parallel-size {plan.tp}"] if plan.tp > 1 else []),
        *(["--sequence-parallel"] if plan.sequence_parallel else []),
        *(["--tp-comm-overlap"] if plan.overlap_tensor else []),
        *([f"--context-parallel-size {plan.cp}"] if plan.cp > 1 else []),
        *_megatron_pipeline(model.num_layers, plan),
        *_megatron_experts(plan),
        *_megatron_sharding(plan, form),
        *(["--grad-reduce-in-bf16"] if plan.gradient_bits == 16 else []),
        *_megatron_recompute(plan),
        *_megatron_graphs(model, plan),
    ]
    otherwise = plan.recompute == "selective" and not plan.engine.startswith(("megatron", "nemo"))
    note = "recomputes attention where the forecast recomputes what stands between products" if otherwise else ""
    return Launch("Megatron-LM", " ".join(options), note)


def _megatron_pipeline(num_layers: int, plan: Plan) -> list[str]:
    """Its stages; where they are uneven, layer by layer: E the embedding, t a layer, L the loss, | between stages."""
    if plan.pp == 1:
        return []
    counts_ends = ENGINES[plan.engine].counts_ends
    dealt = int(num_dealt(num_layers, plan.pp, counts_ends))
    options = [f"--pipeline-model-parallel-size {plan.pp}"]
    if dealt % (plan.pp * plan.virtual_pp):
        chunks = [f"t*{len(layers)}" for layers in layers_of_chunks(num_layers, plan.pp, plan.virtual_pp, counts_ends)]
        between = [(chunk, len(list(alike))) for chunk, alike in groupby(chunks[1:-1])]
        layout = f"E{chunks[0]}|{''.join(f'({chunk}|)*{number}' for chunk, number in between)}{chunks[-1]}L"
        return [*options, f"--pipeline-model-parallel-layout '{layout.replace('t*0', '')}'"]
    if dealt > num_layers:
        options += ["--account-for-embedding-in-pipeline-split", "--account-for-loss-in-pipeline-split"]
    return [*options, *([f"--num-virtual-stages-per-pipeline-rank {plan.virtual_pp}"] if plan.virtual_pp > 1 else [])]


def _megatron_experts(plan: Plan) -> list[str]:
    if plan.ep == 1:
        return []
    flex = plan.dispatcher == "deepep"
    backend = "hybridep" if plan.cuda_graphs == "full" else "deepep"
    return [
        f"--expert-model-parallel-size {plan.ep}",
        *([f"--expert-tensor-parallel-size {1 if plan.whole_experts else plan.tp}"] if plan.tp > 1 else []),
        "--moe-token-dispatcher-type " + (f"flex --moe-flex-dispatcher-backend {backend}" if flex else "alltoall"),
        *(["--overlap-moe-expert-parallel-comm"] if plan.overlap_expert else []),
    ]


def _megatron_sharding(plan: Plan, form: Sharding) -> list[str]:
    if form == "ddp":
        return ["--overlap-grad-reduce"]
    if form == "zero1":
        gathers = ["--overlap-param-gather"] if plan.overlap_update else []
        return ["--use-distributed-optimizer", "--overlap-grad-reduce", *gathers]
    strategy = "optim_grads" if form == "zero2" else "optim_grads_params"
    groups = plan.shard_ranks // plan.parameter_shard if form in ("hsdp", "zero3-node") else 1
    return [
        f"--use-megatron-fsdp --data-parallel-sharding-strategy {strategy} --ckpt-format fsdp_dtensor",
        *([f"--num-distributed-optimizer-instances {groups}"] if groups > 1 else []),
        *(["--outer-dp-sharding-strategy optim"] if form == "zero3-node" else []),
        "--overlap-grad-reduce --overlap-param-gather",
    ]


def _megatron_recompute(plan: Plan) -> list[str]:
    if plan.recompute != "full":
        return ["--recompute-granularity selective"] if plan.recompute == "selective" else []
    method, layers = ("block", plan.recompute_layers) if plan.recompute_layers else ("uniform", 1)
    return [f"--recompute-granularity full --recompute-method {method} --recompute-num-layers {layers}"]


def _megatron_graphs(model: Model, plan: Plan) -> list[str]:
    if plan.cuda_graphs == "partial":
        kinds = [block.kind for block in model.kinds]
        modules = {
            "attn": not all("state-space" in kind for kind in kinds),
            "mamba": any("state-space" in kind for kind in kinds),
            "mlp": not all("expert" in kind for kind in kinds),
            "moe_router moe_preprocess": model.num_experts > 0,
        }
        held = " ".join(name for name, present in modules.items() if present)
        return [f"--cuda-graph-impl transformer_engine --cuda-graph-modules {held}"]
    if plan.cuda_graphs == "none":
        return []
    # What is captured has fixed sizes: room for half as many rows again as fall on a rank evenly, and pages of them.
    room = "--use-transformer-engine-op-fuser --moe-expert-rank-capacity-factor 1.5 --moe-paged-stash"
    return [
        "--cuda-graph-impl full_iteration --no-check-for-nan-in-loss-and-grad",
        *([room] if model.num_experts else []),
    ]


def _deepspeed(model: Model, cluster: Cluster, plan: Plan) -> Launch:
    form = sharding(plan)
    lacks = _lacking(
        (max(plan.tp, plan.cp, plan.pp, plan.ep) > 1, "options for more than data parallelism in its configuration"),
        (plan.precision != "bf16", "products in 8 bits"),
        (plan.gather_bits != 16, "a 4-bit all-gather of NF4"),
        (plan.cuda_graphs != "none", "CUDA graphs in training"),
        (form == "other", "shards of those sizes"),
    )
    if lacks:
        return Launch("DeepSpeed", "", lacks)
    stage = {"ddp": 0, "zero1": 1, "zero2": 2}.get(form, 3)
    zero: dict[str, Any] = {"stage": stage}
    if form == "zero3-node":
        zero["zero_hpz_partition_size"] = plan.parameter_shard
    if form == "hsdp":
        zero["mics_shard_size"] = plan.parameter_shard
    config = {
        "train_batch_size": plan.global_batch_sequences,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.grad_accum,
        "bf16": {"enabled": True},
        "communication_data_type": "fp32" if plan.gradient_bits == 32 else "bf16",
        "zero_optimization": zero,
    }
    recompute = "what is recomputed is set in the model" if plan.recompute != "none" else ""
    return Launch("DeepSpeed", json.dumps(config), recompute)


def _torchtitan(model: Model, cluster: Cluster, plan: Plan) -> Launch:
    form = sharding(plan)
    dealt = int(num_dealt(model.num_layers, plan.pp, ENGINES[plan.engine].counts_ends))
    chunks = plan.pp * plan.virtual_pp
    schedule = {"1f1b": "1F1B", "gpipe": "GPipe", "interleaved": "Interleaved1F1B"}.get(plan.schedule, "")
    lacks = _lacking(
        (form == "zero1", "an optimizer sharded alone"),
        (form == "zero3-node", "ZeRO-3 kept inside the node"),
        # fully_shard runs over data_parallel_shard_degree x context_parallel_degree ranks.
        (plan.optimizer_shard % plan.cp > 0, "parameters that are not sharded over a sequence's ranks"),
        (form == "other", "shards of those sizes"),
        (plan.gather_bits != 16, "a 4-bit all-gather"),
        (plan.gradient_bits != 32, "gradients reduced in 16 bits"),
        (plan.recompute_layers > 0, "recomputation of the first layers alone"),
        (plan.cuda_graphs == "partial", "CUDA graphs of single layers"),
        (plan.cuda_graphs == "full" and max(plan.pp, plan.ep) > 1, "CUDA graphs with pipeline or expert parallelism"),
        (plan.pp > 1 and not schedule, f"the {plan.schedule} schedule"),
        (plan.virtual_pp > 1 and -(-dealt // -(-dealt // chunks)) != chunks, "that number of chunks for the layers"),
    )
    if lacks:
        return Launch("torchtitan", "", lacks)
    shard = plan.optimizer_shard // plan.cp
    fields: dict[str, Any] = {
        "data_parallel_replicate_degree": plan.dp // shard,
        "data_parallel_shard_degree": shard,
        "fsdp_reshard_after_forward": {"zero2": "never", "zero3": "always", "hsdp": "always"}.get(form),
        "tensor_parallel_degree": plan.tp if plan.tp > 1 else None,
        "enable_sequence_parallel": plan.sequence_parallel if plan.tp > 1 else None,
        "context_parallel_degree": plan.cp if plan.cp > 1 else None,
        "expert_parallel_degree": plan.ep if plan.ep > 1 else None,
        **(_torchtitan_pipeline(plan, schedule, dealt, dealt > model.num_layers) if plan.pp > 1 else {}),
    }
    parallelism = ", ".join(f"{name}={value!r}" for name, value in fields.items() if value is not None)
    tokens, step = plan.micro_batch * plan.seq_len, plan.global_batch_sequences * plan.seq_len
    training = (
        f"num_tokens_per_microbatch_per_dp_rank={tokens}, num_tokens_per_train_step={step}, "
        f"max_context_length={plan.seq_len}" + ", disable_cuda_graphs=True" * (plan.cuda_graphs == "none")
    )
    checkpointing = {"none": "", "selective": ", SelectiveAC", "full": ", FullAC"}[plan.recompute]
    note = "products in 8 bits are a setting of the model" if plan.precision == "fp8" else ""
    return Launch("torchtitan", f"ParallelismConfig({parallelism}), TrainingConfig({training}){checkpointing}", note)


def _torchtitan_pipeline(plan: Plan, schedule: str, dealt: int, counts_ends: bool) -> dict[str, Any]:
    """Its stages: torchtitan deals out embedding and head as a layer each unless it is told that they weigh nothing."""
    return {
        "pipeline_parallel_degree": plan.pp,
        "pipeline_parallel_schedule": schedule,
        "pipeline_parallel_first_stage_less_layers": None if counts_ends else 0,
        "pipeline_parallel_last_stage_less_layers": None if counts_ends else 0,
        "pipeline_parallel_layers_per_stage": -(-dealt // (plan.pp * plan.virtual_pp)) if plan.virtual_pp > 1 else None,
        "num_pp_microbatches": plan.grad_accum,
    }


def _lacking(*cases: tuple[bool, str]) -> str:
    *others, last = [what for absent, what in cases if absent] or [""]
    return f"lacks {' and '.join([*([', '.join(others)] if others else []), last])}" if last else ""
