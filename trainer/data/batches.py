"""The micro-batches of a rank: its rows of every global batch, and the validation set."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flopcast.trainer.data.order import Order, Sample
from flopcast.trainer.data.packing import Packed
from flopcast.trainer.data.preparation import load_tokenizer
from flopcast.trainer.data.tokens import TokenFile, open_tokens
from flopcast.trainer.settings import DataTable


@dataclass(frozen=True)
class MicroBatch:
    """``tokens``, ``targets`` and ``positions`` of [B, S], int64; ``samples`` names each row as source:index."""

    tokens: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    samples: tuple[str, ...]


class Dataset:
    """The sources of a run: what is trained on, in its order, and what is kept out for validation."""

    def __init__(self, settings: DataTable, seq_len: int, seed: int) -> None:
        """Raises InputError for token files that are missing, damaged, too short or of another tokenizer."""
        tokenizer = load_tokenizer(settings)
        self.identity, self.vocab_size = tokenizer.identity, tokenizer.vocab_size
        self._training: list[Packed] = []
        self._validation: list[Packed] = []
        weights = [source.weight for source in settings.sources]
        for source in settings.sources:
            file = open_tokens(Path(settings.folder) / source.name, tokenizer, settings.verify)
            kept = _validation_share(settings.validation_sequences, source.weight / sum(weights))
            self._split(source.name, file, seq_len, kept)
        names = [packed.name for packed in self._training]
        self.order = Order(names, weights, [packed.num_sequences for packed in self._training], seed)

    def _split(self, name: str, file: TokenFile, seq_len: int, kept: int) -> None:
        whole = Packed(name, file, seq_len).num_sequences
        self._training.append(Packed(name, file, seq_len, 0, whole - kept))
        if kept:
            self._validation.append(Packed(name, file, seq_len, whole - kept))

    def next_step(self, micro_batch: int, grad_accum: int, rank: int, ranks: int) -> list[MicroBatch]:
        """The micro-batches of this rank in the next optimizer step.

        Micro-batch m of rank r holds the samples from (m ``ranks`` + r) ``micro_batch`` on of the step's
        ``grad_accum`` x ``ranks`` x ``micro_batch``, so a step reads the same samples on any number of ranks.
        """
        samples = self.order.next(micro_batch * grad_accum * ranks)
        starts = [(m * ranks + rank) * micro_batch for m in range(grad_accum)]
        return [self._micro_batch(samples[start : start + micro_batch]) for start in starts]

    def _micro_batch(self, samples: list[Sample]) -> MicroBatch:
        return _stack([(self._training[sample.source], sample.index) for sample in samples])

    def validation(self, micro_batch: int, rank: int, ranks: int) -> Iterator[MicroBatch]:
        """Validation micro-batches of this rank; all ranks get as many, so the last few sequences may be left out."""
        rows = [(packed, index) for packed in self._validation for index in range(packed.num_sequences)]
        for start in range(0, len(rows) - micro_batch * ranks + 1, micro_batch * ranks):
            first = start + rank * micro_batch
            yield _stack(rows[first : first + micro_batch])

    def state(self) -> dict[str, Any]:
        """Where the order stands and which tokenizer the sequences are made with, as JSON holds it."""
        return {"tokenizer": self.identity, **self.order.state()}


def _validation_share(total: int, share: float) -> int:
    """Sequences that a source keeps out: its share, at least one where any are kept at all."""
    return max(round(total * share), 1) if total else 0


def _stack(rows: list[tuple[Packed, int]]) -> MicroBatch:
    sequences = [packed[index] for packed, index in rows]

    def tensor(field: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([getattr(sequence, field) for sequence in sequences]))

    samples = tuple(f"{packed.name}:{index}" for packed, index in rows)
    return MicroBatch(tensor("tokens"), tensor("targets"), tensor("positions"), samples)
