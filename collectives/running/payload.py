"""One packed payload for several tensors: matrices as NF4, one-dimensional parameters raw, each part on 16 bytes."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from flopcast.errors import InputError
from flopcast.kernels.nf4 import format as nf4
from flopcast.kernels.nf4.op import dequantise, quantise
from flopcast.kernels.nf4.reference import DTYPES


@dataclass(frozen=True)
class Segment:
    """``numel`` neighbouring elements of a rank's tensor that travel as NF4, or as they are."""

    numel: int
    raw: bool = False

    def num_bytes(self, dtype: torch.dtype) -> int:
        """What the segment takes in the payload, padding to 16 bytes included."""
        return int(nf4.aligned(self.numel * dtype.itemsize) if self.raw else nf4.payload_bytes(self.numel))


@dataclass(frozen=True)
class Layout:
    """How one rank's flat tensor of ``dtype`` is cut into segments, and where each lies in the payload."""

    segments: tuple[Segment, ...]
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype is {self.dtype}; the 4-bit all-gather takes float32, bfloat16 or float16")
        if not self.segments or any(segment.numel < 1 for segment in self.segments):
            raise InputError("a layout needs at least one segment, and every segment at least one element")

    @classmethod
    def whole(cls, numel: int, dtype: torch.dtype) -> "Layout":
        """A single quantised segment."""
        return cls((Segment(numel),), dtype)

    @cached_property
    def numel(self) -> int:
        """Elements of one rank's tensor."""
        return sum(segment.numel for segment in self.segments)

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of one rank's payload: a multiple of 16."""
        return sum(segment.num_bytes(self.dtype) for segment in self.segments)

    @cached_property
    def signature(self) -> int:
        """A number that differs, but for one case in four billion, between layouts."""
        return zlib.crc32(repr([(s.numel, s.raw) for s in self.segments]).encode())

    def _places(self) -> Iterator[tuple[Segment, int, slice]]:
        """Each segment with its first element and its bytes."""
        element = byte = 0
        for segment in self.segments:
            size = segment.num_bytes(self.dtype)
            yield segment, element, slice(byte, byte + size)
            element += segment.numel
            byte += size

    def quantise(self, values: torch.Tensor) -> torch.Tensor:
        """The payload, uint8 [num_bytes], of one rank's ``values`` [numel]."""
        payload = torch.empty(self.num_bytes, dtype=torch.uint8, device=values.device)
        flat = values.reshape(-1)
        for segment, element, where in self._places():
            part = flat[element : element + segment.numel]
            if segment.raw:
                raw = part.contiguous().view(torch.uint8)
                payload[where][: raw.numel()] = raw
                payload[where][raw.numel() :] = 0
            else:
                quantise(part, out=payload[where])
        return payload

    def dequantise(self, payloads: torch.Tensor, out: torch.Tensor, together: int = 1) -> None:
        """Write the values of ``payloads``, uint8 [n, num_bytes], to ``out``, flat [n * numel].

        ``out`` holds one rank's values after another's. With ``together`` = k it is made of n / k parts, each of
        which holds k ranks' first segments, then their second segments, and so on.
        """
        parts = len(payloads) // together
        whole = out.view(parts, together * self.numel)
        sources = payloads.view(parts, together, self.num_bytes)
        # One call writes many rows; the loop goes over the shorter of the two dimensions.
        loop = 0 if parts < together else 1
        for segment, element, where in self._places():
            begin = together * element
            target = whole[:, begin : begin + together * segment.numel].view(parts, together, segment.numel)
            source = sources[..., where]
            if segment.raw:
                target.copy_(source[..., : segment.numel * self.dtype.itemsize].view(self.dtype))
                continue
            for rows, values in zip(source.unbind(loop), target.unbind(loop), strict=True):
                dequantise(rows, segment.numel, self.dtype, out=values)
