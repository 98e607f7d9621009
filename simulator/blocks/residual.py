"""A layer around a residual stream: what mixes tokens, then what works on each, both behind norms and added back."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flopcast.errors import InputError
from flopcast.kernels.pointwise import Pass
from flopcast.kernels.rmsnorm import cost as norm_cost
from flopcast.simulator.blocks.computation import Computation, Workload, pointwise, tensor_parallel
from flopcast.simulator.engines import habit, has_habit
from flopcast.simulator.model import Norm, ParameterTensor, Split, norm_tensors


class Mixer(Protocol):
    """The part of a layer that moves information between tokens: attention of some kind, or a state space.

    ``kind`` is the word that the layer's name gets from it, empty for plain attention.
    """

    @property
    def kind(self) -> str:
        """Its word in the name of a layer."""

    def tensors(self, hidden: int) -> tuple[ParameterTensor, ...]:
        """Its parameters, norms on the residual stream not counted."""

    def computations(self, load: Workload) -> list[Computation]:
        """What it does on one micro-batch whose normalised input every rank of a tensor-parallel group has."""

    def score_flop_per_token(self, seq_len: int, causal: bool) -> float:
        """Forward FLOPs per token between tokens, which no parameter accounts for."""

    def kv_heads_per_rank(self, tp: int) -> int:
        """Most key/value heads that one of ``tp`` tensor-parallel ranks needs."""

    def check_tensor_parallel(self, tp: int) -> None:
        """Raise InputError where ``tp`` ranks cannot share it."""


class FeedForward(Protocol):
    """The part of a layer that works on each token by itself: an MLP, or experts."""

    @property
    def kind(self) -> str:
        """Its word in the name of a layer."""

    @property
    def num_experts(self) -> int:
        """Experts that expert parallelism spreads over ranks; 0 where there are none."""

    def tensors(self, hidden: int) -> tuple[ParameterTensor, ...]:
        """Its parameters, norms on the residual stream not counted."""

    def computations(self, load: Workload, own_input: bool) -> list[Computation]:
        """What it does on one micro-batch; ``own_input`` says whether it, and not the mixer, keeps its input."""

    def exchanges_all_tokens(self, load: Workload) -> NDArray[np.bool_]:
        """Under which plans its tensor-parallel ranks exchange every token, as an MLP's do."""

    def check_tensor_parallel(self, tp: int) -> None:
        """Raise InputError where ``tp`` ranks cannot share it."""


@dataclass(frozen=True, kw_only=True)
class ResidualBlock(ABC):
    """What such layers have in common.

    ``parallel``: both parts read the same normalised input and their outputs are added together. ``num_norms``: norms
    on the block's inputs (1 is shared by both parts, as in PLaMo-13B; 2; 4 with post-norms, as in Gemma 2).
    ``post_norm``: the two stand behind the parts, not before them (OLMo 2).
    """

    parallel: bool = False
    num_norms: int = 2
    norm: Norm = "rmsnorm"
    norm_bias: bool = False
    post_norm: bool = False

    def __post_init__(self) -> None:
        if self.post_norm and (self.parallel or self.num_norms != 2):
            raise InputError(
                "post_norm is of a block with 2 norms whose parts stand in sequence; leave it out elsewhere"
            )

    @abstractmethod
    def parts(self) -> tuple[Mixer, FeedForward]:
        """What mixes tokens, and what works on each of them."""

    @property
    def kind(self) -> str:
        """The name of this kind of layer."""
        mixer, feed_forward = self.parts()
        return "-".join(word for word in (mixer.kind, feed_forward.kind, "transformer") if word)

    @property
    def num_tensor_parallel_sums(self) -> int:
        """Sums over tensor-parallel ranks that one forward needs: after each of the two parts, or at once."""
        return 1 if self.parallel else 2

    @property
    def num_experts(self) -> int:
        """Experts that expert parallelism spreads over ranks; 0 where there are none."""
        return self.parts()[1].num_experts

    def kv_heads_per_rank(self, tp: int) -> int:
        """Most key/value heads that one of ``tp`` tensor-parallel ranks needs for its query heads."""
        return self.parts()[0].kv_heads_per_rank(tp)

    def check_tensor_parallel(self, tp: int) -> None:
        """Raise InputError unless both parts divide over ``tp`` ranks."""
        for part in self.parts():
            part.check_tensor_parallel(tp)

    def score_flop_per_token(self, seq_len: int, causal: bool) -> float:
        """Forward FLOPs per token between tokens, which no parameter accounts for."""
        return self.parts()[0].score_flop_per_token(seq_len, causal)

    def tensors(self, hidden: int) -> tuple[ParameterTensor, ...]:
        """Every parameter tensor of one layer."""
        mixer, feed_forward = self.parts()
        return self._norm_tensors(hidden) + mixer.tensors(hidden) + feed_forward.tensors(hidden)

    def computations(self, load: Workload) -> list[Computation]:
        """Every piece of one layer on one micro-batch; a sequential one sums over tensor-parallel ranks twice."""
        mixer, feed_forward = self.parts()
        # A parallel block's second part reads the norm that the first already keeps, unless it has one of its own.
        own_input = not self.parallel or self.num_norms > 1
        parts = [
            *self._norms(load),
            *self._sums(load),
            *mixer.computations(load),
            *feed_forward.computations(load, own_input),
        ]
        for index in range(self.num_tensor_parallel_sums):
            # A norm behind the sum (Gemma 2, OLMo 2) reads it again in backward.
            last, behind = index + 1 == self.num_tensor_parallel_sums, self.num_norms == 4 or self.post_norm
            everywhere = load.plans.tp > 0
            present = feed_forward.exchanges_all_tokens(load) if last and not self.parallel else everywhere
            parts += tensor_parallel(load, f"tensor_parallel{index + 1}", last and not behind, present)
        return parts

    def _norm_tensors(self, hidden: int) -> tuple[ParameterTensor, ...]:
        # Two norms side by side stand behind one exchange between tensor-parallel ranks, before their own products.
        split: Split = "shared" if self.parallel and self.num_norms == 2 else "whole"
        return tuple(
            tensor
            for index in range(self.num_norms)
            for tensor in norm_tensors(f"norm{index + 1}", hidden, self.norm, self.norm_bias, split)
        )

    def _norms(self, load: Workload) -> list[Computation]:
        elements = load.residual_tokens * load.hidden
        fused = load.plans.fused_kernels | load.plans.compiled
        rms = self.norm == "rmsnorm"
        forward = (norm_cost.FORWARD, norm_cost.EAGER_FORWARD if rms else norm_cost.LAYER_NORM_FORWARD)
        backward = (norm_cost.BACKWARD, norm_cost.EAGER_BACKWARD if rms else norm_cost.LAYER_NORM_BACKWARD)
        # Op by op, the fp32 input and the 16-bit normalised rows stay instead of the 16-bit input.
        by_hand = rms & has_habit("keeps_intermediates", load.plans.engine) & ~fused
        stream = load.residual_bytes * np.where(by_hand, 3, 1)
        # A parallel block whose norms share one input keeps that input once; a sequential one keeps one per norm.
        inputs = 1 if self.parallel else self.num_norms
        kept = [stream if index < inputs else 0.0 for index in range(self.num_norms)]
        own_bytes = [habit(f"norm_{way}_bytes", load.plans.engine) for way in ("forward", "backward")]
        forward, backward = (
            (kernel, Pass(np.where(own > 0, own, listed.bytes_per_element), listed.num_kernels))
            for own, (kernel, listed) in zip(own_bytes, (forward, backward), strict=True)
        )
        in_kernel = fused & (own_bytes[0] == 0)
        return [pointwise(f"norm{i + 1}", elements, in_kernel, forward, backward, k, 0.0) for i, k in enumerate(kept)]

    def _sums(self, load: Workload) -> list[Computation]:
        """The branches added to the residual stream, inside of a norm where compiler or kernel does so."""
        plans, elements = load.plans, load.residual_tokens * load.hidden
        by_compiler = plans.compiled & ~has_habit("jit_only", plans.engine)
        in_norm = by_compiler | (plans.fused_kernels & has_habit("folds_residual", plans.engine))
        folded = (norm_cost.ADD_FORWARD, norm_cost.ADD_BACKWARD)
        # A parallel block adds both branches at one boundary; a sequential one has a boundary for each.
        second = (norm_cost.SECOND_ADD_FORWARD, norm_cost.SECOND_ADD_BACKWARD) if self.parallel else folded
        eager = (norm_cost.EAGER_ADD_FORWARD, norm_cost.EAGER_ADD_BACKWARD)
        return [
            pointwise(f"residual{i + 1}", elements, in_norm, (forward, eager[0]), (backward, eager[1]), 0.0)
            for i, (forward, backward) in enumerate((folded, second))
        ]


@dataclass(frozen=True)
class MixedBlock(ResidualBlock):
    """Any mixer with any feed-forward part: latent attention, state spaces, experts."""

    mixer: Mixer
    feed_forward: FeedForward

    def parts(self) -> tuple[Mixer, FeedForward]:
        """What mixes tokens, and what works on each of them."""
        return self.mixer, self.feed_forward
