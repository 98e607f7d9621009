"""softmax(Q K^T) V for any number and size of heads, and what context parallelism exchanges for it."""

from dataclasses import dataclass

import numpy as np

from flopcast.collectives.group import FloatArray
from flopcast.simulator import placement
from flopcast.simulator.blocks.computation import Computation, Workload
from flopcast.simulator.engines import has_habit
from flopcast.simulator.operation import Array, AttentionCore, Collective, Pointwise

# Unfused attention, bytes per score: write, mask and softmax, dropout, read; and the same with gradients backward.
SCORES_FORWARD, SCORES_BACKWARD, SCORES_SAVED = 12, 16, 5
FLASH_KERNELS, UNFUSED_KERNELS = (1.0, 3.0), (5.0, 8.0)


@dataclass(frozen=True)
class Reach:
    """How far a token attends: to the whole sequence, to ``window`` tokens up to itself, or within its ``chunk``."""

    window: int | None = None
    chunk: int | None = None

    def keys(self, seq_len: FloatArray, causal: bool = True) -> Array:
        """Mean number of tokens that one attends to, of S: under the causal mask S/2, or w - w^2/2S in a window of w.

        Of chunks of C, floor(S/C) are whole and one has the rest r: (C^2 floor(S/C) + r^2) / 2S. By the full convention
        the mask hides nothing: S, w, and twice that of chunks.
        """
        length = np.asarray(seq_len, dtype=np.float64)
        if self.chunk:
            chunks, rest = np.divmod(length, self.chunk)
            squares: Array = (chunks * self.chunk**2 + rest**2) / length
            return squares / 2 if causal else squares
        window = np.minimum(length, self.window or np.inf)
        return window - window**2 / (2 * length) if causal else window

    def span(self, seq_len: FloatArray) -> Array:
        """Most tokens that one attends to."""
        return np.asarray(np.minimum(seq_len, self.chunk or self.window or np.inf))


EVERYTHING = Reach()


def flop_per_token(
    num_heads: int, key_dim: int, value_dim: int, seq_len: int, causal: bool, reach: Reach = EVERYTHING
) -> float:
    """Forward FLOPs per token of Q K^T and scores x V: 2 Hq (Dk + Dv) keys, :meth:`Reach.keys` of them."""
    return 2.0 * num_heads * (key_dim + value_dim) * float(reach.keys(seq_len, causal))


def scores(
    load: Workload, num_heads: int, key_dim: int, value_dim: int, qkv_bytes: Array, reach: Reach = EVERYTHING
) -> list[Computation]:
    """softmax(Q K^T) V. A flash kernel skips what the mask hides; unfused computes and stores every score.

    FLOPs forward: 2 T keys Hq (Dk + Dv) / tp, keys those of ``reach`` under the causal mask. A flash backward redoes
    Q K^T and has four products more, two over Dk and two over Dv. ``qkv_bytes``: queries, keys and values, which are
    kept with the result.
    """
    plans = load.plans
    unfused = plans.has(attention="unfused")
    length = plans.seq_len.astype(np.float64)
    attended_to = np.where(unfused, length, reach.span(length))
    keys = np.where(unfused, length, reach.keys(length))
    heads = num_heads / plans.tp
    flop = 2 * load.tokens * keys * heads * (key_dim + value_dim)
    num_scores = load.tokens * length * heads
    head_dim = plans.zeros + (key_dim + value_dim) / 2

    def core(share: Array | float, backward: bool) -> AttentionCore:
        return AttentionCore(flop * share, plans.attention, head_dim, attended_to, backward)

    attended = load.tokens * heads * value_dim * 2  # also the input of the output projection
    log_sum = 4 * load.tokens * heads
    kept = qkv_bytes + attended + np.where(unfused, 0.0, log_sum)
    redone = np.where(unfused, 0.0, key_dim / (key_dim + value_dim))
    return [
        Computation(
            "attention",
            core(1.0, backward=False),
            (core(2.0 + redone, backward=True),),
            np.where(unfused, UNFUSED_KERNELS[0], FLASH_KERNELS[0]),
            np.where(unfused, UNFUSED_KERNELS[1], FLASH_KERNELS[1]),
            kept,
            np.where(unfused, 0.0, attended + log_sum),
            selective=unfused,
        ),
        Computation(
            "scores",
            Pointwise(num_scores * SCORES_FORWARD, counted=True),
            (Pointwise(num_scores * SCORES_BACKWARD, counted=True),),
            0.0,
            0.0,
            num_scores * SCORES_SAVED,
            selective=True,
            in_attention=True,
            present=unfused,
        ),
    ]


def context_parallel(load: Workload, shared_bytes: Array) -> list[Computation]:
    """Every context-parallel rank needs what all hold: gathered forward and again backward, gradients summed back.

    ``shared_bytes``: one rank's part, such as its keys and values, in 16 bits. PyTorch holds all parts at once, and
    passes their gradients around in fp32 and home again, one hop more than a reduce-scatter has
    (torch/distributed/tensor/experimental/_attention.py, 2.6: _AllGatherRotater, convert_to_f32). A ring that hides
    its hops holds two parts.
    """
    plans = load.plans
    group = placement.group(plans.cp, plans.tp, load.gpus_per_node, plans.num_gpus)
    hidden = has_habit("hides_context", plans.engine)
    whole = shared_bytes * plans.cp
    hops = plans.cp / np.maximum(plans.cp - 1, 1)
    summed = whole * np.where(hidden, 1.0, 2.0 * hops)

    def work(collective: str, tensor_bytes: Array) -> Collective:
        return Collective(collective, tensor_bytes, group, "cp", "context")

    gather = work("all_gather", whole)
    # Backward one more part is in fp32 on its way, and one is added to.
    held = np.where(hidden, 4.0, plans.cp + 4.0) * shared_bytes * (plans.cp > 1)
    backward = (gather, work("reduce_scatter", summed))
    return [Computation("context", gather, backward, 1.0, 2.0, backward_bytes=held, present=plans.cp > 1)]
