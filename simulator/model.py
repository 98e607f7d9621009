"""A model: a sequence of blocks between an embedding and a head, exact to the parameter."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import numpy as np

from flopcast.errors import InputError
from flopcast.simulator.plain import check_counts, check_flags, make_plain

if TYPE_CHECKING:
    from flopcast.simulator.blocks.computation import Computation, Workload

Norm = Literal["rmsnorm", "layernorm"]
Positions = Literal["rotary", "learned", "alibi", "none"]

# How tensor parallelism splits a tensor: every rank holds it "whole", or its "rows" (dim 0, output features), its
# "columns" (dim 1, input features), or the rows of the key/value heads its query heads use ("kv"). "shared" is whole
# too, and used on a rank's own heads or products, so that each rank computes only a share of its gradient.
Split = Literal["whole", "rows", "columns", "kv", "shared"]


@dataclass(frozen=True)
class ParameterTensor:
    """One weight or bias as the training engine holds it: ``shape`` is (output features, input features).

    ``num_experts`` above 1: those of so many experts stacked along dim 0, of which each token uses ``num_active``.
    """

    name: str
    shape: tuple[int, ...]
    split: Split = "whole"
    num_experts: int = 1
    num_active: int = 1

    @property
    def num_parameters(self) -> int:
        """Elements of the whole tensor."""
        return math.prod(self.shape)

    @property
    def num_active_parameters(self) -> int:
        """Elements that one token is multiplied with: all but those of the experts it is not sent to."""
        return self.num_parameters // self.num_experts * self.num_active


class Block(Protocol):
    """One kind of layer. A new architecture is another class with these members, and no other change.

    ``kind`` names it in operations and tables; ``tensors`` lists its parameters; ``computations`` what it does.
    """

    @property
    def kind(self) -> str:
        """The name of this kind of layer."""

    @property
    def num_tensor_parallel_sums(self) -> int:
        """Sums over tensor-parallel ranks that one forward needs."""

    def tensors(self, hidden: int) -> tuple[ParameterTensor, ...]:
        """Every parameter tensor of one layer of this kind in a model of that hidden size."""

    def computations(self, load: "Workload") -> "list[Computation]":
        """Every differentiable piece of one layer on one micro-batch, tensor-parallel sums included."""

    def score_flop_per_token(self, seq_len: int, causal: bool) -> float:
        """Forward FLOPs per token that grow with the sequence: attention scores, in full or as masked."""

    def kv_heads_per_rank(self, tp: int) -> int:
        """Most key/value heads that one of ``tp`` tensor-parallel ranks needs for its query heads."""

    def check_tensor_parallel(self, tp: int) -> None:
        """Raise InputError where ``tp`` ranks cannot share a layer of this kind."""

    @property
    def num_experts(self) -> int:
        """Experts that expert parallelism spreads over ranks; 0 where the layer has none."""


@dataclass(frozen=True, repr=False)
class Model:
    """A decoder-only language model.

    ``context`` is the sequence length of most of its pre-training; ``layers`` holds one block per layer, in order.
    ``num_positions`` rows of learned positions exist only where ``positions`` is "learned".
    """

    name: str
    hidden: int
    vocab_size: int
    context: int
    layers: tuple[Block, ...]
    tied_embeddings: bool = False
    positions: Positions = "rotary"
    num_positions: int = 0
    norm: Norm = "rmsnorm"
    norm_bias: bool = False
    final_norm: bool = True
    embedding_norm: bool = False
    head_bias: bool = False
    embedding_rows: int = 0
    source: str = ""
    assumptions: tuple[str, ...] = ()
    published: Mapping[str, float] = field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        return f"<Model {self.name}: {self.num_layers} layers of {self.hidden:,}, {self.num_parameters:,} parameters>"

    def __post_init__(self) -> None:
        if not self.layers:
            raise InputError(f"model '{self.name}': it has no layers; give at least one")
        where = f"model '{self.name}'"
        make_plain(self)
        check_counts(self, where, ("hidden", "vocab_size", "context"))
        check_counts(self, where, ("num_positions", "embedding_rows"), least=0)
        check_flags(self, where, ("tied_embeddings", "norm_bias", "final_norm", "embedding_norm", "head_bias"))
        for name, choices in (("positions", get_args(Positions)), ("norm", get_args(Norm))):
            if getattr(self, name) not in choices:
                raise InputError(f"{where}: {name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")

    @property
    def num_layers(self) -> int:
        """Layers, the embedding and the head not counted."""
        return len(self.layers)

    @cached_property
    def kinds(self) -> dict[Block, int]:
        """How many layers of each kind of block, in order of first appearance."""
        return dict(Counter(self.layers))

    @cached_property
    def kind_names(self) -> dict[Block, str]:
        """A name for each kind of layer: the block's own, numbered from the second of that name on."""
        names: dict[Block, str] = {}
        same: Counter[str] = Counter()
        for block in self.kinds:
            same[block.kind] += 1
            names[block] = block.kind if same[block.kind] == 1 else f"{block.kind}{same[block.kind]}"
        return names

    @property
    def num_experts(self) -> int:
        """Experts of the layers that have any, 0 without; where layers differ, what divides over all of them."""
        return math.gcd(*(block.num_experts for block in self.kinds))

    def norm_tensors(self, name: str) -> tuple[ParameterTensor, ...]:
        """Weight, and bias where the model has one, of a normalisation outside the blocks."""
        return norm_tensors(name, self.hidden, self.norm, self.norm_bias)

    def root_tensors(self) -> tuple[ParameterTensor, ...]:
        """The parameters outside the blocks: embedding, positions, final norm, head (none if tied)."""
        embedding = ParameterTensor("embedding", (self.embedding_rows or self.vocab_size, self.hidden), "rows")
        tensors = [embedding]
        if self.positions == "learned":
            tensors.append(ParameterTensor("positions", (self.num_positions, self.hidden)))
        if self.embedding_norm:
            tensors += self.norm_tensors("embedding_norm")
        if self.final_norm:
            tensors += self.norm_tensors("norm")
        if not self.tied_embeddings:
            tensors.append(ParameterTensor("head", (self.vocab_size, self.hidden), "rows"))
        if self.head_bias:
            tensors.append(ParameterTensor("head.bias", (self.vocab_size,), "rows"))
        return tuple(tensors)

    @property
    def num_root_parameters(self) -> int:
        """Parameters outside the blocks."""
        return sum(t.num_parameters for t in self.root_tensors())

    @property
    def num_layer_parameters(self) -> int:
        """Parameters of the first layer."""
        return count_parameters(self.layers[0], self.hidden)

    @property
    def num_parameters(self) -> int:
        """Every parameter, tied ones once."""
        layers = sum(count_parameters(kind, self.hidden) * n for kind, n in self.kinds.items())
        return layers + self.num_root_parameters

    def check_expert_parallel(self, ep: int) -> None:
        """Raise InputError where ``ep`` ranks cannot share out the experts evenly, or there are none."""
        if not isinstance(ep, int | np.integer) or ep < 1:
            raise InputError(f"ep is {ep!r}; it must be a whole number of at least 1")
        if ep > 1 and not self.num_experts:
            raise InputError(f"ep={ep} but {self.name} has no experts; leave ep at 1")
        if self.num_experts % ep:
            raise InputError(f"ep={ep} does not divide the {self.num_experts} experts of {self.name}; choose a divisor")

    @property
    def num_active_parameters(self) -> int:
        """Parameters that one token is multiplied with: all, less the experts it is not sent to."""
        return self.num_parameters - sum(
            number * (tensor.num_parameters - tensor.num_active_parameters)
            for block, number in self.kinds.items()
            for tensor in block.tensors(self.hidden)
        )


def count_parameters(block: Block, hidden: int) -> int:
    """Parameters of one layer of this kind."""
    return sum(t.num_parameters for t in block.tensors(hidden))


def norm_tensors(name: str, size: int, norm: Norm, bias: bool, split: Split = "whole") -> tuple[ParameterTensor, ...]:
    """Weight of a norm over ``size`` features, and its bias (a LayerNorm has one unless the model says not)."""
    weight = ParameterTensor(f"{name}.weight", (size,), split)
    if norm == "layernorm" and bias:
        return (weight, ParameterTensor(f"{name}.bias", (size,), split))
    return (weight,)
