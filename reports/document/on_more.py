"""Where nothing fits: what does on more GPUs."""

from dataclasses import replace

from flopcast.errors import InputError
from flopcast.reports.document.further import choice, further, named, optimizer_fits, worth_splitting
from flopcast.reports.explain import recommended
from flopcast.reports.scaling import unlimited
from flopcast.simulator.compare import Comparison, compare, whole_sequences
from flopcast.simulator.forecast import Row
from flopcast.simulator.request import Request

# How often the GPUs asked for are doubled before the report gives up.
MOST_DOUBLINGS = 10


def fits_on_more(comparison: Comparison, request: Request) -> Row | None:
    """The best plan on the fewest GPUs that hold one, the asked number doubled again and again; None if none do.

    A strategy, or a placement where no strategy fits, or none with memory to spare, or where it saves a tenth of the
    time. The global batch is that of ``comparison`` in whole sequences per GPU, at least one; the cluster may have
    fewer GPUs.
    """
    cluster, asked, seq_len = unlimited(comparison.cluster), comparison.num_gpus, comparison.seq_len
    batch = comparison.tokens_per_gpu * asked
    for doublings in range(1, MOST_DOUBLINGS + 1):
        count = asked * 2**doublings
        count = count if count <= cluster.gpus_per_node else -(-count // cluster.gpus_per_node) * cluster.gpus_per_node
        tokens = whole_sequences(batch / (count * seq_len)) * seq_len
        again = replace(comparison, cluster=cluster, num_gpus=count, tokens_per_gpu=tokens)
        if row := _best(again, request):
            return row
    return None


def _best(asked: Comparison, request: Request) -> Row | None:
    try:
        asked.cluster.check_num_gpus(asked.num_gpus)
    except InputError:
        return None
    strategy = _strategy(asked, request)
    found = further(asked, request) if optimizer_fits(asked) else None
    if found is None:
        return strategy
    placed = choice(found)
    if strategy is None or (strategy.tight and not placed.tight) or worth_splitting(found, strategy):
        return named(placed)
    return strategy


def _strategy(asked: Comparison, request: Request) -> Row | None:
    try:
        request = replace(request, num_gpus=asked.num_gpus, tokens_per_gpu=asked.tokens_per_gpu)
        best = recommended(compare(asked.model, asked.cluster, request).rows)
    except InputError:
        return None
    return best if best.fits else None
