"""A region of a space of plans: a product of four axes, with a mask that tells which of its plans are legal."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator.plan import FIELDS, Plans

AXES = LAYOUT, SHARDING, SCHEDULE, WORK = range(4)


@dataclass(frozen=True)
class Region:
    """A product of plans, and which of them are legal: a condition's name and where it holds, in the order checked."""

    plans: Plans
    conditions: Mapping[str, NDArray[np.bool_]]

    @cached_property
    def legal(self) -> NDArray[np.bool_]:
        """Where every condition holds, of the plans' shape."""
        small_first = sorted(self.conditions.values(), key=np.size)
        legal = np.ones((1,) * len(AXES), dtype=bool)
        for condition in small_first:
            legal = legal & condition
        return np.broadcast_to(legal, self.plans.shape)

    @property
    def size(self) -> int:
        """Plans, the illegal ones among them."""
        return math.prod(self.plans.shape)

    def parts(self, limit: int) -> Iterator["Region"]:
        """The region in pieces of at most ``limit`` plans, layouts apart first, less what is nowhere legal in it."""
        shape = self.plans.shape
        axis = LAYOUT if shape[LAYOUT] > 1 else int(np.argmax(shape))
        if self.size <= limit or shape[axis] == 1:
            if self.legal.any():
                yield self._trimmed()
            return
        pieces = min(-(-self.size // limit), shape[axis])
        bounds = [shape[axis] * i // pieces for i in range(pieces + 1)]
        for start, end in pairwise(bounds):
            yield from self._taken(axis, np.arange(start, end)).parts(limit)

    def _trimmed(self) -> "Region":
        """Without the places of an axis at which no plan is legal."""
        region = self
        for axis in AXES:
            others = tuple(other for other in AXES if other != axis)
            anywhere = region.legal.any(axis=others)
            if not anywhere.all():
                region = region._taken(axis, np.flatnonzero(anywhere))
        return region

    def _taken(self, axis: int, places: NDArray[np.int64]) -> "Region":
        def taken(column: Any) -> Any:
            return column.take(places, axis) if column.shape[axis] > 1 else column

        plans = Plans(**{name: taken(getattr(self.plans, name)) for name in FIELDS})
        return Region(plans, {name: taken(where) for name, where in self.conditions.items()})
