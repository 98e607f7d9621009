"""From seconds per step to a training run: failures and checkpoints, days, GPU-hours, energy and money.

T_w = M e^(R/M) (e^((tau + d)/M) - 1) T/tau   expected wall time of T seconds of work
tau = sqrt(2 d M) (1 + sqrt(d/2M)/3 + d/18M) - d   the interval that makes it least, M where d >= 2M

M mean time between failures of the job, d writing a checkpoint, R restarting, all in seconds. Young, Communications of
the ACM 17 (1974), gives tau's first term; Daly, Future Generation Computer Systems 22 (2006), both formulas.
"""

import math
from dataclasses import dataclass

import numpy as np

from flopcast.errors import InputError
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.forecast import Row, check_specifications
from flopcast.simulator.model import Model
from flopcast.simulator.plan import Plan

# Llama 3 (arXiv:2407.21783, section 3.3.4): 419 unexpected interruptions in 54 days of 2,048 nodes of 8 H100.
ASSUMED_NODE_MTBF_HOURS = 54 * 24 * 2048 / 419
# Storage grows with the machine: 273 GB/s of checkpoints from 384 nodes of 8 A100 (Narayanan et al., arXiv:2104.04473,
# section 5.10), 2 TB/s sustained beside 24,000 H100 (Llama 3, section 3.3.1). A few nodes have a file server's rate.
ASSUMED_CHECKPOINT_BYTES_PER_S_PER_NODE = 0.7e9
LEAST_ASSUMED_CHECKPOINT_BYTES_PER_S = 10e9
# NVIDIA's datasheets: 6.5 kW for eight A100 of 400 W, 10.2 kW for eight H100 of 700 W, 14.3 kW for eight B200 of 1 kW.
ASSUMED_NODE_POWER_PER_GPU_POWER = 1.9
# To notice the failure, replace the node and start the job again, before the checkpoint is read.
ASSUMED_RESTART_S = 600.0
LEAST_GOODPUT = 0.01
MOST_TOKENS = 1e18


def young_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Seconds of work between checkpoints to first order: sqrt(2 d M)."""
    return math.sqrt(2 * checkpoint_s * mtbf_s)


def daly_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Seconds of work between checkpoints that lose least time to writing them and to repeating work."""
    if checkpoint_s >= 2 * mtbf_s:
        return mtbf_s
    share = checkpoint_s / (2 * mtbf_s)
    return young_interval_s(checkpoint_s, mtbf_s) * (1 + math.sqrt(share) / 3 + share / 9) - checkpoint_s


def expected_wall_s(work_s: float, interval_s: float, checkpoint_s: float, restart_s: float, mtbf_s: float) -> float:
    """Seconds that ``work_s`` of work take where failures come at random, one per ``mtbf_s`` on average."""
    try:
        segment = mtbf_s * math.exp(restart_s / mtbf_s) * math.expm1((interval_s + checkpoint_s) / mtbf_s)
    except OverflowError:
        return math.inf
    return segment * work_s / interval_s


@dataclass(frozen=True)
class RunCost:
    """A training run, failures and checkpoints included; ``assumed`` says which figures the cluster file leaves open.

    ``compute_s`` is training alone, ``wall_s`` all of it; ``energy_j`` at the nodes' full power, of part of a node its
    share; ``money`` in the currency of the cluster file's price, None where it has none. ``num_failures`` are those to
    expect.
    """

    compute_s: float
    wall_s: float
    gpu_hours: float
    energy_j: float
    money: float | None
    job_mtbf_s: float
    num_failures: float
    checkpoint_bytes: float
    checkpoint_s: float
    interval_s: float
    restart_s: float
    assumed: tuple[str, ...]

    @property
    def goodput(self) -> float:
        """Share of the wall time that trains."""
        return self.compute_s / self.wall_s

    @property
    def days(self) -> float:
        """Wall time in days."""
        return self.wall_s / 86400


def check_tokens(num_tokens: float) -> None:
    """Raise InputError for a token budget that is none."""
    if isinstance(num_tokens, bool) or not isinstance(num_tokens, int | float | np.number):
        raise InputError(f"num_tokens is {num_tokens!r}; it must be a number, e.g. 1.4e12")
    if not 0 < num_tokens <= MOST_TOKENS:
        raise InputError(f"--tokens is {num_tokens:g}; it must be positive and at most {MOST_TOKENS:g}, e.g. 1.4e12")


def run_cost(model: Model, cluster: Cluster, row: Row, num_tokens: float, step_s: float | None = None) -> RunCost:
    """What training on ``num_tokens`` costs under a forecast row, or at another ``step_s`` of the same plan.

    A checkpoint holds the optimizer's state: master copy and moments. Raises InputError for a token budget that is
    none, and where failures come so often that the run makes next to no progress.
    """
    check_specifications(model, cluster)
    if not isinstance(row, Row):
        raise InputError(f"row is a {type(row).__name__}; give a Row, e.g. comparison.best or forecast(...).row(0)")
    check_tokens(num_tokens)
    num_tokens = float(num_tokens)
    num_gpus = int(row.plan["num_gpus"])
    step_s = row.step_s if step_s is None else step_s
    if not isinstance(step_s, int | float | np.number) or not 0 < step_s < math.inf:
        raise InputError(f"step_s is {step_s!r}; it must be a positive number of seconds, or None for the row's own")
    batch = round(row.tokens_per_s_per_gpu * num_gpus * row.step_s)
    if num_tokens < batch:
        raise InputError(
            f"--tokens is {num_tokens:,.0f}: less than one step of {batch:,.0f}; raise it, or lower --tokens-per-gpu"
        )
    num_nodes = math.ceil(num_gpus / cluster.gpus_per_node)
    costs, assumed = cluster.costs, []
    mtbf_hours, bytes_per_s, node_power_w = costs.node_mtbf_hours, costs.checkpoint_bytes_per_s, costs.node_power_w
    if mtbf_hours is None:
        mtbf_hours = ASSUMED_NODE_MTBF_HOURS
        assumed.append(f"operation.node_mtbf_hours: {mtbf_hours:,.0f} is assumed (Llama 3's nodes of 8 H100)")
    if bytes_per_s is None:
        bytes_per_s = max(LEAST_ASSUMED_CHECKPOINT_BYTES_PER_S, ASSUMED_CHECKPOINT_BYTES_PER_S_PER_NODE * num_nodes)
        assumed.append(
            f"operation.checkpoint_bandwidth: {bytes_per_s / 1e9:,.0f} GB/s is assumed (a parallel file system "
            f"that takes {ASSUMED_CHECKPOINT_BYTES_PER_S_PER_NODE / 1e9:g} GB/s of each node)"
        )
    if node_power_w is None:
        node_power_w = ASSUMED_NODE_POWER_PER_GPU_POWER * cluster.gpu.power_w * cluster.gpus_per_node
        assumed.append(
            f"operation.node_power: {node_power_w / 1e3:.1f} kW is assumed ({ASSUMED_NODE_POWER_PER_GPU_POWER} times "
            "the GPUs' limits, as in NVIDIA's DGX nodes)"
        )
    assumed.append(f"a restart is assumed to take {ASSUMED_RESTART_S / 60:.0f} minutes before the checkpoint is read")

    compute_s = num_tokens / (row.tokens_per_s_per_gpu * num_gpus) * (step_s / row.step_s)
    mtbf_s = mtbf_hours * 3600 / num_nodes
    # States that lie on the host are written all the same.
    checkpoint_bytes = float(model.num_parameters * (row.plan["state_bytes"] or Plan.state_bytes))
    checkpoint_s = checkpoint_bytes / bytes_per_s
    interval_s = min(daly_interval_s(checkpoint_s, mtbf_s), compute_s)
    restart_s = ASSUMED_RESTART_S + checkpoint_s
    wall_s = expected_wall_s(compute_s, interval_s, checkpoint_s, restart_s, mtbf_s)
    if compute_s < LEAST_GOODPUT * wall_s:
        raise InputError(
            f"operation.node_mtbf_hours is {mtbf_hours:g}: a failure comes every {mtbf_s:,.0f} s, but a "
            f"checkpoint takes {checkpoint_s:,.0f} s and a restart {restart_s:,.0f} s, so the run makes no progress; "
            "mend the figure, or raise checkpoint_bandwidth"
        )
    gpu_hours = wall_s / 3600 * num_gpus
    return RunCost(
        compute_s=compute_s,
        wall_s=wall_s,
        gpu_hours=gpu_hours,
        energy_j=node_power_w * num_gpus / cluster.gpus_per_node * wall_s,
        money=None if costs.gpu_hour_price is None else costs.gpu_hour_price * gpu_hours,
        job_mtbf_s=mtbf_s,
        num_failures=wall_s / mtbf_s,
        checkpoint_bytes=checkpoint_bytes,
        checkpoint_s=checkpoint_s,
        interval_s=interval_s,
        restart_s=restart_s,
        assumed=tuple(assumed),
    )
