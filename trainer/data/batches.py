"""The micro-batches of a rank: its rows of every global batch, and the validation set."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flopcast.errors import InputError
from flopcast.trainer.data.order import Order, Sample
from flopcast.trainer.data.packing import IGNORED, Packed
from flopcast.trainer.data.preparation import load_tokenizer
from flopcast.trainer.data.tokens import TokenFile, open_tokens
from flopcast.trainer.settings import DataTable


@dataclass(frozen=True)
class MicroBatch:
    """``tokens``, ``targets`` and ``positions`` of [B, S], int64; ``samples`` names each row as source:index.

    ``weight``: its counted targets over the mean of all micro-batches of its step, on all ranks.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    samples: tuple[str, ...]
    weight: float = 1.0

    @property
    def num_counted(self) -> int:
        """Targets that count in the loss."""
        return int((self.targets != IGNORED).sum())


class Dataset:
    """The sources of a run: what is trained on, in its order, and what is kept out for validation."""

    def __init__(self, settings: DataTable, seq_len: int, seed: int) -> None:
        """Raises InputError for token files that are missing, damaged, too short or of another tokenizer."""
        tokenizer = load_tokenizer(settings)
        self.identity, self.vocab_size = tokenizer.identity, tokenizer.vocab_size
        self._settings, self._seq_len, self._seed = settings, seq_len, seed
        self._files: dict[str, TokenFile] = {}
        for source in settings.sources:
            self._files[source.name] = open_tokens(Path(settings.folder) / source.name, tokenizer, settings.verify)
        weights = {source.name: source.weight for source in settings.sources}
        total = sum(weights.values())
        self._split({n: _validation_share(settings.validation_sequences, w / total) for n, w in weights.items()})

    def _split(self, kept: dict[str, int]) -> None:
        """Keep that many sequences of each source for validation, from its end, and train on the others."""
        self._kept = kept
        self._training: list[Packed] = []
        self._validation: list[Packed] = []
        for name, file in self._files.items():
            whole = Packed(name, file, self._seq_len).num_sequences
            if kept[name] >= whole:
                raise InputError(
                    f"data.validation_sequences = {self._settings.validation_sequences} keeps {kept[name]} of the "
                    f"{whole} sequences of source '{name}' and leaves none to train on; set fewer"
                )
            self._training.append(Packed(name, file, self._seq_len, 0, whole - kept[name]))
            if kept[name]:
                self._validation.append(Packed(name, file, self._seq_len, whole - kept[name]))
        weights = [source.weight for source in self._settings.sources]
        sizes = [packed.num_sequences for packed in self._training]
        self.order = Order(list(self._files), weights, sizes, self._seed)

    def next_step(self, micro_batch: int, grad_accum: int, rank: int, ranks: int) -> list[MicroBatch]:
        """The micro-batches of this rank in the next optimizer step.

        Micro-batch m of rank r holds the samples from (m ``ranks`` + r) ``micro_batch`` on of the step's
        ``grad_accum`` x ``ranks`` x ``micro_batch``, so a step reads the same samples on any number of ranks. The
        micro-batches' weights make the mean of their losses the mean over the counted targets of the step.
        """
        samples = self.order.next(micro_batch * grad_accum * ranks)
        mean = sum(map(self._num_counted, samples)) / (grad_accum * ranks)
        starts = [(m * ranks + rank) * micro_batch for m in range(grad_accum)]
        return [self._micro_batch(samples[start : start + micro_batch], mean) for start in starts]

    def _num_counted(self, sample: Sample) -> int:
        return self._training[sample.source].num_counted(sample.index)

    def _micro_batch(self, samples: list[Sample], mean_counted: float) -> MicroBatch:
        found = _stack([(self._training[sample.source], sample.index) for sample in samples])
        return replace(found, weight=found.num_counted / mean_counted)

    def validation(self, micro_batch: int, rank: int, ranks: int) -> Iterator[MicroBatch]:
        """Validation micro-batches of this rank: every sequence on one rank, and as many micro-batches on each.

        Where sequences are too few for the last ones, rows follow of which no target counts and that have no name.
        """
        rows = [(packed, index) for packed in self._validation for index in range(packed.num_sequences)]
        for start in range(0, len(rows), micro_batch * ranks):
            first = start + rank * micro_batch
            own = rows[first : first + micro_batch]
            filled = _stack(own + rows[:1] * (micro_batch - len(own)))
            filled.targets[len(own) :] = IGNORED
            yield replace(filled, samples=filled.samples[: len(own)])

    @property
    def description(self) -> dict[str, Any]:
        """Which tokenizer and which tokens, as JSON holds it."""
        return {"tokenizer": self.identity, "tokens": {name: file.digest for name, file in self._files.items()}}

    def state(self) -> dict[str, Any]:
        """Where the order stands, of which tokens, and how they are split for validation, as JSON holds it."""
        split = {"total": self._settings.validation_sequences, "kept": self._kept}
        return {**self.order.state(), "tokens": self.description["tokens"], "validation": split}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state` was taken, with its split: other weights move no sequence into or out of training.

        Raises InputError where tokens, sources or seed are others.
        """
        for name, digest in state.get("tokens", {}).items():
            if name in self._files and self._files[name].digest != digest:
                raise InputError(
                    f"the tokens of source '{name}' in {self._settings.folder} are others than the checkpoint was made "
                    "with; go on with the same data, or name another output to start over"
                )
        split = state.get("validation", {})
        if split.get("total") == self._settings.validation_sequences and split["kept"].keys() == self._files.keys():
            self._split(split["kept"])
        self.order.restore(state)


def _validation_share(total: int, share: float) -> int:
    """Sequences that a source keeps out: its share, at least one where any are kept at all."""
    return max(round(total * share), 1) if total else 0


def _stack(rows: list[tuple[Packed, int]]) -> MicroBatch:
    sequences = [packed[index] for packed, index in rows]

    def tensor(field: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([getattr(sequence, field) for sequence in sequences]))

    samples = tuple(f"{packed.name}:{index}" for packed, index in rows)
    return MicroBatch(tensor("tokens"), tensor("targets"), tensor("positions"), samples)
