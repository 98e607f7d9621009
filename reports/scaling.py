"""The same training on fewer and on more GPUs: every strategy at its best at each count, at the same global batch."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import pandas as pd

from flopcast.errors import InputError
from flopcast.reports.explain import recommended
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.compare import Comparison, compare, whole_sequences
from flopcast.simulator.forecast import Row
from flopcast.simulator.goodput import run_cost
from flopcast.simulator.model import Model
from flopcast.simulator.request import Request, checked_seq_len
from flopcast.simulator.space import divisors

COLUMNS = (
    *("num_gpus", "strategy", "fits", "tight", "step_s", "low_s", "high_s", "tokens_per_step"),
    *("tokens_per_s_per_gpu", "mfu", "days", "gpu_hours", "available", "recommended"),
)
MOST_TIMES_ASKED = 10


def gpu_counts(num_gpus: int, cluster: Cluster) -> list[int]:
    """From one node, or what was asked where it is less, in powers of two to ten times what was asked."""
    node = cluster.gpus_per_node
    if cluster.nics_per_node == 0:
        return sorted({num_gpus, *(2**k for k in range(node.bit_length()) if 2**k <= node)})
    nodes = [2**k for k in range(math.ceil(MOST_TIMES_ASKED * num_gpus / node).bit_length())]
    least = min(num_gpus, node)
    counts = {num_gpus, *(times * num_gpus for times in (2, 5, MOST_TIMES_ASKED))}
    # Beyond a node whole nodes; within one nobody asks for five GPUs.
    whole = {math.ceil(count / node) * node for count in counts if count > node} | {num_gpus}
    whole |= {num_gpus * 2**k for k in range(node.bit_length()) if num_gpus * 2**k <= node}
    # A power of two beside one of the asked multiples says nothing new.
    powers = {node * n for n in nodes if not any(abs(math.log(node * n / count)) < math.log(1.4) for count in whole)}
    return sorted(count for count in whole | powers if least <= count <= max(whole))


def scaling(
    model: Model,
    cluster: Cluster,
    request: Request,
    comparison: Comparison,
    num_tokens: float,
    also: Callable[[Comparison], Row | None] = lambda compared: None,
    counts: Sequence[int] = (),
) -> tuple[pd.DataFrame, dict[int, str]]:
    """One row per GPU count and strategy, in the order of the counts; and why a count has none.

    ``also`` gives a further plan beside the strategies compared at a count, if it has one that fits; ``counts`` are
    tried beside those of :func:`gpu_counts`. The global batch is that of ``comparison`` in whole sequences per GPU,
    at least one; where that has fewer sequences than GPUs, as :func:`compare_fewer` has them.

    Columns: num_gpus, strategy, fits, tight (with less memory to spare than is asked for), step_s, low_s, high_s,
    tokens_per_step, tokens_per_s_per_gpu, mfu (a fraction), days and gpu_hours (failures and checkpoints included),
    available (whether the cluster has so many), recommended (of the rows of a count the one to run, where it fits).
    """
    machine = unlimited(cluster)
    global_batch = comparison.tokens_per_gpu * comparison.num_gpus
    seq_len = comparison.seq_len
    records, left_out = [], {}
    for count in sorted({*gpu_counts(comparison.num_gpus, cluster), *counts}):
        asked = replace(request, num_gpus=count)
        try:
            if comparison.tokens_per_gpu < seq_len:
                compared = compare_fewer(model, machine, asked, global_batch / seq_len)
            else:
                tokens = whole_sequences(global_batch / (count * seq_len)) * seq_len
                compared = compare(model, machine, replace(asked, tokens_per_gpu=tokens))
            tokens = compared.tokens_per_gpu
            more = also(compared)
            rows = [*compared.rows, *([] if more is None else [more])]
            chosen = recommended(rows)
            costs = [run_cost(model, cluster, row, num_tokens) for row in rows]
        except InputError as error:
            left_out[count] = str(error)
            continue
        available = cluster.num_nodes is None or count <= cluster.num_nodes * cluster.gpus_per_node
        records += [
            (
                *(count, row.strategy, row.fits, row.tight, row.step_s, row.low_s, row.high_s, tokens * count),
                *(row.tokens_per_s_per_gpu, row.mfu, cost.days, cost.gpu_hours, available),
                row is chosen and row.fits,
            )
            for row, cost in zip(rows, costs, strict=True)
        ]
    return pd.DataFrame.from_records(records, columns=list(COLUMNS)), left_out


def compare_fewer(model: Model, cluster: Cluster, request: Request, num_sequences: float) -> Comparison:
    """The strategies at so many sequences per step; of fewer than GPUs, whose ranks work on one together, at the next
    share of the GPUs that all strategies asked for, or some of the usual ones, can run. Raises InputError as
    :func:`compare`.
    """
    count, seq_len = request.num_gpus, checked_seq_len(model, request.seq_len)
    for sequences in (int(num_sequences), *divisors(count)):
        if num_sequences <= sequences < count and seq_len * sequences % count == 0:
            with suppress(InputError):
                return compare(model, cluster, replace(request, tokens_per_gpu=seq_len * sequences // count))
    tokens = whole_sequences(num_sequences / count) * seq_len
    return compare(model, cluster, replace(request, tokens_per_gpu=tokens))


def unlimited(cluster: Cluster) -> Cluster:
    """A cluster of such nodes, as many as are asked for where they have a network."""
    return replace(cluster, num_nodes=None) if cluster.nics_per_node else cluster
