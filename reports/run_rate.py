"""The seconds of a measured step: as a table states them, or what its rate or its efficiency makes of the step."""

import re

from flopcast.errors import InputError
from flopcast.reports.run_row import Row
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.conventions import Convention, model_flop_per_token
from flopcast.simulator.model import Model
from flopcast.simulator.plan import Plan, Plans
from flopcast.simulator.recompute import share_in_full

# What tables state in place of a step's seconds, the most direct first: rates of each GPU, or of the whole job.
RATES = (
    *("measured_tokens_per_s_per_gpu", "measured_samples_per_s_per_gpu"),
    *("measured_tokens_per_s", "measured_samples_per_s"),
)
# TFLOP/s of each GPU, or shares of its peak: of the model's FLOPs, or of the hardware's, recomputation included.
EFFICIENCIES = ("measured_tflops_per_gpu", "measured_mfu_pct", "measured_hfu_pct")
WITHOUT_SCORES = re.compile(r"not counted|no attention|without attention|6 ?\*? ?n(?!.*attention)")
OF_HARDWARE = re.compile(r"hardware|hfu|(with|includ\w*|count\w*) .{0,20}recomput")


def stated_rate(row: Row) -> str | None:
    """The column that stands for the step's seconds, where these are blank."""
    return None if row.has("measured_step_s") else next((n for n in (*RATES, *EFFICIENCIES) if row.has(n)), None)


def measured_step_s(row: Row, plan: Plan, model: Model, cluster: Cluster, share: float) -> float:
    """Seconds per step; ``share``: of the plan's whole micro-batches the step's sequences are.

    Raises InputError for a cell that is not positive, and where nothing says how long the step took.
    """
    name = stated_rate(row) or "measured_step_s"
    measured = row.positive(name)
    if name == "measured_step_s":
        return measured
    sequences = plan.global_batch_sequences * share
    if name in EFFICIENCIES:
        return sequences * plan.seq_len / plan.num_gpus / _tokens_per_s(row, name, measured, plan, model, cluster)
    each = plan.seq_len if "tokens" in name else 1
    return sequences * each / (measured * (plan.num_gpus if name.endswith("per_gpu") else 1))


def _tokens_per_s(row: Row, name: str, measured: float, plan: Plan, model: Model, cluster: Cluster) -> float:
    """Of each GPU, from its TFLOP/s or its share of the peak in 16 bits, unless the convention names the one in 8."""
    said = row.text("tflops_convention")
    flop = model_flop_per_token(model, plan.seq_len, _convention(row, said))
    total = flop.total
    if plan.recompute == "full" and (name == "measured_hfu_pct" or OF_HARDWARE.search(said)):
        total += flop.layers_forward * float(share_in_full(Plans.of([plan]), model.num_layers)[0])
    if name == "measured_tflops_per_gpu":
        return measured * 1e12 / total
    if measured > 100:
        raise InputError(f"{name} is {measured:g}; a share of the peak is at most 100 %")
    gpu = cluster.gpu
    return measured / 100 * (gpu.fp8_flop_per_s if "fp8" in said else gpu.tensor_flop_per_s) / total


def _convention(row: Row, said: str) -> Convention:
    """What is counted: most software counts full attention (Megatron-LM, llm-foundry, torchtitan, nanotron)."""
    if WITHOUT_SCORES.search(said):
        return "6n"
    if "causal" in said and "non-causal" not in said:
        return "causal"
    if not said:
        row.assumed.append("tflops_convention full")
    return "full"
