"""Sums, maxima and pieces of arrays that broadcast against each other, done on as few axes as they can be."""

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator.operation import Array


class Sum:
    """A sum whose terms of one shape are added first, and the small shapes before the large ones.

    Terms of a list of plans are all of one shape and are added in their order.
    """

    def __init__(self, terms: Iterable[Array]) -> None:
        self._by_shape: dict[tuple[int, ...], Array] = {}
        for term in terms:
            self.add(term)

    def add(self, term: Array) -> None:
        """One more term."""
        before = self._by_shape.get(term.shape)
        self._by_shape[term.shape] = term if before is None else before + term

    @property
    def total(self) -> Array:
        """The sum of all terms; there is at least one."""
        return reduce(np.add, sorted(self._by_shape.values(), key=np.size))


def total(terms: Iterable[NDArray[Any]]) -> NDArray[Any]:
    """The sum of the terms in their order."""
    return np.asarray(sum(terms))


def largest(terms: Iterable[Array]) -> Array:
    """The largest of the terms, plan by plan."""
    return reduce(np.maximum, terms)


def only_axis(mask: NDArray[np.bool_]) -> int | None:
    """The one axis of several that a mask varies along, so that what it picks is a slice; None where there is none."""
    varied = [axis for axis, size in enumerate(mask.shape) if size > 1]
    return varied[0] if mask.ndim > 1 and len(varied) == 1 else None


def joined(parts: Sequence[tuple[NDArray[np.bool_], Array]]) -> Array:
    """One array of those that each hold where its mask does; along a mask's only axis they are slices or constant."""
    if len(parts) == 1:
        return parts[0][1]
    axes = {only_axis(mask) for mask, _ in parts}
    axis = axes.pop() if len(axes) == 1 else None
    if axis is None:
        return reduce(lambda found, part: np.where(part[0], part[1], found), parts[1:], parts[0][1])
    shape = list(np.broadcast_shapes(*((*part.shape[:axis], 1, *part.shape[axis + 1 :]) for _, part in parts)))
    shape[axis] = parts[0][0].size
    whole = np.empty(shape)
    for mask, part in parts:
        whole[(slice(None),) * axis + (np.flatnonzero(mask),)] = part
    return whole
