"""One differentiable piece of a layer: the work it does forward and backward, and what it keeps in between."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flopcast.collectives.group import Group
from flopcast.kernels.pointwise import Pass, traffic
from flopcast.simulator import placement
from flopcast.simulator.engines import has_habit
from flopcast.simulator.operation import Array, Collective, Gemm, Pointwise, Work
from flopcast.simulator.plan import Plans

ACTIVATION_BYTES = 2  # activations are 16-bit
# Launches for a sequence that is split: allocate the result, the collective, restore the layout.
SPLIT_KERNELS = 3.0


@dataclass(frozen=True)
class Workload:
    """What one pass over one micro-batch brings to a rank, as arrays over plans.

    ``tokens`` = B S / cp; ``residual_tokens`` are those of them whose residual stream this rank holds: 1/tp of them
    under sequence parallelism. ``rotary``: whether attention turns queries and keys by their positions.
    """

    plans: Plans
    hidden: int
    gpus_per_node: NDArray[np.int64]
    rotary: bool = True

    @property
    def tokens(self) -> Array:
        """Tokens of one micro-batch on this rank."""
        return self.plans.micro_batch * self.plans.seq_len / self.plans.cp

    @property
    def residual_tokens(self) -> Array:
        """Tokens whose residual stream, norms included, this rank holds."""
        return self.tokens / np.where(self.plans.sequence_parallel, self.plans.tp, 1)

    @property
    def residual_bytes(self) -> Array:
        """The residual stream of one micro-batch on this rank."""
        return self.residual_tokens * self.hidden * ACTIVATION_BYTES

    @property
    def normed_bytes(self) -> Array:
        """What products keep of a norm's result: all of it where it is gathered once, else this rank's part."""
        gathered = self.tokens * self.hidden * ACTIVATION_BYTES
        return np.where(has_habit("regathers_inputs", self.plans.engine), self.residual_bytes, gathered)

    @property
    def tensor_group(self) -> Group:
        """Ranks that share out one layer's tensors: neighbours."""
        plans = self.plans
        return placement.group(plans.tp, np.ones_like(plans.tp), self.gpus_per_node, plans.num_gpus)

    def per_tensor_rank(self, function: Callable[[int], int]) -> Array:
        """A quantity that depends on tp only, evaluated once for each tp that occurs."""
        values, where = np.unique(self.plans.tp, return_inverse=True)
        return np.array([function(int(tp)) for tp in values], dtype=np.float64)[where]


@dataclass(frozen=True)
class Computation:
    """``saved_bytes`` are kept for backward without recomputation; ``result_bytes`` by selective recompute.

    ``selective`` says whether selective recompute runs the forward work again: cheap to redo, large to keep.
    ``in_attention``: scores, which are computed again where selective recompute means attention alone.
    ``recomputed``: full recompute runs the forward work again; what nothing in the backward reads is not.
    ``backward_bytes``: what its backward holds beyond what it frees. ``input_bytes``: the input of its weights'
    gradient, where no other product has the same. ``present`` 0 makes the piece absent from a plan.
    ``forward`` None: there is work in the backward alone. ``forward_inner``, ``backward_inner``: launches from C++, as
    of a product that goes through experts. ``dynamic``: its sizes are known only once tokens have chosen experts.
    """

    name: str
    forward: Work | None
    backward: tuple[Work, ...]
    forward_kernels: Array | float
    backward_kernels: Array | float
    saved_bytes: Array | float = 0.0
    result_bytes: Array | float = 0.0
    selective: NDArray[np.bool_] | bool = False
    in_attention: bool = False
    recomputed: bool = True
    backward_bytes: Array | float = 0.0
    input_bytes: Array | float = 0.0
    present: NDArray[np.bool_] | bool = True
    forward_inner: Array | float = 0.0
    backward_inner: Array | float = 0.0
    dynamic: bool = False


def linear(
    load: Workload,
    name: str,
    num_in: Array | float,
    num_out: Array | float,
    input_bytes: Array | float,
    bias: bool,
    shares_input: bool = False,
) -> Computation:
    """A linear layer over ``load.tokens`` rows: (T, in) x (in, out) forward; input and weight gradients backward.

    ``input_bytes`` is what its input adds to the saved activations (0 if someone else already keeps it);
    ``shares_input`` says whether that someone is another product, as of keys and values beside queries.
    """
    fp8 = load.plans.has(precision="fp8")
    rows, inner, outer = load.tokens, num_in + 0.0 * load.tokens, num_out + 0.0 * load.tokens
    return Computation(
        name,
        Gemm(rows, outer, inner, fp8, shares_input=shares_input),
        (Gemm(rows, inner, outer, fp8), Gemm(inner, outer, rows, fp8, of_weights=True)),
        forward_kernels=1.0,
        backward_kernels=3.0 if bias else 2.0,
        saved_bytes=input_bytes,
        result_bytes=rows * outer * ACTIVATION_BYTES,
        input_bytes=0.0 if shares_input else _or_else(input_bytes, rows * inner * ACTIVATION_BYTES),
    )


def _or_else(given: Array | float, whole: Array) -> Array:
    return np.where(np.asarray(given) > 0, given, whole)


def pointwise(
    name: str,
    num_elements: Array,
    fused: NDArray[np.bool_],
    forward: tuple[Pass, Pass],
    backward: tuple[Pass, Pass],
    saved_bytes: Array | float,
    result_bytes: Array | float = 0.0,
    held_by_backward: Array | float = 0.0,
) -> Computation:
    """Memory-bound work on ``num_elements``; each pass is given as (where fused, where not).

    What is not fused is listed operation by operation, so that nothing more moves; one kernel may move more than its
    least.
    """
    forward_bytes, forward_kernels = traffic(num_elements, fused, *forward)
    backward_bytes, backward_kernels = traffic(num_elements, fused, *backward)
    listed = ~fused & (forward[1].num_kernels > forward[0].num_kernels)
    return Computation(
        name,
        Pointwise(forward_bytes, listed),
        (Pointwise(backward_bytes, listed),),
        forward_kernels,
        backward_kernels,
        saved_bytes,
        result_bytes,
        selective=True,
        backward_bytes=held_by_backward,
    )


def tensor_parallel(
    load: Workload, name: str, last_of_layer: bool, present: NDArray[np.bool_] | bool
) -> Sequence[Computation]:
    """What a column-split then row-split pair of matrices needs: its output summed over the tensor-parallel ranks.

    One all-reduce of (T, D) forward and one backward; under sequence parallelism an all-gather and a reduce-scatter
    of the same tensor each way. Megatron-LM (arXiv:1909.08053, figure 3; arXiv:2205.05198, figure 5). The sum that ends
    a layer is not computed again: no gradient depends on its result (torch.utils.checkpoint stops before it). Absent
    where not ``present``. What 8-bit products take is cast before it is gathered (Transformer Engine 1.8,
    pytorch/module/layernorm_linear.py and base.py; torchao/float8/float8_tensor_parallel.py).
    """
    split = load.plans.sequence_parallel
    whole = (load.plans.tp > 1) & ~split
    gathered = np.where(load.plans.has(precision="fp8"), 1, ACTIVATION_BYTES)
    return [
        _exchange(load, f"{name}.sum", "all_reduce", "all_reduce", whole & present, not last_of_layer),
        _exchange(load, f"{name}.gather", "all_gather", "reduce_scatter", split & present, True, gathered),
        _exchange(
            load, f"{name}.scatter", "reduce_scatter", "all_gather", split & present, not last_of_layer, gathered
        ),
        *_regather(load, f"{name}.regather", split & present, gathered),
    ]


def embedding_exit(load: Workload) -> Sequence[Computation]:
    """The second half of such a pair: rows looked up in a shared vocabulary are summed over the ranks."""
    split = load.plans.sequence_parallel
    return [
        _exchange(load, "tensor_parallel.sum", "all_reduce", None, (load.plans.tp > 1) & ~split),
        _exchange(load, "tensor_parallel.scatter", "reduce_scatter", "all_gather", split),
    ]


def head_entry(load: Workload) -> Sequence[Computation]:
    """The first half: every rank computes its own logits from all tokens."""
    split = load.plans.sequence_parallel
    return [
        _exchange(load, "tensor_parallel.sum", None, "all_reduce", (load.plans.tp > 1) & ~split),
        _exchange(load, "tensor_parallel.gather", "all_gather", "reduce_scatter", split),
        *_regather(load, "tensor_parallel.regather", split),
    ]


def _regather(
    load: Workload, name: str, present: NDArray[np.bool_], gather_bytes: Array | int = ACTIVATION_BYTES
) -> Sequence[Computation]:
    """What an engine that keeps a product's input split over the sequence gathers again for its weights' gradient.

    Behind the product that gives the gradient of that input (arXiv:2205.05198, section 4.2.2; Megatron-LM,
    tensor_parallel/layers.py, LinearWithGradAccumulationAndAsyncCommunication).
    """
    plans = load.plans
    present = present & has_habit("regathers_inputs", plans.engine)
    if not np.any(present):
        return []
    work = Collective("all_gather", load.tokens * load.hidden * gather_bytes, load.tensor_group, "tp", "regather")
    return [Computation(name, None, (work,), 0.0, 0.0, present=present)]


def _exchange(
    load: Workload,
    name: str,
    forward: str | None,
    backward: str | None,
    present: NDArray[np.bool_],
    recomputed: bool = True,
    gather_bytes: Array | int = ACTIVATION_BYTES,
) -> Computation:
    """Collectives of (T, D) between tensor-parallel ranks, one each way; elements are gathered as ``gather_bytes``."""
    group, elements = load.tensor_group, load.tokens * load.hidden

    def work(kind: str) -> Collective:
        element_bytes = gather_bytes if kind == "all_gather" else ACTIVATION_BYTES
        return Collective(kind, elements * element_bytes, group, "tp", "tensor")

    there = work(forward) if forward else None
    back = (work(backward),) if backward else ()
    kernels = 1.0 if "all_reduce" in (forward, backward) else SPLIT_KERNELS
    return Computation(name, there, back, kernels, kernels, present=present, recomputed=recomputed)


def shared_loss(load: Workload) -> Sequence[Computation]:
    """The loss over a vocabulary that tensor-parallel ranks share: maxima [T], then sums and targets' logits [2, T]."""

    def sum_of(name: str, numbers: int) -> Computation:
        work = Collective("all_reduce", numbers * 4 * load.tokens, load.tensor_group, "tp", "tensor")
        return Computation(name, work, (), 1.0, 0.0, present=load.plans.tp > 1)

    return [sum_of("loss_maxima", 1), sum_of("loss_sums", 2)]
