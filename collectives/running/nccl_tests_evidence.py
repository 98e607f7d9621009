"""Whether a log's own columns bear out the collective that its reader was told it is of: redop, and busbw over algbw.

NVIDIA/nccl-tests, src/*.cu: ``TimeTest`` (what is printed as redop) and ``GetBw``, in every version since 2.0.
"""

from decimal import Decimal

from flopcast.errors import InputError

_REDUCING = ("all_reduce", "reduce_scatter", "reduce", "torus_all_reduce")
_REDUCTIONS = ("sum", "prod", "max", "min", "avg", "mulsum")
# These count the whole tensor and send n - 1 parts of it. Before June 2020 all_gather_perf and reduce_scatter_perf
# counted n - 1 parts in both columns.
_OF_PARTS = ("all_gather", "reduce_scatter", "all_to_all", "gather", "scatter", "quantised_all_gather")
_MEND = "name the collective that was run, or split a file of several"


def check_reduction(collective: str, reduction: str, where: str) -> None:
    """Raise InputError where ``reduction``, a row's redop, is none that ``collective`` prints; "" is an empty cell."""
    # sendrecv_perf prints the reduction it was given, though it reduces nothing.
    if collective == "sendrecv":
        return
    if reduction in (("", "none") if collective in _REDUCING else _REDUCTIONS):
        said = f"is '{reduction}'" if reduction else "is empty"
        raise InputError(f"{where}: redop {said}, which it never is of {collective}; {_MEND}")


def check_bandwidths(collective: str, num_ranks: int, algbw: str, busbw: str, where: str) -> None:
    """Raise InputError where busbw over algbw, as they are printed, is not that of ``collective``.

    ``num_ranks`` that the log lists, 1 where it lists none; there may have been more, for people shorten lists.
    """
    low = high = 1.0
    if collective in ("all_reduce", "torus_all_reduce"):
        low, high = 2 * (num_ranks - 1) / num_ranks, 2.0
    elif collective in _OF_PARTS:
        low = (num_ranks - 1) / num_ranks
    (alg_least, alg_most), (bus_least, bus_most) = _range(algbw), _range(busbw)
    if bus_most < low * alg_least or bus_least > high * alg_most:
        expected = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
        raise InputError(
            f"{where}: busbw {busbw} over algbw {algbw} is not the {expected} of {collective} on {num_ranks} ranks or "
            f"more; {_MEND}"
        )


def _range(text: str) -> tuple[float, float]:
    """What a printed number can stand for: one unit of its last digit up or down, and at least 0.1 %."""
    step = max(float(f"1e{Decimal(text).as_tuple().exponent}"), 1e-3 * abs(float(text)))
    return float(text) - step, float(text) + step
