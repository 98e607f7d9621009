"""Sequences cut from the row of documents; positions begin at 0 in each sequence and again in each document."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flopcast.errors import InputError
from flopcast.trainer.data.tokens import TokenFile

IGNORED = -100  # the target that torch.nn.functional.cross_entropy leaves out


@dataclass(frozen=True)
class Sequence:
    """One sequence: ``tokens``, ``targets`` and ``positions``, each [S] of int64, positions below S.

    A document's end token is predicted; what follows it, the next document's first token, is not (:data:`IGNORED`).
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    positions: NDArray[np.int64]


class Packed:
    """The sequences of one token file: sequence i is tokens [i S, (i + 1) S), targets one further."""

    def __init__(self, name: str, file: TokenFile, seq_len: int, first: int = 0, last: int | None = None) -> None:
        """``first``, ``last``: the range of sequences that belongs to this set, by default all of them.

        Raises InputError where the file has not enough tokens for one sequence.
        """
        self.name, self.seq_len = name, seq_len
        self._file, self._first = file, first
        whole = max(len(file.tokens) - 1, 0) // seq_len
        self.num_sequences = (whole if last is None else min(last, whole)) - first
        if self.num_sequences < 1:
            raise InputError(
                f"source '{name}' has {len(file.tokens)} tokens, {max(whole - first, 0)} sequences of {seq_len}; "
                "give it more text or shorten plan.seq_len"
            )

    def num_counted(self, index: int) -> int:
        """Targets of a sequence that count, without reading it."""
        start = (self._first + index) * self.seq_len
        first, last = np.searchsorted(self._file.ends, [start, start + self.seq_len], side="right")
        return int(self.seq_len - (last - first))

    def __getitem__(self, index: int) -> Sequence:
        """Sequence ``index`` of 0..num_sequences - 1."""
        start = (self._first + index) * self.seq_len
        row = np.asarray(self._file.tokens[start : start + self.seq_len + 1], dtype=np.int64)
        first, last = np.searchsorted(self._file.ends, [start, start + self.seq_len], side="right")
        # Where a document begins inside the row, the token after the sequence's last included.
        beginnings = self._file.ends[first:last].astype(np.int64) - start
        targets = row[1:].copy()
        targets[beginnings[beginnings > 0] - 1] = IGNORED
        places = np.arange(self.seq_len)
        origins = np.concatenate(([0], beginnings))
        origin = origins[np.searchsorted(origins, places, side="right") - 1]
        return Sequence(row[:-1], targets, places - origin)
