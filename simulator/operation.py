"""The unit of the forecast: one operation of a training step, with every number an array over plans."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flopcast.collectives.group import Group

Array: TypeAlias = NDArray[np.float64]
Phase = Literal["forward", "recompute", "backward", "step"]
# The part of the model an operation belongs to; "state" is what is done once per step with gradients and parameters.
Section = Literal["layer", "embedding", "head", "state"]
# The micro-batches of a step in which an operation happens ("step": after the last).
When = Literal["every", "first", "later", "last", "step"]
# Why a collective happens, hence what may hide it. A product's input is gathered again ("regather") for its weights'
# gradient, behind the product that gives its own.
Purpose = Literal["tensor", "regather", "context", "expert", "pipeline", "gather", "reduce", "norm"]


@dataclass(frozen=True)
class Gemm:
    """A matrix product of (m, k) by (k, n): 2 m n k FLOPs; ``number`` of them in one kernel (grouped, batched).

    ``of_weights``: its result is the gradient of a weight. ``shares_input``: another product has the same first
    operand.
    """

    m: Array
    n: Array
    k: Array
    fp8: NDArray[np.bool_]
    number: Array | float = 1.0
    of_weights: bool = False
    shares_input: bool = False

    @property
    def flop(self) -> Array:
        """FLOPs, two per multiply-add."""
        return 2.0 * self.m * self.n * self.k * self.number

    @property
    def quantised_bytes(self) -> Array:
        """What is moved to have the first operand in 8 bits: read in 16, written as it is and transposed.

        The transposed one is what the gradient of the weights multiplies, which hence has nothing to convert; weights
        change, and are converted, once a step. Transformer Engine's delayed and current scaling (common/cast,
        quantize_transpose) and its MXFP8, whose blocks run along either dimension, write both; so does torchao.
        """
        return self.fp8 * (0.0 if self.of_weights or self.shares_input else 4.0) * self.m * self.k * self.number

    @property
    def result_gradient_bytes(self) -> Array:
        """Of the product ``of_weights``, (inputs, tokens) by (tokens, outputs): the gradient of its layer's result."""
        return 2.0 * self.k * self.n * self.number

    @property
    def moved_bytes(self) -> Array:
        """Operands and results in 16 bits, each once."""
        return 2.0 * (self.m * self.k + self.k * self.n + self.m * self.n) * self.number


@dataclass(frozen=True)
class AttentionCore:
    """softmax(Q K^T) V by a fused kernel: ``flop`` done on the hardware, ``kernel`` a code into CHOICES["attention"].

    ``length``: tokens of a sequence, or of the window, over which a query's keys are spread.
    """

    flop: Array
    kernel: NDArray[np.int64]
    head_dim: Array
    length: Array
    backward: bool


@dataclass(frozen=True)
class Pointwise:
    """Work bound by memory: ``bytes`` read and written.

    ``counted``: all of it is listed, so the global factor for what frameworks move besides does not apply.
    """

    bytes: Array
    counted: NDArray[np.bool_] | bool = False


@dataclass(frozen=True)
class SmallCopies:
    """``number`` copies, one after the other, each done before the host has launched the next."""

    number: Array


@dataclass(frozen=True)
class HostUpdate:
    """An optimizer on the host: ``host_bytes`` through a node's memory, ``link_bytes`` between it and each GPU."""

    host_bytes: Array
    link_bytes: Array


@dataclass(frozen=True)
class Collective:
    """A collective of ``tensor_bytes`` (the full tensor, padding included) over ``group``.

    ``group_name`` says which ranks those are: "world" (all data-parallel ranks), "node" (those of them in one node),
    "across-nodes" (one per node), "tp", "cp", "ep" or "pp"; "expert-world" and "expert-node" are those that hold the
    same experts.
    """

    collective: str
    tensor_bytes: Array
    group: Group
    group_name: NDArray[np.str_] | str
    purpose: Purpose


Work: TypeAlias = Gemm | AttentionCore | Pointwise | SmallCopies | HostUpdate | Collective


@dataclass(frozen=True)
class Operation:
    """Something that happens ``count`` times in a pass over one micro-batch on the fullest pipeline stage.

    ``count`` 0 is absent. ``num_kernels``: launches each time, those of the copies around a collective included.
    ``saved_bytes``: what each occurrence keeps for backward; ``workspace_bytes``: what it holds besides while its own
    layer is computed again; ``input_bytes``: a layer's input that the gradient of its weights needs.
    ``inner_launches``: what an operation on a list of tensors launches besides, from C++. ``fixed``: a piece of a layer
    whose sizes are the same in every pass. ``replayed``: where a CUDA graph launches it.
    ``when`` gives the passes of an optimizer step in which it happens.
    """

    name: str
    section: Section
    phase: Phase
    when: When
    count: Array
    num_kernels: Array
    work: Work
    saved_bytes: Array
    workspace_bytes: Array
    input_bytes: Array | float = 0.0
    inner_launches: Array | float = 0.0
    fixed: bool = False
    replayed: NDArray[np.bool_] | bool = False

    @property
    def of_weights(self) -> bool:
        """Whether it belongs to what zero bubble puts off of a backward pass: no other stage waits for it."""
        work = self.work
        if isinstance(work, Collective):
            return work.purpose == "reduce"
        return (isinstance(work, Gemm) and work.of_weights) or self.name.endswith(".accumulate")

    @property
    def takes_time(self) -> bool:
        """Whether a step waits for any of it: a product's input that is gathered again travels behind the product."""
        return not (isinstance(self.work, Collective) and self.work.purpose == "regather")

    def times(self, grad_accum: NDArray[np.int64]) -> Array:
        """Occurrences in one optimizer step of ``grad_accum`` micro-batches."""
        passes = {"every": grad_accum, "later": grad_accum - 1}.get(self.when, np.ones_like(grad_accum))
        return self.count * passes
