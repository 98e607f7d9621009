"""Multi-head latent attention: keys and values are projections of a narrow vector per token (DeepSeek-V2)."""

from dataclasses import dataclass

from flopcast.errors import InputError
from flopcast.kernels.pointwise import Pass
from flopcast.kernels.rmsnorm import cost as norm_cost
from flopcast.kernels.rope import cost as rope_cost
from flopcast.simulator.blocks.computation import ACTIVATION_BYTES, Computation, Workload, linear, pointwise
from flopcast.simulator.blocks.scores import context_parallel, flop_per_token, scores
from flopcast.simulator.blocks.transformer import linear as linear_tensors
from flopcast.simulator.model import ParameterTensor

# Queries and keys are put together from the part that RoPE turns and the part that it does not: read and write.
JOIN_FORWARD, JOIN_BACKWARD = Pass(4, 2), Pass(4, 2)


@dataclass(frozen=True)
class LatentAttention:
    """Attention whose keys and values come from ``kv_rank`` features of a token (arXiv:2405.04434, section 2.1).

    A head's queries and keys have ``nope_dim`` features without positions and ``rope_dim`` with them; the latter's key
    is one for all heads. Its values have ``value_dim``. ``query_rank``: queries go through so many features too; 0 is
    one full matrix (DeepSeek-V2-Lite).
    """

    num_heads: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    query_rank: int = 0

    def __post_init__(self) -> None:
        for name in ("num_heads", "kv_rank", "nope_dim", "rope_dim", "value_dim"):
            if getattr(self, name) <= 0:
                raise InputError(f"latent attention {name} is {getattr(self, name)}; it must be positive")
        if self.query_rank < 0:
            raise InputError(f"latent attention query_rank is {self.query_rank}; give a size, or 0 for a full matrix")

    @property
    def kind(self) -> str:
        """Its word in the name of a layer."""
        return "latent"

    @property
    def key_dim(self) -> int:
        """Features of a head's query and key."""
        return self.nope_dim + self.rope_dim

    def kv_heads_per_rank(self, tp: int) -> int:
        """Every query head has keys and values of its own."""
        return self.num_heads // tp

    def check_tensor_parallel(self, tp: int) -> None:
        """Raise InputError unless the heads divide over ``tp`` ranks."""
        if self.num_heads % tp:
            raise InputError(f"tp={tp} does not divide num_heads={self.num_heads}; choose a tp that does")

    def score_flop_per_token(self, seq_len: int, causal: bool) -> float:
        """Forward FLOPs per token of Q K^T and scores x V: 2 Hq (Dk + Dv) keys."""
        return flop_per_token(self.num_heads, self.key_dim, self.value_dim, seq_len, causal)

    def tensors(self, hidden: int) -> tuple[ParameterTensor, ...]:
        """The projections down, which all tensor-parallel ranks hold, their norms, and the projections of the heads."""
        heads = self.num_heads
        tensors: list[ParameterTensor] = []
        if self.query_rank:
            tensors += linear_tensors("q_a", self.query_rank, hidden, "shared", bias=False)
            tensors.append(ParameterTensor("q_a_norm", (self.query_rank,), "shared"))
        tensors += linear_tensors("q_b", heads * self.key_dim, self.query_rank or hidden, "rows", bias=False)
        tensors += linear_tensors("kv_a", self.kv_rank + self.rope_dim, hidden, "shared", bias=False)
        tensors.append(ParameterTensor("kv_a_norm", (self.kv_rank,), "shared"))
        tensors += linear_tensors("kv_b", heads * (self.nope_dim + self.value_dim), self.kv_rank, "rows", bias=False)
        return (*tensors, *linear_tensors("o", hidden, heads * self.value_dim, "columns", bias=False))

    def computations(self, load: Workload) -> list[Computation]:
        """What it does on one micro-batch: for training the heads' keys and values are formed, not absorbed."""
        plans, tokens = load.plans, load.tokens
        heads = self.num_heads / plans.tp
        normed = tokens * load.hidden * ACTIVATION_BYTES
        fused = plans.fused_kernels | plans.compiled
        norm_forward, norm_backward = (
            (norm_cost.FORWARD, norm_cost.EAGER_FORWARD),
            (norm_cost.BACKWARD, norm_cost.EAGER_BACKWARD),
        )
        parts: list[Computation] = []
        kept = normed
        latent = 0
        if self.query_rank:
            parts.append(linear(load, "q_a", load.hidden, self.query_rank, normed, bias=False))
            kept, latent = tokens * self.query_rank * ACTIVATION_BYTES, self.query_rank
        parts.append(linear(load, "q_b", self.query_rank or load.hidden, heads * self.key_dim, kept, bias=False))
        parts.append(
            linear(load, "kv_a", load.hidden, self.kv_rank + self.rope_dim, 0.0, bias=False, shares_input=True)
        )
        latents = tokens * (latent + self.kv_rank)
        parts.append(pointwise("qk_norm", latents, fused, norm_forward, norm_backward, latents * ACTIVATION_BYTES))
        parts.append(
            linear(
                load,
                "kv_b",
                self.kv_rank,
                heads * (self.nope_dim + self.value_dim),
                tokens * self.kv_rank * ACTIVATION_BYTES,
                bias=False,
            )
        )
        turned = tokens * (heads + 1) * self.rope_dim
        rope_forward, rope_backward = (
            (rope_cost.FORWARD, rope_cost.EAGER_FORWARD),
            (rope_cost.BACKWARD, rope_cost.EAGER_BACKWARD),
        )
        parts.append(pointwise("rope", turned, fused, rope_forward, rope_backward, 0.0))
        joined = 2 * tokens * heads * self.key_dim
        parts.append(pointwise("join", joined, plans.compiled, (JOIN_FORWARD,) * 2, (JOIN_BACKWARD,) * 2, 0.0))
        key_value = tokens * heads * (self.key_dim + self.value_dim) * ACTIVATION_BYTES
        parts += context_parallel(load, key_value)
        qkv_bytes = key_value + tokens * heads * self.key_dim * ACTIVATION_BYTES
        parts += scores(load, self.num_heads, self.key_dim, self.value_dim, qkv_bytes)
        return [*parts, linear(load, "o", heads * self.value_dim, load.hidden, 0.0, bias=False)]
