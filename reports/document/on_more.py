"""Where nothing fits: what does on more GPUs."""

from dataclasses import replace

from flopcast.errors import InputError
from flopcast.reports.document.further import as_compared, named
from flopcast.reports.scaling import unlimited
from flopcast.simulator.compare import Comparison, Request, compare
from flopcast.simulator.forecast import Row, best_of
from flopcast.simulator.search import fastest_plan
from flopcast.simulator.space import Space

# How often the GPUs asked for are doubled before the report gives up.
MOST_DOUBLINGS = 10


def fits_on_more(comparison: Comparison, request: Request) -> Row | None:
    """The best plan on the fewest GPUs that hold one, the asked number doubled again and again; None if none do.

    A strategy, or failing that tensor parallelism over the node with a pipeline. The global batch is that of
    ``comparison``, or one sequence per GPU where it is too small for them; the cluster may have fewer GPUs.
    """
    cluster, asked, seq_len = unlimited(comparison.cluster), comparison.num_gpus, comparison.seq_len
    batch = comparison.tokens_per_gpu * asked
    for doublings in range(1, MOST_DOUBLINGS + 1):
        count = asked * 2**doublings
        count = count if count <= cluster.gpus_per_node else -(-count // cluster.gpus_per_node) * cluster.gpus_per_node
        tokens = max(round(batch / (count * seq_len)), 1) * seq_len
        again = replace(comparison, cluster=cluster, num_gpus=count, tokens_per_gpu=tokens)
        if row := _strategy(again, request) or _pipeline(again, request):
            return row
    return None


def _strategy(asked: Comparison, request: Request) -> Row | None:
    try:
        request = replace(request, num_gpus=asked.num_gpus, tokens_per_gpu=asked.tokens_per_gpu)
        best = best_of(compare(asked.model, asked.cluster, request).rows)
    except InputError:
        return None
    return best if best.fits else None


def _pipeline(asked: Comparison, request: Request) -> Row | None:
    try:
        asked.cluster.check_num_gpus(asked.num_gpus)
    except InputError:
        return None
    values = {"recompute": ["full"], **as_compared(request, asked.cluster)}
    values |= {"strategy": ["zero1"], "tp": [min(asked.num_gpus, asked.cluster.gpus_per_node)], "cp": [1]}
    num_sequences = asked.tokens_per_gpu * asked.num_gpus // asked.seq_len
    space = Space(asked.model, asked.cluster, asked.num_gpus, asked.seq_len, num_sequences, values, (*values,))
    row = fastest_plan(space, asked.convention)
    return None if row is None else named(row)
