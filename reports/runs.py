"""A table of measured training runs: each row as a model, a cluster and a plan, or refused with the reason."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from flopcast.errors import InputError
from flopcast.reports.frameworks import Framework, framework_of
from flopcast.simulator.blocks.transformer import Attention, Mlp, TransformerBlock
from flopcast.simulator.catalogue import generic_cluster
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.model import Model
from flopcast.simulator.plan import Plan

# Where a table does not say: GPT-2's vocabulary padded to a multiple of 128 for 8 ranks, as Megatron does.
DEFAULT_VOCABULARY = 51200
DEFAULT_ATTENTION = {"volta": "unfused"}


@dataclass
class Run:
    """One measured step. ``assumed`` says what the table leaves open and how it was filled.

    ``share_of_step``: tokens of the published step over those of the plan's whole micro-batches (a last micro-batch
    may be smaller). ``skipped`` is the reason where the row cannot be expressed; then nothing but its names is set.
    """

    id: str
    source: str
    gpu: str
    framework: str
    measured_step_s: float
    model: Model | None = None
    cluster: Cluster | None = None
    plan: Plan | None = None
    share_of_step: float = 1.0
    measured_memory_bytes: float | None = None
    assumed: list[str] = field(default_factory=list)
    skipped: str = ""


def read_runs(path: Path) -> list[Run]:
    """Every row of a CSV with the columns of the published runs, in order."""
    table = pd.read_csv(path)
    return [_express(row) for row in table.to_dict("records")]


def _express(row: dict[Any, Any]) -> Run:
    run = Run(
        id=str(row["id"]),
        source=str(row["source_key"]),
        gpu=str(row["gpu"]),
        framework=str(row["framework"]),
        measured_step_s=float(row["measured_step_s"]),
    )
    try:
        if not run.measured_step_s > 0:
            raise InputError("measured_step_s is blank")
        _fill(run, row, framework_of(run.framework))
    except InputError as error:
        run.model = run.cluster = run.plan = None
        run.skipped = str(error)
    return run


def _fill(run: Run, row: dict[Any, Any], framework: Framework) -> None:
    def given(column: str, default: Any = None) -> Any:
        value = row.get(column)
        if value is not None and not pd.isna(value):
            return value
        if default is None:
            raise InputError(f"{column} is blank")
        run.assumed.append(f"{column} {default}")
        return default

    model = run.model = _model(row, given)
    per_node = int(given("gpus_per_node", 8))
    rate = row.get("node_gbit")
    known = not pd.isna(rate)
    cluster = generic_cluster(run.gpu, per_node, float(rate or 0) * 1e9 / 8 if known else None)
    run.cluster = cluster
    num_gpus, tp, cp = int(given("n_gpus")), int(given("tp", 1)), int(given("cp", 1))
    pp, virtual = int(given("pp", 1)), int(given("vpp", 1))
    if num_gpus > per_node and not known:
        run.assumed.append(f"network {cluster.node_bytes_per_s * 8e-9:.0f} Gbit/s per node")
    world = num_gpus // (tp * pp)
    dp = max(world // cp, 1)
    batch = float(given("global_batch_seqs"))
    micro = _micro_batch(row, given, batch, dp, model.num_layers, pp)
    accumulation = max(round(batch / (dp * micro)), 1)
    if pp > 1 and accumulation == 1 and micro > 1:
        run.assumed.append(f"local batch of {micro} runs through the pipeline one sequence at a time")
        micro, accumulation = 1, micro
    if pp > 1 and virtual > 1:
        accumulation = -(-accumulation // pp) * pp
    sharding = str(given("sharding", "ddp"))
    run.plan = Plan(
        strategy=sharding,
        num_gpus=num_gpus,
        seq_len=int(given("seq_len")),
        micro_batch=micro,
        grad_accum=accumulation,
        tp=tp,
        cp=cp,
        pp=pp,
        virtual_pp=virtual if pp > 1 else 1,
        schedule="interleaved" if virtual > 1 and pp > 1 else "1f1b",
        sequence_parallel=bool(given("sequence_parallel", framework.overlap_tensor)) and tp > 1,
        overlap_tensor=framework.overlap_tensor and tp > 1,
        **_shards(sharding, row, num_gpus, tp, world, per_node),
        recompute=given("recompute", framework.recompute),
        precision="fp8" if given("precision", "bf16") == "fp8" else "bf16",
        gradient_bits=framework.gradient_bits,
        attention=_attention(given, framework, cluster),
        fused_kernels=framework.fused_kernels,
        compiled=bool(given("torch_compile", framework.jit_fused)) or framework.jit_fused,
        prefetch=int(framework.overlap or sharding in ("fsdp_full", "fsdp_hybrid", "zero3")),
        bucket_bytes=framework.bucket_bytes,
    )
    run.share_of_step = batch / (dp * micro * accumulation)
    memory = row.get("measured_mem_GB")
    run.measured_memory_bytes = None if memory is None or pd.isna(memory) else float(memory) * 2**30


def _model(row: dict[Any, Any], given: Any) -> Model:
    heads, hidden = int(given("n_heads")), int(given("hidden"))
    kv_heads = int(given("n_kv_heads", heads))
    gated = given("mlp_type") in ("swiglu", "geglu")
    attention = Attention(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        qkv_bias=not gated,
        output_bias=not gated,
        fused_qkv=kv_heads == heads and not gated,
        rotary_share=1.0 if gated else 0.0,
    )
    block = TransformerBlock(
        attention,
        Mlp(int(given("ffn_hidden")), gated=gated, bias=not gated),
        parallel=bool(given("parallel_layers", False)),
        norm="rmsnorm" if gated else "layernorm",
        norm_bias=not gated,
    )
    seq_len = int(given("seq_len"))
    return Model(
        name=str(row.get("model_name")),
        hidden=hidden,
        vocab_size=int(given("vocab", DEFAULT_VOCABULARY)),
        context=seq_len,
        layers=(block,) * int(given("n_layers")),
        tied_embeddings=not gated,
        positions="rotary" if gated else "learned",
        num_positions=seq_len,
        norm=block.norm,
        norm_bias=block.norm_bias,
    )


def _micro_batch(row: dict[Any, Any], given: Any, batch: float, dp: int, num_layers: int, pp: int) -> int:
    accumulation = row.get("grad_accum")
    default = None
    if accumulation is not None and not pd.isna(accumulation) and accumulation >= 1:
        default = max(int(batch // (dp * accumulation)), 1)
    else:
        default = max(min(int(batch // dp), 8), 1)
    return int(given("micro_batch", default))


def _shards(sharding: str, row: dict[Any, Any], num_gpus: int, tp: int, world: int, per_node: int) -> dict[str, int]:
    size = row.get("shard_group_size")
    shard = world if size is None or pd.isna(size) else int(size)
    if world % shard:
        shard = world
    if sharding == "megatron":
        sharding = framework_of(str(row["framework"])).sharding
    levels = {"zero1": 1, "zero2": 2, "zero3": 3, "fsdp_full": 3, "fsdp_hybrid": 3}.get(sharding, 0)
    return {
        "optimizer_shard": shard if levels >= 1 else 1,
        "gradient_shard": shard if levels >= 2 else 1,
        "parameter_shard": shard if levels >= 3 else 1,
    }


def _attention(given: Any, framework: Framework, cluster: Cluster) -> Any:
    usual = framework.attention or DEFAULT_ATTENTION.get(cluster.gpu.architecture, "flash2")
    name = str(given("attention", usual))
    if name == "flash":
        return "flash2"
    return name
