"""Selective state spaces: a linear recurrence over the sequence whose coefficients depend on the token (Mamba)."""

from dataclasses import dataclass

import numpy as np

from flopcast.errors import InputError
from flopcast.kernels.pointwise import Pass
from flopcast.kernels.rmsnorm import cost as norm_cost
from flopcast.simulator import placement
from flopcast.simulator.blocks.computation import ACTIVATION_BYTES, Computation, Workload, linear, pointwise
from flopcast.simulator.blocks.transformer import linear as linear_tensors
from flopcast.simulator.blocks.transformer_pass import GATED_EAGER, GATED_FUSED
from flopcast.simulator.model import ParameterTensor
from flopcast.simulator.operation import Array, Collective, Gemm

# causal_conv1d with its SiLU: read and write x; backward reads x and dy, writes dx, and sums dw.
CONVOLUTION_FORWARD, CONVOLUTION_BACKWARD = Pass(4, 1), Pass(6, 1)
# The states between chunks, fp32: read each and write the one carried on; backward the states and their gradients.
CARRY_FORWARD, CARRY_BACKWARD = Pass(8, 1), Pass(16, 1)
STATE_BYTES = 4


@dataclass(frozen=True)
class StateSpace:
    """``num_heads`` states of (``head_dim``, ``state_dim``), each decaying and driven as the token says.

    As in PLaMo 2 (pfnet/plamo-2-1b, modeling_plamo.py), Mamba-2's scan (arXiv:2405.21060) with Mamba's projection to
    step, input and output vectors (arXiv:2312.00752): ``rank`` features make the heads' steps, and B and C are shared
    by all heads. ``convolution``: tokens that the convolution before the scan sees. The scan goes through the
    sequence in chunks of ``chunk`` tokens, within which it is matrix products.
    """

    num_heads: int
    head_dim: int
    state_dim: int
    rank: int
    convolution: int = 4
    chunk: int = 256

    def __post_init__(self) -> None:
        for name in ("num_heads", "head_dim", "state_dim", "rank", "convolution", "chunk"):
            if getattr(self, name) <= 0:
                raise InputError(f"state space {name} is {getattr(self, name)}; it must be positive")

    @property
    def kind(self) -> str:
        """Its word in the name of a layer."""
        return "state-space"

    @property
    def inner(self) -> int:
        """Features that the scan works on."""
        return self.num_heads * self.head_dim

    def kv_heads_per_rank(self, tp: int) -> int:
        """It has no keys and values; as many as heads."""
        return self.num_heads // tp

    def check_tensor_parallel(self, tp: int) -> None:
        """Raise InputError unless the heads divide over ``tp`` ranks."""
        if self.num_heads % tp:
            raise InputError(
                f"tp={tp} does not divide the state space's num_heads={self.num_heads}; choose a tp that does"
            )

    def score_flop_per_token(self, seq_len: int, causal: bool) -> float:
        """Forward FLOPs per token of the recurrence itself: 4 H P N, driving the states and reading them out."""
        return 4.0 * self.inner * self.state_dim

    def tensors(self, hidden: int) -> tuple[ParameterTensor, ...]:
        """Projections in (x and gate), to step, B and C, of the steps, and out; convolution, decays, norms."""
        heads, narrow = self.num_heads, self.rank + 2 * self.state_dim
        return (
            *linear_tensors("in", 2 * self.inner, hidden, "rows", bias=False),
            ParameterTensor("convolution", (self.inner, self.convolution), "rows"),
            *linear_tensors("bcdt", narrow, self.inner, "columns", bias=False),
            *linear_tensors("dt", heads, self.rank, "rows", bias=False),
            *(ParameterTensor(name, (heads,), "rows") for name in ("dt_bias", "a_log", "d")),
            ParameterTensor("dt_norm", (self.rank,), "shared"),
            *(ParameterTensor(name, (self.state_dim,), "shared") for name in ("b_norm", "c_norm")),
            *linear_tensors("out", hidden, self.inner, "columns", bias=False),
        )

    def computations(self, load: Workload) -> list[Computation]:
        """What it does on one micro-batch."""
        plans, tokens = load.plans, load.tokens
        inner, narrow = self.inner / plans.tp, self.rank + 2 * self.state_dim
        fused = plans.fused_kernels | plans.compiled
        features = tokens * inner
        norm_forward, norm_backward = (
            (norm_cost.FORWARD, norm_cost.EAGER_FORWARD),
            (norm_cost.BACKWARD, norm_cost.EAGER_BACKWARD),
        )
        convolved = (CONVOLUTION_FORWARD,) * 2, (CONVOLUTION_BACKWARD,) * 2
        gated = (GATED_FUSED[0], GATED_EAGER[0]), (GATED_FUSED[1], GATED_EAGER[1])
        # What each piece reads again backward is counted where it is read; the gate's half of the first projection
        # with the gate.
        half = features * ACTIVATION_BYTES
        small = tokens * narrow
        return [
            linear(load, "in", load.hidden, 2 * inner, load.normed_bytes, bias=False),
            pointwise("convolution", features, fused, *convolved, half),
            linear(load, "bcdt", inner, narrow, half, bias=False),
            self._sum(load, small * ACTIVATION_BYTES),
            pointwise("bcdt_norm", small, fused, norm_forward, norm_backward, small * ACTIVATION_BYTES),
            linear(load, "dt", self.rank, self.num_heads / plans.tp, small * ACTIVATION_BYTES, bias=False),
            self._hand_on(load),
            *self._scan(load),
            pointwise("gating", features, fused, *gated, 2 * half, half),
            linear(load, "out", inner, load.hidden, half, bias=False),
        ]

    def _scan(self, load: Workload) -> list[Computation]:
        """The recurrence in chunks of Q tokens (arXiv:2405.21060, section 6), for each chunk and head of P features.

        C B^T, (Q, N) x (N, Q), once for all heads; its masked and decayed product with x, (Q, Q) x (Q, P); the states
        that x leaves, (N, Q) x (Q, P); what they give the next chunk, (Q, N) x (N, P); and the carry from chunk to
        chunk. The backward forms C B^T and the states again (mamba_ssm, ops/triton/ssd_combined.py).
        """
        plans = load.plans
        size = np.minimum(self.chunk, plans.seq_len).astype(np.float64)
        chunks = load.tokens / size
        heads = chunks * self.num_heads / plans.tp
        features, states = plans.zeros + self.head_dim, plans.zeros + self.state_dim
        fp8 = plans.zeros > 0

        def product(name: str, m: Array, n: Array, k: Array, number: Array, redone: bool) -> Computation:
            forward = Gemm(m, n, k, fp8, number)
            backward = (Gemm(m, k, n, fp8, number), Gemm(k, n, m, fp8, number))
            again = (forward,) if redone else ()
            return Computation(name, forward, backward + again, 1.0, float(len(backward + again)))

        carried = heads * self.head_dim * self.state_dim
        never = plans.zeros > 0
        return [
            product("scan.inputs", size, size, states, chunks, redone=True),
            product("scan.within", size, features, size, heads, redone=False),
            product("scan.states", states, features, size, heads, redone=True),
            product("scan.outputs", size, features, states, heads, redone=False),
            pointwise("scan.carry", carried, never, (CARRY_FORWARD,) * 2, (CARRY_BACKWARD,) * 2, 0.0),
        ]

    def _sum(self, load: Workload, small_bytes: Array) -> Computation:
        """Each tensor-parallel rank has part of the features from which step, B and C come: summed over them."""
        work = Collective("all_reduce", small_bytes, load.tensor_group, "tp", "tensor")
        return Computation("bcdt_sum", work, (work,), 1.0, 1.0, present=load.plans.tp > 1)

    def _hand_on(self, load: Workload) -> Computation:
        """Context-parallel ranks need the states that the tokens before theirs leave: all have all of them."""
        plans = load.plans
        group = placement.group(plans.cp, plans.tp, load.gpus_per_node, plans.num_gpus)
        states = plans.micro_batch * self.inner / plans.tp * self.state_dim * STATE_BYTES
        work = Collective("all_gather", states * plans.cp, group, "cp", "context")
        back = Collective("reduce_scatter", states * plans.cp, group, "cp", "context")
        return Computation("states", work, (back,), 1.0, 1.0, present=plans.cp > 1)
