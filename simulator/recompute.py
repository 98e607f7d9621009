"""What a layer keeps for its backward, and what it computes again, under each plan's recompute and engine."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator.blocks.computation import Computation, Workload
from flopcast.simulator.engines import has_habit
from flopcast.simulator.operation import Array, Gemm, Operation, Pointwise, Section
from flopcast.simulator.plan import Plans


def selectively(piece: Computation, plans: Plans, odd: bool) -> tuple[Array, NDArray[np.bool_]]:
    """What selective recompute keeps of a piece of a layer, and whether it runs it again; ``odd`` products stay.

    It keeps results, or everything outside of attention: :class:`flopcast.simulator.engines.Habits`. Its time is that
    of the memory-bound work under either meaning, and of the products that do not stay.
    """
    nothing = plans.zeros
    dropped = isinstance(piece.forward, Gemm) & ~np.asarray(odd) & has_habit("alternate_products", plans.engine)
    outside = has_habit("recomputes_attention", plans.engine)
    kept = np.where(dropped, nothing, piece.result_bytes)
    whole = nothing if piece.in_attention else nothing + piece.saved_bytes
    return np.where(outside, whole, kept), piece.selective | dropped


def expand(
    name: str,
    section: Section,
    piece: Computation,
    count: Array,
    plans: Plans,
    kept_selectively: tuple[Array, NDArray[np.bool_]] | None = None,
) -> Iterator[Operation]:
    """Forward, backward and, where the plan recomputes it, the forward once more; outside of layers all is kept."""
    count = count * piece.present
    nothing = plans.zeros
    whole = nothing + piece.saved_bytes
    saved, again = whole, nothing
    if kept_selectively is not None:
        kept, redone = kept_selectively
        full, selective = plans.has(recompute="full"), plans.has(recompute="selective")
        saved = np.select([full, selective], [nothing, kept], whole)
        again = count * ((full & piece.recomputed) | (selective & redone))
    forward_kernels = nothing + piece.forward_kernels
    if piece.forward is not None:
        yield Operation(name, section, "forward", "every", count, forward_kernels, piece.forward, saved, whole - saved)
        if kept_selectively is not None:
            redone_work = (again, forward_kernels, piece.forward, nothing, nothing)
            yield Operation(name, section, "recompute", "every", *redone_work)
    for index, work in enumerate(piece.backward):
        kernels = nothing + piece.backward_kernels / len(piece.backward)
        suffix = f".{index + 1}" if len(piece.backward) > 1 else ""
        held = nothing + piece.backward_bytes / len(piece.backward)
        needed = piece.input_bytes if isinstance(work, Gemm) and work.of_weights else 0.0
        yield Operation(name + suffix, section, "backward", "every", count, kernels, work, nothing, held, needed)


def checkpoint(name: str, load: Workload, count: Array) -> Operation:
    """What recompute keeps of a layer besides: its input, unless all but attention is kept anyway."""
    nothing = load.plans.zeros
    all_but_attention = has_habit("recomputes_attention", load.plans.engine)
    selective = load.plans.has(recompute="selective") & ~all_but_attention
    saved = load.residual_bytes * (load.plans.has(recompute="full") | selective)
    # The input of the layer that is computed again is among what that computes.
    return Operation(name, "layer", "forward", "every", count, nothing, Pointwise(nothing), saved, -saved)
