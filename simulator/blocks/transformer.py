"""The transformer block: attention and an MLP, in sequence (GPT, LLaMA) or in parallel (GPT-NeoX, PLaMo)."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flopcast.errors import InputError
from flopcast.simulator.blocks import transformer_pass
from flopcast.simulator.blocks.computation import Computation, Workload
from flopcast.simulator.blocks.residual import FeedForward, MixedBlock, Mixer, ResidualBlock
from flopcast.simulator.blocks.scores import Reach, flop_per_token
from flopcast.simulator.model import ParameterTensor

KeyValueLayout = Literal["grouped", "tiled"]


@dataclass(frozen=True)
class Attention:
    """Multi-head attention with ``num_kv_heads`` shared key/value heads (as many as ``num_heads``: no sharing).

    ``kv_layout``: query head i uses key/value head i // (Hq/Hkv) where "grouped" (Hugging Face, GQA), i mod Hkv where
    "tiled" (PLaMo). ``window`` limits how far back a token attends (None: the whole sequence), ``chunk``
    cuts the sequence in chunks of so many tokens that attend to their own alone (Llama 4). ``rotary_share`` is
    the share of each head's features that RoPE turns. ``qk_norm`` normalises every head of q and k, with weights that
    all heads share unless ``qk_norm_per_head`` (PLaMo 2; OLMo 2, whose norm is over all heads, costs the same).
    ``sinks``: a score learned for every query head joins each of its softmaxes (gpt-oss).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    qk_norm_per_head: bool = False
    fused_qkv: bool = False
    kv_layout: KeyValueLayout = "grouped"
    window: int | None = None
    chunk: int | None = None
    rotary_share: float = 1.0
    sinks: bool = False

    def __post_init__(self) -> None:
        for name in ("num_heads", "num_kv_heads", "head_dim"):
            if getattr(self, name) <= 0:
                raise InputError(f"attention {name} is {getattr(self, name)}; it must be positive")
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"{self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads evenly; "
                "num_kv_heads must divide num_heads"
            )
        if self.window and self.chunk:
            raise InputError(f"attention has a window of {self.window} and chunks of {self.chunk}; leave out one")

    def kv_heads_per_rank(self, tp: int) -> int:
        """Most key/value heads that one of ``tp`` ranks needs for its query heads (each holds Hq/tp of them)."""
        return _kv_heads_per_rank(self, tp)

    @property
    def kind(self) -> str:
        """Its word in the name of a layer."""
        return "window" if self.window else "chunked" if self.chunk else ""

    @property
    def reach(self) -> Reach:
        """How far a token attends."""
        return Reach(self.window, self.chunk)

    def check_tensor_parallel(self, tp: int) -> None:
        """Raise InputError unless the query heads divide over ``tp`` ranks."""
        if self.num_heads % tp:
            raise InputError(f"tp={tp} does not divide num_heads={self.num_heads}; choose a tp that does")

    def score_flop_per_token(self, seq_len: int, causal: bool) -> float:
        """Forward FLOPs per token of Q K^T and scores x V: 4 Hq Dh keys, keys the mean number a token attends to."""
        return flop_per_token(self.num_heads, self.head_dim, self.head_dim, seq_len, causal, self.reach)

    def computations(self, load: Workload) -> list[Computation]:
        """What it does on one micro-batch."""
        return transformer_pass.attention(self, load)

    def tensors(self, hidden: int) -> tuple[ParameterTensor, ...]:
        """Its parameters: q, k, v (in one tensor where fused), the norms on q and k, and the output projection."""
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        tensors: list[ParameterTensor] = []
        if self.fused_qkv:
            tensors += linear("qkv", query + 2 * key, hidden, "rows", self.qkv_bias)
        else:
            tensors += linear("q", query, hidden, "rows", self.qkv_bias)
            tensors += linear("k", key, hidden, "kv", self.qkv_bias)
            tensors += linear("v", key, hidden, "kv", self.qkv_bias)
        if self.qk_norm_per_head:
            tensors.append(ParameterTensor("q_norm", (query,), "rows"))
            tensors.append(ParameterTensor("k_norm", (key,), "kv"))
        elif self.qk_norm:
            tensors += [ParameterTensor(name, (self.head_dim,), "shared") for name in ("q_norm", "k_norm")]
        if self.sinks:
            tensors.append(ParameterTensor("sinks", (self.num_heads,), "rows"))
        return (*tensors, *linear("o", hidden, query, "columns", self.output_bias))


@cache
def _kv_heads_per_rank(attention: Attention, tp: int) -> int:
    per_rank = attention.num_heads // tp
    group = attention.num_heads // attention.num_kv_heads

    def kv_head(query_head: int) -> int:
        return query_head % attention.num_kv_heads if attention.kv_layout == "tiled" else query_head // group

    return max(len({kv_head(q) for q in range(rank * per_rank, (rank + 1) * per_rank)}) for rank in range(tp))


@dataclass(frozen=True)
class Mlp:
    """A feed-forward network: gated (SwiGLU, GeGLU: three matrices) or plain (GELU, squared ReLU: two)."""

    intermediate: int
    gated: bool = True
    bias: bool = False

    def __post_init__(self) -> None:
        if self.intermediate <= 0:
            raise InputError(f"MLP intermediate size is {self.intermediate}; it must be positive")

    @property
    def kind(self) -> str:
        """Its word in the name of a layer: none."""
        return ""

    @property
    def num_experts(self) -> int:
        """None."""
        return 0

    def check_tensor_parallel(self, tp: int) -> None:
        """Raise InputError unless the intermediate features divide over ``tp`` ranks."""
        if self.intermediate % tp:
            raise InputError(f"tp={tp} does not divide intermediate={self.intermediate}; choose a tp that does")

    def exchanges_all_tokens(self, load: Workload) -> NDArray[np.bool_]:
        """Every token's input goes to all ranks of a tensor-parallel group and its output is summed over them."""
        return load.plans.tp > 0

    def computations(self, load: Workload, own_input: bool) -> list[Computation]:
        """What it does on one micro-batch; ``own_input`` says whether it keeps its input."""
        return transformer_pass.mlp(self, load, own_input)

    def tensors(self, hidden: int, prefix: str = "") -> tuple[ParameterTensor, ...]:
        """Its two or three matrices; their names begin with ``prefix``."""
        gate = linear(f"{prefix}gate", self.intermediate, hidden, "rows", self.bias) if self.gated else ()
        up = linear(f"{prefix}up", self.intermediate, hidden, "rows", self.bias)
        return gate + up + linear(f"{prefix}down", hidden, self.intermediate, "columns", self.bias)


@dataclass(frozen=True)
class TransformerBlock(ResidualBlock):
    """Attention and an MLP around a residual stream."""

    attention: Attention
    mlp: Mlp

    def parts(self) -> tuple[Mixer, FeedForward]:
        """Attention and the MLP."""
        return self.attention, self.mlp


def block_of(mixer: Mixer, feed_forward: FeedForward, **residual: Any) -> ResidualBlock:
    """The block of such parts; ``residual``: fields of :class:`ResidualBlock`."""
    if isinstance(mixer, Attention) and isinstance(feed_forward, Mlp):
        return TransformerBlock(mixer, feed_forward, **residual)
    return MixedBlock(mixer, feed_forward, **residual)


def linear(
    name: str, num_out: int, num_in: int, split: Literal["rows", "columns", "kv", "shared"], bias: bool
) -> tuple[ParameterTensor, ...]:
    """Weight, and bias where there is one, of a linear layer; the bias follows the weight's rows."""
    weight = ParameterTensor(name, (num_out, num_in), split)
    if not bias:
        return (weight,)
    return (weight, ParameterTensor(f"{name}.bias", (num_out,), "whole" if split == "columns" else split))
