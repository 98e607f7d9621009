"""Sums and maxima of arrays that broadcast against each other, done on as few axes as they can be."""

from collections.abc import Iterable
from functools import reduce

import numpy as np

from flopcast.simulator.operation import Array


class Sum:
    """A sum whose terms of one shape are added first, and the small shapes before the large ones.

    Terms of a list of plans are all of one shape and are added in their order.
    """

    def __init__(self, terms: Iterable[Array] = ()) -> None:
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


def largest(terms: Iterable[Array]) -> Array:
    """The largest of the terms, plan by plan."""
    return reduce(np.maximum, terms)
