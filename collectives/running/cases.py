"""The collectives of the benchmark: for each its buffers, the call in and out of place, and what must come out.

Sizes are nccl-tests': the whole tensor of all-reduce, broadcast, reduce and send-receive, the total over ranks of
all-gather, reduce-scatter and all-to-all. PyTorch has no out-of-place all-reduce, broadcast and reduce: there the input
is copied to the result first, and the copy is timed with the call, for that is what it costs a PyTorch user.

Values are small whole numbers whose sums every type holds exactly in any order, so an element is right or wrong.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from flopcast.collectives.running.payload import Layout
from flopcast.collectives.running.pytorch import all_gather_single, reduce_scatter_single
from flopcast.collectives.running.quantised_all_gather import quantised_all_gather
from flopcast.collectives.running.torus_all_reduce import torus_all_reduce

ROOT = 0


@dataclass(frozen=True)
class Context:
    """Which of ``ranks`` runs the case, the grid of the torus, and of what type and where the data are."""

    rank: int
    ranks: int
    mesh: DeviceMesh
    device: torch.device
    dtype: torch.dtype


class Case(ABC):
    """One collective at one size, out of place and, where PyTorch has such a call, in place."""

    reduction = "none"
    root = -1
    has_in_place = True
    parts = False  # whether the size is a total over ranks

    def __init__(self, context: Context, num_bytes: int) -> None:
        self.context = context
        elements = num_bytes // context.dtype.itemsize
        # As in nccl-tests, "count" is what one rank contributes where the size is a total.
        self.count = elements // context.ranks if self.parts else elements
        self.num_bytes = self.count * context.dtype.itemsize * (context.ranks if self.parts else 1)
        if self.count:
            self._allocate()

    @staticmethod
    def bus_factor(ranks: int) -> float:
        """Bus bandwidth over algorithm bandwidth (nccl-tests doc/PERFORMANCE.md)."""
        return 1.0

    def fill(self, in_place: bool) -> None:
        """Write this rank's input, and wrong values where the result will be."""
        self._fill(in_place)

    def run(self, in_place: bool) -> None:
        """The call that is timed."""
        self._run(in_place)

    @abstractmethod
    def _allocate(self) -> None:
        """Buffers ``source`` and ``result``; in place both lie in ``result``."""

    @abstractmethod
    def _fill(self, in_place: bool) -> None: ...

    @abstractmethod
    def _run(self, in_place: bool) -> None: ...

    @abstractmethod
    def _outcome(self, in_place: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """What this rank holds after the call, and what it must hold."""

    def num_wrong(self, in_place: bool) -> int:
        """Elements of this rank that are wrong after a fresh call."""
        self._fill(in_place)
        self._run(in_place)
        found, expected = self._outcome(in_place)
        return int((found != expected).sum())

    def _empty(self, numel: int) -> torch.Tensor:
        return torch.empty(numel, dtype=self.context.dtype, device=self.context.device)

    def _values(self, rank: int, count: int, start: int = 0) -> torch.Tensor:
        """What is copied: tells ranks and places apart."""
        index = torch.arange(start, start + count, device=self.context.device)
        return ((index + 31 * rank) % 113).to(self.context.dtype)

    def _addends(self, rank: int, count: int, start: int = 0) -> torch.Tensor:
        """What is summed: -1, 0 or 1, whose sum over three neighbouring ranks is zero."""
        index = torch.arange(start, start + count, device=self.context.device)
        return ((index + rank) % 3 - 1).to(self.context.dtype)

    def _total(self, count: int, start: int = 0) -> torch.Tensor:
        """The sum of ``addends`` over all ranks: what the last one or two of them leave."""
        ranks = self.context.ranks
        total = torch.zeros(count, dtype=self.context.dtype, device=self.context.device)
        for rank in range(ranks - ranks % 3, ranks):
            total += self._addends(rank, count, start)
        return total


class AllReduce(Case):
    """Every rank's tensor becomes the sum."""

    reduction = "sum"

    @staticmethod
    def bus_factor(ranks: int) -> float:
        """2 (n-1)/n."""
        return 2 * (ranks - 1) / ranks

    def _allocate(self) -> None:
        self.source, self.result = self._empty(self.count), self._empty(self.count)

    def _fill(self, in_place: bool) -> None:
        self.result.fill_(9)
        (self.result if in_place else self.source).copy_(self._addends(self.context.rank, self.count))

    def _run(self, in_place: bool) -> None:
        if not in_place:
            self.result.copy_(self.source)
        self._reduce()

    def _reduce(self) -> None:
        dist.all_reduce(self.result)

    def _outcome(self, in_place: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return self.result, self._total(self.count)


class TorusAllReduce(AllReduce):
    """Our own, over rows and columns of a grid."""

    def _reduce(self) -> None:
        torus_all_reduce(self.result, self.context.mesh, check=False)


class Reduce(AllReduce):
    """The root's tensor becomes the sum."""

    root = ROOT

    @staticmethod
    def bus_factor(ranks: int) -> float:
        """1."""
        return 1.0

    def _reduce(self) -> None:
        dist.reduce(self.result, dst=ROOT)

    def _outcome(self, in_place: bool) -> tuple[torch.Tensor, torch.Tensor]:
        if self.context.rank == ROOT:
            return super()._outcome(in_place)
        return self._empty(0), self._empty(0)


class Broadcast(AllReduce):
    """Every rank's tensor becomes the root's."""

    reduction = "none"
    root = ROOT

    @staticmethod
    def bus_factor(ranks: int) -> float:
        """1."""
        return 1.0

    def _fill(self, in_place: bool) -> None:
        self.result.fill_(9)
        (self.result if in_place else self.source).copy_(self._values(self.context.rank, self.count))

    def _run(self, in_place: bool) -> None:
        if not in_place and self.context.rank == ROOT:
            self.result.copy_(self.source)
        dist.broadcast(self.result, src=ROOT)

    def _outcome(self, in_place: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return self.result, self._values(ROOT, self.count)


class AllGather(Case):
    """Every rank's part, in rank order, on every rank."""

    parts = True

    @staticmethod
    def bus_factor(ranks: int) -> float:
        """(n-1)/n."""
        return (ranks - 1) / ranks

    def _allocate(self) -> None:
        self.source, self.result = self._empty(self.count), self._empty(self.count * self.context.ranks)

    def _own(self, in_place: bool) -> torch.Tensor:
        return self.result[self.context.rank * self.count :][: self.count] if in_place else self.source

    def _fill(self, in_place: bool) -> None:
        self.result.fill_(9)
        self._own(in_place).copy_(self._values(self.context.rank, self.count))

    def _run(self, in_place: bool) -> None:
        all_gather_single(self.result, self._own(in_place))

    def _outcome(self, in_place: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return self.result, torch.cat([self._values(rank, self.count) for rank in range(self.context.ranks)])


class QuantisedAllGather(AllGather):
    """Our own, in 4 bits; size and bandwidth are of the values, not of what is on the wire."""

    def _run(self, in_place: bool) -> None:
        quantised_all_gather(self.result, self._own(in_place), check=False)

    def _outcome(self, in_place: bool) -> tuple[torch.Tensor, torch.Tensor]:
        found, exact = super()._outcome(in_place)
        if self.context.ranks == 1:
            return found, exact
        layout = Layout.whole(self.count, self.context.dtype)
        expected = torch.empty_like(exact)
        layout.dequantise(torch.stack([layout.quantise(part) for part in exact.view(-1, self.count)]), expected)
        return found, expected


class ReduceScatter(Case):
    """Every rank keeps its part of the sum."""

    reduction = "sum"
    parts = True

    @staticmethod
    def bus_factor(ranks: int) -> float:
        """(n-1)/n."""
        return (ranks - 1) / ranks

    def _allocate(self) -> None:
        self.source, self.result = self._empty(self.count * self.context.ranks), self._empty(self.count)

    def _own(self, in_place: bool) -> torch.Tensor:
        return self.source[self.context.rank * self.count :][: self.count] if in_place else self.result

    def _fill(self, in_place: bool) -> None:
        self.result.fill_(9)
        self.source.copy_(self._addends(self.context.rank, self.source.numel()))

    def _run(self, in_place: bool) -> None:
        reduce_scatter_single(self._own(in_place), self.source)

    def _outcome(self, in_place: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return self._own(in_place), self._total(self.count, self.context.rank * self.count)


class AllToAll(Case):
    """Every rank sends another part to every rank; PyTorch has it out of place only."""

    parts = True
    has_in_place = False

    @staticmethod
    def bus_factor(ranks: int) -> float:
        """(n-1)/n."""
        return (ranks - 1) / ranks

    def _allocate(self) -> None:
        total = self.count * self.context.ranks
        self.source, self.result = self._empty(total), self._empty(total)

    def _fill(self, in_place: bool) -> None:
        self.result.fill_(9)
        self.source.copy_(self._values(self.context.rank, self.source.numel()))

    def _run(self, in_place: bool) -> None:
        dist.all_to_all_single(self.result, self.source)

    def _outcome(self, in_place: bool) -> tuple[torch.Tensor, torch.Tensor]:
        start = self.context.rank * self.count
        parts = [self._values(rank, self.count, start) for rank in range(self.context.ranks)]
        return self.result, torch.cat(parts)


class SendReceive(Case):
    """Every rank sends to the next and receives from the one before; out of place only."""

    has_in_place = False

    def _allocate(self) -> None:
        self.source, self.result = self._empty(self.count), self._empty(self.count)

    def _fill(self, in_place: bool) -> None:
        self.result.fill_(9)
        self.source.copy_(self._values(self.context.rank, self.count))

    def _run(self, in_place: bool) -> None:
        rank, ranks = self.context.rank, self.context.ranks
        if ranks == 1:
            self.result.copy_(self.source)
            return
        sending = dist.P2POp(dist.isend, self.source, (rank + 1) % ranks)
        receiving = dist.P2POp(dist.irecv, self.result, (rank - 1) % ranks)
        for work in dist.batch_isend_irecv([sending, receiving]):
            work.wait()

    def _outcome(self, in_place: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return self.result, self._values((self.context.rank - 1) % self.context.ranks, self.count)


CASES: dict[str, type[Case]] = {
    "all_reduce": AllReduce,
    "all_gather": AllGather,
    "reduce_scatter": ReduceScatter,
    "all_to_all": AllToAll,
    "broadcast": Broadcast,
    "reduce": Reduce,
    "sendrecv": SendReceive,
    "quantised_all_gather": QuantisedAllGather,
    "torus_all_reduce": TorusAllReduce,
}
