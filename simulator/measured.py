"""What a profile changes of the cost functions: each formula times what was measured over it.

A formula knows how time grows with a shape; a machine's own measurements say where it is off. The ratio of the two is
known at the shapes measured and is taken in between by distance, so a forecast at a measured shape is the measurement.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flopcast.simulator.operation import (
    Array,
    AttentionCore,
    Collective,
    Gemm,
    HostUpdate,
    Operation,
    Pointwise,
    SmallCopies,
)
from flopcast.simulator.plan import CHOICES

# Shepard's inverse-distance weights (Shepard 1968): distance in doublings to this power, so the nearest count most.
DISTANCE_POWER = 4
# Doublings within which two shapes count as the same.
SAME = 0.05
BLOCK = 1 << 16


@dataclass(frozen=True)
class Correction:
    """Measured over formula seconds at P points of d sizes: ``log2_sizes`` [P, d], ``log_ratios`` [P]."""

    log2_sizes: Array
    log_ratios: Array

    @classmethod
    def of(cls, sizes: list[tuple[float, ...]], ratios: list[float]) -> "Correction":
        """From sizes and ratios as they are; points of the same sizes become one, their geometric mean."""
        points = np.log2(np.array(sizes, dtype=np.float64))
        unique, where = np.unique(points, axis=0, return_inverse=True)
        logs = np.log(np.array(ratios, dtype=np.float64))
        means = np.bincount(where.ravel(), weights=logs) / np.bincount(where.ravel())
        return cls(unique, means)

    def __call__(self, *sizes: NDArray[Any]) -> Array:
        """The ratio at each case's sizes: the mean of the measured ones, weighted by nearness."""
        columns = np.broadcast_arrays(*(np.asarray(size, dtype=np.float64) for size in sizes))
        queries = np.log2(np.maximum(np.stack([column.reshape(-1) for column in columns], axis=1), 1.0))
        found = np.concatenate(
            [self._block(queries[start : start + BLOCK]) for start in range(0, max(len(queries), 1), BLOCK)]
        )
        return np.asarray(found.reshape(columns[0].shape))

    def _block(self, queries: Array) -> Array:
        squares = np.sum((queries[:, None, :] - self.log2_sizes[None, :, :]) ** 2, axis=2)
        weights = 1.0 / (squares + SAME**2) ** (DISTANCE_POWER / 2)
        return np.asarray(np.exp(weights @ self.log_ratios / weights.sum(axis=1)))


@dataclass(frozen=True)
class Measured:
    """The corrections of one machine.

    ``attention`` by kernel code and direction, ``pieces`` of memory-bound work by name and direction, ``memory`` of all
    other by bytes, ``collectives`` by name over (bytes, ranks, nodes), and ``collectives_alone`` the same without what
    the engine copies and casts around one, which on a CPU is in the former. ``compute_scale``: computation inside a
    training step over the same alone. ``dispatch_s``: what launching a listed kernel adds where the device is the host
    itself, 0 elsewhere. ``fabric_scales`` and ``constants`` replace fields of those names. ``straggler``: deviation
    of a rank's step time from the others', as a share. ``what``: what was measured.
    """

    gemm: Correction | None = None
    attention: Mapping[tuple[int, bool], Correction] = field(default_factory=dict)
    memory: Correction | None = None
    pieces: Mapping[tuple[str, bool], Correction] = field(default_factory=dict)
    collectives: Mapping[str, Correction] = field(default_factory=dict)
    collectives_alone: Mapping[str, Correction] = field(default_factory=dict)
    compute_scale: float = 1.0
    dispatch_s: float = 0.0
    fabric_scales: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, float] = field(default_factory=dict)
    straggler: float = 0.0
    what: tuple[str, ...] = ()

    def corrected(self, operation: Operation, seconds: Array) -> Array:
        """The formula's ``seconds`` of one occurrence of the operation, as this machine takes them."""
        work = operation.work
        if isinstance(work, Collective):
            return self._collective(work, seconds)
        if isinstance(work, Gemm):
            corrected = self._gemm(work, seconds)
        elif isinstance(work, AttentionCore):
            corrected = self._attention(work, seconds)
        elif isinstance(work, (SmallCopies, HostUpdate)):
            corrected = seconds
        else:
            corrected = self._pointwise(operation, work, seconds)
        dispatched = np.where(operation.replayed, 0.0, self.dispatch_s * operation.num_kernels)
        return np.asarray(corrected * self.compute_scale + dispatched)

    def _gemm(self, work: Gemm, seconds: Array) -> Array:
        """16-bit products as measured; 8-bit ones are not measured and keep the formula."""
        if self.gemm is None:
            return seconds
        return np.where(work.fp8, seconds, seconds * self.gemm(work.m, work.n, work.k))

    def _attention(self, work: AttentionCore, seconds: Array) -> Array:
        corrected = seconds
        for code in range(len(CHOICES["attention"])):
            correction = self.attention.get((code, work.backward))
            if correction is not None and np.any(work.kernel == code):
                ratio = correction(work.flop, work.length, work.head_dim)
                corrected = np.where(work.kernel == code, seconds * ratio, corrected)
        return corrected

    def _pointwise(self, operation: Operation, work: Pointwise, seconds: Array) -> Array:
        piece = operation.name.rpartition(".")[2].rstrip("0123456789")
        correction = self.pieces.get((piece, operation.phase == "backward"), self.memory)
        return seconds if correction is None else seconds * correction(work.bytes)

    def _collective(self, work: Collective, seconds: Array) -> Array:
        correction = self.collectives.get(work.collective)
        if correction is None:
            return seconds
        ratio = correction(work.tensor_bytes, np.asarray(work.group.size), work.group.num_nodes)
        return np.asarray(seconds * ratio)

    def waiting_share(self, num_ranks: NDArray[np.int64]) -> Array:
        """What waiting for the slowest of n ranks adds to a step, as a share: straggler x E[largest of n normals].

        Blom's approximation of that expectation, Phi^-1((n - 3/8) / (n + 1/4)) (Blom 1958, equation 6.10.4).
        """
        normal = NormalDist()
        values, where = np.unique(num_ranks, return_inverse=True)
        largest = np.array([normal.inv_cdf((n - 0.375) / (n + 0.25)) if n > 1 else 0.0 for n in values.tolist()])
        return np.asarray(self.straggler * largest[where].reshape(num_ranks.shape))
