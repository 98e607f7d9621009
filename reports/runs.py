"""A table of measured training runs: each row as a model, a cluster and a plan, or refused with the reason."""

import math
import re
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from flopcast.errors import InputError
from flopcast.reports.frameworks import Framework, framework_of, is_known
from flopcast.reports.run_fit import INFERRED, made_to_fit
from flopcast.reports.run_model import model_of
from flopcast.reports.run_rate import measured_step_s, stated_rate
from flopcast.reports.run_row import Row
from flopcast.reports.run_shards import OFFLOADED, shards, zero_stage
from flopcast.reports.run_words import (
    COMPILED,
    TENSOR_OVERLAP,
    attention_in,
    dispatcher_in,
    precision_in,
    recompute_in,
    schedule_in,
)
from flopcast.reports.table_file import read_table
from flopcast.simulator.catalogue import generic_cluster
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.compare import usual_attention
from flopcast.simulator.forecast import check
from flopcast.simulator.model import Model
from flopcast.simulator.plan import Plan, Plans, Precision

PUBLISHED_RUNS = Path(__file__).parent / "measurements" / "training_runs.csv"
# Passes of a step where a table states a rate and neither the passes nor the batch.
ASSUMED_PASSES = 8
# A server holds at most so many GPUs; more are a rack that NVLink joins.
LARGEST_NODE = 16
# Of its computing a pipeline idles for (p - 1) / m. No published run held here, of a framework that interleaves stages,
# lets them idle for longer than this; NeMo's and Megatron-Bridge's recipes then give a chunk so many layers.
LONGEST_IDLE = 0.4
USUAL_LAYERS_PER_CHUNK = 2
# The memory of the card that a chip's bare name is taken for; the smaller one computes as fast.
USUAL_MEMORY = {"a100": "80gb", "v100": "32gb"}
NEEDED = ("id", "source_key", "gpu", "n_gpus", "seq_len")


@dataclass
class Run:
    """One measured step. ``assumed`` says what the table leaves open and how it was filled.

    ``doubts``: those of them that stand against what a cell says, because it is not understood or contradicts others.
    ``share_of_step``: tokens of the published step over those of the plan's whole micro-batches (a last micro-batch
    may be smaller). ``skipped`` is the reason where the row cannot be expressed; then only its names are set.
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
    doubts: list[str] = field(default_factory=list)
    skipped: str = ""


def read_runs(path: Path) -> list[Run]:
    """Every row of a CSV with the columns of the published runs, in order; InputError for a file that is not one."""
    table = read_table(path, NEEDED, "reports/measurements/training_runs.md")
    return [express(cells) for cells in table.to_dict("records")]


@cache
def published_runs() -> tuple[Run, ...]:
    """Every row of the published table, read once: it takes seconds, and whoever asks again gets the same runs."""
    return tuple(read_runs(PUBLISHED_RUNS))


def express(cells: dict[Any, Any]) -> Run:
    """One row as a run, or skipped with the reason."""
    row = Row({str(name): value for name, value in cells.items()})
    run = Run(str(cells["id"]), str(cells["source_key"]), str(cells["gpu"]), row.text("framework"), math.nan)
    try:
        _fill(run, row)
    except InputError as error:
        run.skipped = str(error)
    run.assumed, run.doubts = row.assumed, row.doubts
    return run


def _fill(run: Run, row: Row) -> None:
    framework = _framework(run, row)
    model = model_of(row)
    cluster = _cluster(run, row)
    plan, share = _plan(row, framework, model, cluster)
    blank = set() if framework.spills else {name for name in INFERRED if not row.has(name)}
    plan, said = made_to_fit(model, cluster, plan, blank)
    row.assumed += said
    run.measured_step_s = measured_step_s(row, plan, model, cluster, share)
    run.measured_memory_bytes = row.number("measured_mem_GB") * 2**30 if row.has("measured_mem_GB") else None
    check(model, cluster, Plans.of([plan]), "causal")
    run.model, run.cluster, run.plan, run.share_of_step = model, cluster, plan, share


def _framework(run: Run, row: Row) -> Framework:
    framework = framework_of(run.framework, row.whole("tp", 1) if row.has("tp") else 1)
    if run.framework and not is_known(run.framework):
        row.doubt(f"framework {framework.engine}: '{row.cells['framework']}' is not known")
    return framework


def _cluster(run: Run, row: Row) -> Cluster:
    """Nodes of as many GPUs as the table says, or as NVLink joins where that is a rack (GB200 NVL72)."""
    num_gpus, gpu = row.whole("n_gpus"), _gpu(run, row)
    usual = generic_cluster(gpu).gpus_per_node
    stated = row.whole("gpus_per_node", min(usual, 8))
    joined = usual if usual > LARGEST_NODE else stated
    per_node = max(d for d in range(1, joined + 1) if num_gpus % d == 0) if num_gpus > joined else joined
    if per_node < joined == stated:
        row.doubt(f"gpus_per_node {per_node}: {num_gpus} GPUs do not fill nodes of {stated}")
    rate = row.number("node_gbit", 0.0) * per_node / stated if row.has("node_gbit") else 0.0
    cluster = generic_cluster(gpu, per_node, rate * 1e9 / 8 if rate > 0 else None)
    if num_gpus > per_node and not rate:
        row.assumed.append(f"node_gbit {cluster.node_bytes_per_s * 8e-9:.0f}")
    wires = row.text("interconnect")
    fabric = next((name for name in ("roce", "efa", "ethernet", "slingshot") if name in wires), cluster.fabric)
    return replace(cluster, fabric=fabric)


def _gpu(run: Run, row: Row) -> str:
    chip = re.fullmatch(r"(?:nvidia|tesla)?[-_ ]*(a100|v100)([-_ ]?(?:sxm\d?|pcie))?", run.gpu.strip().lower())
    if not chip:
        return run.gpu
    name = f"{chip[1]}-{USUAL_MEMORY[chip[1]]}{'-pcie' if (chip[2] or '').endswith('pcie') else ''}"
    row.assumed.append(f"gpu {name}")
    return name


def _plan(row: Row, framework: Framework, model: Model, cluster: Cluster) -> tuple[Plan, float]:
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
    ep = row.whole("ep", 1) if row.has("ep") else 1
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
        pp=pp,
        virtual_pp=virtual,
        schedule=_schedule(row, pp, virtual),
        sequence_parallel=tp > 1 and row.flag("sequence_parallel", framework.overlap_tensor),
        overlap_tensor=tp > 1 and _overlaps_tensor(row, framework),
        overlap_update=framework.overlap_update,
        sliced_update=framework.sliced_update,
        **shards(row, sharding, world, pp, cluster.gpus_per_node // tp),
        recompute=recompute_in(row.text("recompute", framework.recompute)),
        precision=precision,
        gradient_bits=framework.gradient_bits or (16 if zero_stage(sharding) == 3 else 32),
        attention=_attention(row, framework, cluster),
        fused_kernels=framework.fused_kernels,
        compiled=_is_compiled(row, framework, precision),
        prefetch=int(framework.overlap or zero_stage(sharding) == 3),
        bucket_bytes=framework.bucket_bytes,
        state_bytes=0 if OFFLOADED.search(row.text("framework") + " " + row.text("sharding")) else 12,
        engine=framework.engine_in(str(row.cells.get("precision", ""))),
    )
    return plan, batch / (dp * micro * accumulation)


def _overlaps_tensor(row: Row, framework: Framework) -> bool:
    """Whether tensor-parallel communication runs beside its products: by a column of its own, or as it is told.

    Under torchtitan in 8 bits it hides little: of its published pairs of runs with and without, one is 4.5 and one
    5.7 % faster (torchtitan-0010 and -0011, -0022 and -0023), where hiding it would gain twice as much.
    """
    if row.has("overlap_tensor"):
        return row.flag("overlap_tensor", True)
    said = _says(row, TENSOR_OVERLAP)
    hidden = framework.engine != "torchtitan" or precision_in(row.text("precision", "bf16")) != "fp8"
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
    if num_layers < pp * virtual <= num_layers + 2:
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


def _schedule(row: Row, pp: int, virtual: int) -> Any:
    return row.known("schedule", schedule_in(row.text("schedule") if pp > 1 else "", virtual), "1f1b")


def _attention(row: Row, framework: Framework, cluster: Cluster) -> Any:
    usual = usual_attention(cluster)
    if usual == "cudnn":
        usual = "flash2"  # frameworks that do not say use the flash-attention package
    named = attention_in(row.text("attention", framework.attention or usual), framework.attention or "flash2")
    return row.known("attention", named, "flash2")
