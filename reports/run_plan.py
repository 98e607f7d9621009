"""The plan of a row of a table of runs: what it says, and what its software does where it says nothing."""

import math
import re
from typing import Any

from flopcast.reports.frameworks import Framework
from flopcast.reports.run_rate import stated_rate
from flopcast.reports.run_recompute import layers_in, recompute_in
from flopcast.reports.run_row import Row
from flopcast.reports.run_shards import OFFLOADED, shards, zero_stage
from flopcast.reports.run_words import (
    COMPILED,
    FUSED,
    TENSOR_OVERLAP,
    attention_in,
    cuda_graphs_in,
    dispatcher_in,
    precision_in,
    schedule_in,
)
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.engines import ENGINES, Engine
from flopcast.simulator.model import Model
from flopcast.simulator.placement import num_dealt
from flopcast.simulator.plan import Plan, Precision
from flopcast.simulator.request import usual_attention

# Passes of a step where a table states a rate and neither the passes nor the batch.
ASSUMED_PASSES = 8
# Of its computing a pipeline idles for (p - 1) / m. No published run held here, of a framework that interleaves stages,
# lets them idle for longer than this; NeMo's and Megatron-Bridge's recipes then give a chunk so many layers.
LONGEST_IDLE = 0.4
USUAL_LAYERS_PER_CHUNK = 2
# What 8-bit products are scaled by other than blocks of 32.
OTHER_SCALING = re.compile(r"\b(cs|current|delayed|ds|per[- ]tensor|tensorwise|blockwise)\b")


def plan_of(row: Row, framework: Framework, model: Model, cluster: Cluster) -> tuple[Plan, float]:
    """The plan, and which share of its whole micro-batches the row's sequences are.

    Raises InputError for a cell that is none of what its column may hold. What it takes as usual is noted in the row.
    """
    num_gpus, tp, cp = row.whole("n_gpus"), row.whole("tp", 1), row.whole("cp", 1)
    pp = row.whole("pp", 1)
    world = num_gpus // (tp * pp)
    dp = max(world // cp, 1)
    batch = _sequences(row, dp)
    micro, accumulation = _passes(row, framework, batch, dp, pp)
    virtual = _chunks(row, framework, model.num_layers, pp, accumulation) if pp > 1 else 1
    if virtual > 1:
        accumulation = -(-accumulation // pp) * pp
    sharding = row.text("sharding", "ddp")
    if "megatron" in sharding and not zero_stage(sharding):
        sharding = framework.sharding
    precision = precision_in(row.text("precision", "bf16"))
    engine = framework.engine_in(str(row.cells.get("precision", "")))
    ep = row.whole("ep", 1) if row.has("ep") else 1
    recompute = _recompute(row, framework, model.num_layers, pp, virtual)
    plan = Plan(
        strategy=sharding,
        num_gpus=num_gpus,
        seq_len=row.whole("seq_len"),
        micro_batch=micro,
        grad_accum=accumulation,
        tp=tp,
        cp=cp,
        ep=ep,
        **_exchange(row, framework, tp, ep, world),
        **_replayed(
            row,
            replays=ep > 1 and framework.replays_mixtures and _is_mxfp8(row, cluster),
            hides=ep > 1 and accumulation > 1 and (pp == 1 or virtual > 1) and recompute["recompute"] != "full",
        ),
        pp=pp,
        virtual_pp=virtual,
        schedule=_schedule(row, pp, virtual),
        sequence_parallel=tp > 1 and row.flag("sequence_parallel", framework.overlap_tensor),
        overlap_tensor=tp > 1 and _overlaps_tensor(row, framework),
        overlap_update=framework.overlap_update,
        sliced_update=framework.sliced_update,
        **shards(row, sharding, world, pp, cluster.gpus_per_node // tp),
        **recompute,
        precision=precision,
        gradient_bits=_gradient_bits(framework, engine, sharding),
        attention=_attention(row, framework, cluster),
        fused_kernels=framework.fused_kernels or _says(row, FUSED),
        compiled=_is_compiled(row, framework, precision),
        prefetch=int(framework.overlap or zero_stage(sharding) == 3),
        bucket_bytes=framework.bucket_bytes,
        state_bytes=0 if OFFLOADED.search(row.text("framework") + " " + row.text("sharding")) else 12,
        engine=engine,
    )
    return plan, batch / (dp * micro * accumulation)


def _gradient_bits(framework: Framework, engine: Engine, sharding: str) -> int:
    """What gradients are reduced in: fp32 accumulators that an engine keeps beside them, else as the software does."""
    if ENGINES[engine].separate_gradients:
        return 32
    return framework.gradient_bits or (16 if zero_stage(sharding) == 3 else 32)


def _overlaps_tensor(row: Row, framework: Framework) -> bool:
    """Whether tensor-parallel communication runs beside its products: by a column of its own, or as it is told.

    Under torchtitan in 8 bits it hides little: of its published pairs of runs with and without, one is 4.5 and one
    5.7 % faster (torchtitan-0010 and -0011, -0022 and -0023), where hiding it would gain twice as much.
    """
    if row.has("overlap_tensor"):
        return row.flag("overlap_tensor", True)
    said = _says(row, TENSOR_OVERLAP)
    hidden = not framework.engine.startswith("torchtitan") or precision_in(row.text("precision", "bf16")) != "fp8"
    return framework.overlap_tensor or (said and hidden)


def _is_compiled(row: Row, framework: Framework, precision: Precision) -> bool:
    """Whether a compiler fuses pointwise work: the software's own, or torch.compile where the table speaks of it."""
    unsaid = not row.has("torch_compile") and (framework.compiles(precision) or _says(row, COMPILED))
    return framework.jit_fused or unsaid or row.flag("torch_compile", False)


def _says(row: Row, words: re.Pattern[str]) -> bool:
    return any(row.has(name) and words.search(row.text(name)) for name in ("framework", "notes"))


def _sequences(row: Row, dp: int) -> float:
    """Sequences of a step, or what micro-batch and passes make of them; a rate alone hardly depends on the passes."""
    if row.has("global_batch_seqs") or not (stated_rate(row) or (row.has("micro_batch") and row.has("grad_accum"))):
        return row.positive("global_batch_seqs")
    passes = row.whole("grad_accum", max(ASSUMED_PASSES, 4 * row.whole("pp", 1)))
    return row.number("global_batch_seqs", row.whole("micro_batch", 1) * passes * dp)


def _passes(row: Row, framework: Framework, batch: float, dp: int, pp: int) -> tuple[int, int]:
    """Sequences per pass and passes per step."""
    passes = row.whole("grad_accum") if row.has("grad_accum") else 0
    # A pipeline is filled with the smallest micro-batches there are; alone, a GPU is given larger ones.
    largest = 1 if pp > 1 else 8
    usual = int(batch // (dp * passes)) if passes else min(int(batch // dp), largest)
    micro = row.whole("micro_batch", max(usual, 1))
    needed = batch / (dp * micro)
    accumulation = max(round(needed), 1)
    if passes and passes not in (accumulation, math.ceil(needed)):
        row.doubt(f"grad_accum {accumulation}: {passes} passes of {micro} on {dp} ranks are not {batch:g} sequences")
    if pp > 1 and accumulation == 1 and micro > 1:
        # No pipeline runs a single micro-batch: the table states the batch that is cut into them.
        passes = pp if framework.passes_by_stages and micro % pp == 0 else micro
        row.assumed.append(f"a local batch of {micro} passes through the pipeline in {passes} micro-batches")
        micro, accumulation = micro // passes, passes
    return micro, accumulation


def _chunks(row: Row, framework: Framework, num_layers: int, pp: int, passes: int) -> int:
    """Model chunks of a stage, as stated or as a pipeline must have had that would else idle for too long."""
    usual = 2 if "interleav" in row.text("schedule") else 1
    plain = framework.one_stage_per_rank or row.has("schedule") or row.has("vpp")
    if not plain and pp - 1 > LONGEST_IDLE * passes:
        usual = -(-num_layers // (pp * USUAL_LAYERS_PER_CHUNK))
    virtual = row.whole("vpp", usual)
    counts_ends = ENGINES[framework.engine_in(row.text("precision", ""))].counts_ends
    if num_dealt(num_layers, pp, counts_ends) < pp * virtual <= num_layers + 2:
        virtual = num_layers // pp
        row.assumed.append(f"vpp {virtual}: embedding and head stand in chunks of their own")
    return virtual


def _exchange(row: Row, framework: Framework, tp: int, ep: int, ranks: int) -> dict[str, Any]:
    """How tokens get to their experts, and whether tensor-parallel ranks split these; ``ranks``: the data-parallel."""
    if ep == 1:
        return {}
    said = row.text("dispatcher", framework.dispatcher)
    dispatcher = row.known("dispatcher", dispatcher_in(said), framework.dispatcher)
    split = 1 if framework.whole_experts or ranks % ep else tp
    whole = tp > 1 and row.whole("expert_tp", split) == 1
    return {"dispatcher": dispatcher, "whole_experts": whole}


def _is_mxfp8(row: Row, cluster: Cluster) -> bool:
    """Whether products take blocks of 8 bits, as Blackwell can, and as a table means there unless it says otherwise."""
    if precision_in(row.text("precision", "bf16")) != "fp8" or cluster.gpu.architecture != "blackwell":
        return False
    return not any(row.has(name) and OTHER_SCALING.search(row.text(name)) for name in ("precision", "notes"))


def _replayed(row: Row, replays: bool, hides: bool) -> dict[str, Any]:
    """What CUDA graphs hold, and whether exchanges with experts run beside another micro-batch.

    ``replays``: the software does both unless it is told not to. ``hides``: the plan lets exchanges be hidden.
    """
    fields: dict[str, Any] = {}
    if replays or row.has("cuda_graphs"):
        said = row.text("cuda_graphs", "full" if replays else "none")
        fields["cuda_graphs"] = row.known("cuda_graphs", cuda_graphs_in(said), "none")
    if replays or row.has("overlap_expert"):
        hidden = row.flag("overlap_expert", replays)
        fields["overlap_expert"] = hidden and hides
        if hidden and not hides and row.has("overlap_expert"):
            row.doubt("overlap_expert 0: nothing runs beside the exchange in that layout")
    return fields


def _recompute(row: Row, framework: Framework, num_layers: int, pp: int, virtual: int) -> dict[str, Any]:
    """What is computed again, and of how many layers of a chunk where that is not all; a part of one counts as one."""
    text = row.text("recompute", framework.recompute)
    layers = layers_in(text, num_layers, pp, virtual)
    if layers is None:
        return {"recompute": recompute_in(text)}
    if layers == 0:
        return {"recompute": "none"}
    again = math.ceil(layers)
    if again != layers:
        row.doubt(f"recompute_layers {again}: '{text}' are {float(layers):.3g} of a model chunk's layers")
    every = again >= num_layers / (pp * virtual)
    return {"recompute": "full", "recompute_layers": 0 if every else again}


def _schedule(row: Row, pp: int, virtual: int) -> Any:
    return row.known("schedule", schedule_in(row.text("schedule") if pp > 1 else "", virtual), "1f1b")


def _attention(row: Row, framework: Framework, cluster: Cluster) -> Any:
    usual = usual_attention(cluster)
    if usual == "cudnn":
        usual = "flash2"  # frameworks that do not say use the flash-attention package
    named = attention_in(row.text("attention", framework.attention or usual), framework.attention or "flash2")
    return row.known("attention", named, "flash2")
