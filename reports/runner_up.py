"""Why a plan is behind the winner of a search: where it spends more, where less, in words with figures."""

import math

from flopcast.simulator.forecast import Row
from flopcast.simulator.recompute import recompute_in_words

# What the parts of a step are called here, several of them together where one choice moves them all.
STEP_PARTS = {
    "computation": ("gemm", "attention", "pointwise", "launch"),
    "tp and cp communication": ("tensor_communication",),
    "expert-parallel communication": ("expert_communication",),
    "pipeline sends": ("pipeline_communication",),
    "parameter gathers": ("gather_communication",),
    "gradient reductions": ("reduce_communication",),
    "pipeline bubble": ("bubble",),
    "optimizer": ("optimizer",),
}
MEMORY_PARTS = {
    "parameters": ("parameters",),
    "gradients": ("gradients",),
    "optimizer state": ("optimizer",),
    "activations": ("activations", "workspace"),
    "gathered layers": ("gathered", "quantised"),
    "logits": ("logits",),
}
# A difference below this share of the whole is not worth a word.
WORTH_NAMING = 0.004
MOST_NAMED = 3


def why_behind(row: Row, winner: Row, by_memory: bool) -> str:
    """The difference in all, what it is made of, largest first, and what the plan saves in return."""
    if by_memory:
        held, least, parts, unit, scale = row.memory, winner.memory, MEMORY_PARTS, "GB", 1e-9
        more, whole = row.memory_bytes - winner.memory_bytes, winner.memory_bytes
    else:
        held, least, parts, unit, scale = row.seconds, winner.seconds, STEP_PARTS, "s", 1.0
        more, whole = row.step_s - winner.step_s, winner.step_s
    differences = {name: sum(held[key] - least[key] for key in keys) for name, keys in parts.items()}
    named = {name: value for name, value in differences.items() if abs(value) >= WORTH_NAMING * whole}
    worse = sorted(((v, name) for name, v in named.items() if v > 0), reverse=True)[:MOST_NAMED]
    better = sorted((v, name) for name, v in named.items() if v < 0)[:MOST_NAMED]
    total = f"{_signed(more * scale)} {unit}"
    words = ", ".join(f"{_label(name, row, winner)} {_signed(value * scale)}" for value, name in worse)
    saved = ", ".join(f"{_label(name, winner, row)} {_signed(value * scale)}" for value, name in better)
    if not words and not saved:
        return f"{total}: alike in every part"
    if not words:
        return f"{total}: small losses in every part, against {saved}"
    return f"{total}: {words}" + (f", against {saved}" if saved else "")


def _label(name: str, more: Row, less: Row) -> str:
    """A part's name: computation that is more because it is done twice says so, communication says whose it is."""
    if name == "computation":
        order = ("none", "selective", "full")
        kinds = [(order.index(row.plan["recompute"]), row.plan["recompute_layers"] or math.inf) for row in (more, less)]
        return f"{name} (recompute {recompute_in_words(more.plan)})" if kinds[0] > kinds[1] else name
    if name == "tp and cp communication":
        return f"{' and '.join(degree for degree in ('tp', 'cp') if more.plan[degree] > 1)} communication"
    return name


def _signed(value: float) -> str:
    """With a sign, at the decimals a reader can use."""
    if 0.00005 <= abs(value) < 0.01:
        return f"{value:+.1g}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:+.{digits}f}"
