"""The transformer block: attention and an MLP, in sequence (GPT, LLaMA) or in parallel (GPT-NeoX, PLaMo)."""

from dataclasses import dataclass
from typing import Literal

from flopcast.errors import InputError
from flopcast.simulator.blocks import transformer_pass
from flopcast.simulator.blocks.computation import Computation, Workload
from flopcast.simulator.model import Norm, ParameterTensor, Split, norm_tensors

KeyValueLayout = Literal["grouped", "tiled"]


@dataclass(frozen=True)
class Attention:
    """Multi-head attention with ``num_kv_heads`` shared key/value heads (as many as ``num_heads``: no sharing).

    ``kv_layout``: query head i uses key/value head i // (Hq/Hkv) where "grouped" (Hugging Face, GQA), i mod Hkv where
    "tiled" (PLaMo). ``window`` limits how far back a token attends (None: the whole sequence). ``rotary_share`` is
    the share of each head's features that RoPE turns.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    fused_qkv: bool = False
    kv_layout: KeyValueLayout = "grouped"
    window: int | None = None
    rotary_share: float = 1.0

    def __post_init__(self) -> None:
        for name in ("num_heads", "num_kv_heads", "head_dim"):
            if getattr(self, name) <= 0:
                raise InputError(f"attention {name} is {getattr(self, name)}; it must be positive")
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"{self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads evenly; "
                "num_kv_heads must divide num_heads"
            )

    def kv_heads_per_rank(self, tp: int) -> int:
        """Most key/value heads that one of ``tp`` ranks needs for its query heads (each holds Hq/tp of them)."""
        per_rank = self.num_heads // tp
        group = self.num_heads // self.num_kv_heads

        def kv_head(query_head: int) -> int:
            return query_head % self.num_kv_heads if self.kv_layout == "tiled" else query_head // group

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


@dataclass(frozen=True)
class TransformerBlock:
    """Attention and an MLP around a residual stream.

    ``parallel``: both read the same normalised input and their outputs are added together. ``num_norms``: norms
    on the block's inputs (1 is shared by attention and MLP, as in PLaMo-13B; 2; 4 with post-norms, as in Gemma 2).
    """

    attention: Attention
    mlp: Mlp
    parallel: bool = False
    num_norms: int = 2
    norm: Norm = "rmsnorm"
    norm_bias: bool = False

    @property
    def kind(self) -> str:
        """The name of this kind of layer."""
        return "window-transformer" if self.attention.window else "transformer"

    @property
    def num_tensor_parallel_sums(self) -> int:
        """Sums over tensor-parallel ranks that one forward needs: after attention and after the MLP, or at once."""
        return 1 if self.parallel else 2

    def kv_heads_per_rank(self, tp: int) -> int:
        """Most key/value heads that one of ``tp`` tensor-parallel ranks needs for its query heads."""
        return self.attention.kv_heads_per_rank(tp)

    def check_tensor_parallel(self, tp: int) -> None:
        """Raise InputError unless the query heads and the MLP divide over ``tp`` ranks."""
        if self.attention.num_heads % tp:
            raise InputError(f"tp={tp} does not divide num_heads={self.attention.num_heads}; choose a tp that does")
        if self.mlp.intermediate % tp:
            raise InputError(f"tp={tp} does not divide intermediate={self.mlp.intermediate}; choose a tp that does")

    def computations(self, load: Workload) -> list[Computation]:
        """Every differentiable piece of one layer on one micro-batch, tensor-parallel sums included."""
        return transformer_pass.computations(self, load)

    def score_flop_per_token(self, seq_len: int, causal: bool) -> float:
        """Forward FLOPs per token of Q K^T and scores x V: 4 Hq Dh keys, keys the mean number a token attends to.

        All S of them by the full convention; under the causal mask S/2, or w - w^2/2S in a window of w.
        """
        window = min(seq_len, self.attention.window or seq_len)
        keys = window - window**2 / (2 * seq_len) if causal else window
        return 4.0 * self.attention.num_heads * self.attention.head_dim * keys

    def tensors(self, hidden: int) -> tuple[ParameterTensor, ...]:
        """Every parameter tensor of one layer."""
        return self._norms(hidden) + self._attention(hidden) + self._mlp(hidden)

    def _norms(self, hidden: int) -> tuple[ParameterTensor, ...]:
        # Two norms side by side stand behind one exchange between tensor-parallel ranks, before their own products.
        split: Split = "shared" if self.parallel and self.num_norms == 2 else "whole"
        return tuple(
            tensor
            for index in range(self.num_norms)
            for tensor in norm_tensors(f"norm{index + 1}", hidden, self.norm, self.norm_bias, split)
        )

    def _attention(self, hidden: int) -> tuple[ParameterTensor, ...]:
        a = self.attention
        query, key = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
        tensors: list[ParameterTensor] = []
        if a.fused_qkv:
            tensors += linear("qkv", query + 2 * key, hidden, "rows", a.qkv_bias)
        else:
            tensors += linear("q", query, hidden, "rows", a.qkv_bias)
            tensors += linear("k", key, hidden, "kv", a.qkv_bias)
            tensors += linear("v", key, hidden, "kv", a.qkv_bias)
        if a.qk_norm:
            tensors += [ParameterTensor(name, (a.head_dim,), "shared") for name in ("q_norm", "k_norm")]
        return (*tensors, *linear("o", hidden, query, "columns", a.output_bias))

    def _mlp(self, hidden: int) -> tuple[ParameterTensor, ...]:
        m = self.mlp
        gate = linear("gate", m.intermediate, hidden, "rows", m.bias) if m.gated else ()
        up = linear("up", m.intermediate, hidden, "rows", m.bias)
        return gate + up + linear("down", hidden, m.intermediate, "columns", m.bias)


def linear(
    name: str, num_out: int, num_in: int, split: Literal["rows", "columns", "kv"], bias: bool
) -> tuple[ParameterTensor, ...]:
    """Weight, and bias where there is one, of a linear layer; the bias follows the weight's rows."""
    weight = ParameterTensor(name, (num_out, num_in), split)
    if not bias:
        return (weight,)
    return (weight, ParameterTensor(f"{name}.bias", (num_out,), "whole" if split == "columns" else split))
