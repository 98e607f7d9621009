"""The transformer block as a module, its parameters those of ``TransformerBlock.tensors``."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from flopcast.errors import InputError
from flopcast.simulator.blocks.transformer import TransformerBlock
from flopcast.simulator.model import Norm
from flopcast.simulator.plan import Recompute
from flopcast.trainer import pointwise
from flopcast.trainer.attention import VARIED_LENGTH_OPERATOR, Documents, attend
from flopcast.trainer.numerics import Numerics
from flopcast.trainer.pointwise import Angles
from flopcast.trainer.tensor_parallel import TensorParallel, local

# What selective recompute keeps: the results of matrix products and of attention.
_KEPT = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    VARIED_LENGTH_OPERATOR,
}


class Linear(nn.Module):
    """x W^T + b with W [out, in] on the device that is current; ``product`` leaves the bias to the caller."""

    def __init__(self, num_in: int, num_out: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_out, num_in))
        self.bias = nn.Parameter(torch.empty(num_out)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X W^T + b."""
        return F.linear(x, local(self.weight), None if self.bias is None else local(self.bias))

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """X W^T: a partial sum where tensor-parallel ranks share the columns of W."""
        return F.linear(x, local(self.weight))


class Normalisation(nn.Module):
    """RMSNorm or LayerNorm over the last dimension."""

    def __init__(self, size: int, kind: Norm, bias: bool, eps: float, fused: bool) -> None:
        super().__init__()
        self.kind, self.eps, self.fused = kind, eps, fused
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size)) if bias and kind == "layernorm" else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Every row of ``x`` normalised."""
        weight = local(self.weight)
        if self.kind == "rmsnorm":
            return pointwise.rms_norm(x, weight, self.eps, self.fused)
        return F.layer_norm(x, weight.shape, weight, None if self.bias is None else local(self.bias), self.eps)


class Block(nn.Module):
    """One layer: [B, S, D] to [B, S, D], or this rank's tokens of it under sequence parallelism."""

    def __init__(
        self,
        block: TransformerBlock,
        hidden: int,
        numerics: Numerics,
        parallel: TensorParallel,
        recompute: Recompute,
        fused: bool,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        attention, mlp = block.attention, block.mlp
        _check(block)
        self.block, self.parallel, self.recompute, self.fused = block, parallel, recompute, fused
        self.activation, self.compiled = numerics.activation_of(mlp.gated), compiled
        self._compute = torch.compile(self.compute) if compiled else self.compute
        for index in range(block.num_norms):
            norm = Normalisation(hidden, block.norm, block.norm_bias, numerics.norm_eps, fused)
            self.add_module(f"norm{index + 1}", norm)
        query, key = attention.num_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim
        if attention.fused_qkv:
            self.qkv = Linear(hidden, query + 2 * key, attention.qkv_bias)
        else:
            self.q = Linear(hidden, query, attention.qkv_bias)
            self.k = Linear(hidden, key, attention.qkv_bias)
            self.v = Linear(hidden, key, attention.qkv_bias)
        if attention.qk_norm:
            self.q_norm = Normalisation(attention.head_dim, "rmsnorm", False, numerics.norm_eps, fused)
            self.k_norm = Normalisation(attention.head_dim, "rmsnorm", False, numerics.norm_eps, fused)
        self.o = Linear(query, hidden, attention.output_bias)
        if mlp.gated:
            self.gate = Linear(hidden, mlp.intermediate, mlp.bias)
        self.up = Linear(hidden, mlp.intermediate, mlp.bias)
        self.down = Linear(mlp.intermediate, hidden, mlp.bias)

    def forward(
        self, x: torch.Tensor, angles: Angles | None = None, documents: Documents | None = None
    ) -> torch.Tensor:
        """[B, S, D] to [B, S, D]; what backward needs is kept, or computed again, as ``recompute`` says."""
        if self.recompute == "none" or not torch.is_grad_enabled():
            return self._compute(x, angles, documents)
        context: dict[str, Any] = {}
        if self.recompute == "selective":
            context["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_products)
        y: torch.Tensor = checkpoint(self._compute, x, angles, documents, use_reentrant=False, **context)
        return y

    def compute(self, x: torch.Tensor, angles: Angles | None, documents: Documents | None) -> torch.Tensor:
        """The layer, in parallel or in sequence, with post-norms where the block has four norms."""
        norms = [self.get_submodule(f"norm{index + 1}") for index in range(self.block.num_norms)]
        enter, leave = self.parallel.enter, self.parallel.leave
        if self.block.parallel:
            if len(norms) == 1:
                first = second = enter(norms[0](x))
            else:  # entering before the norms, one exchange serves both
                entered = enter(x)
                first, second = norms[0](entered), norms[1](entered)
            branches = self.attention(first, angles, documents) + self.mlp(second)
            return x + self._biased(leave(branches), self.o, self.down)
        post = norms[1::2] if len(norms) == 4 else [nn.Identity(), nn.Identity()]
        before = norms[::2] if len(norms) == 4 else norms
        x = x + post[0](self._biased(leave(self.attention(enter(before[0](x)), angles, documents)), self.o))
        y: torch.Tensor = x + post[1](self._biased(leave(self.mlp(enter(before[1](x)))), self.down))
        return y

    def attention(self, x: torch.Tensor, angles: Angles | None, documents: Documents | None) -> torch.Tensor:
        """Attention of this rank's heads, projected back to [B, S, D] without the bias."""
        q, k, v = self._heads(x)
        k, v = self._of_own_queries(k, q.shape[2]), self._of_own_queries(v, q.shape[2])
        if self.block.attention.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = pointwise.rope(q, k, angles, self.fused)
        out = attend(q, k, v, self.block.attention.window, documents)
        return self.o.product(out.flatten(2))

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        """The MLP of this rank's features, projected back to [B, S, D] without the bias."""
        if self.block.mlp.gated:
            gate, up = self.gate(x), self.up(x)
            if self.compiled:  # the compiler fuses the product and finds by itself that its two inputs suffice
                return self.down.product(pointwise.gated_by_parts(gate, up, self.activation))
            return self.down.product(pointwise.gated(gate, up, self.activation, self.fused))
        return self.down.product(pointwise.activate(self.up(x), self.activation))

    def _heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        size = self.block.attention.head_dim
        if not self.block.attention.fused_qkv:
            q, k, v = [linear(x).unflatten(-1, (-1, size)) for linear in (self.q, self.k, self.v)]
            return q, k, v
        # One group after another: the query heads of a key/value head, then its key, then its value.
        group = self.block.attention.num_heads // self.block.attention.num_kv_heads
        groups = self.qkv(x).unflatten(-1, (-1, group + 2, size))
        q, k, v = groups.split((group, 1, 1), dim=3)
        return q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3)

    def _of_own_queries(self, heads: torch.Tensor, num_queries: int) -> torch.Tensor:
        """Where every rank projects all key/value heads: one head for each of this rank's query heads."""
        attention = self.block.attention
        if not kv_replicated(self.block, self.parallel.size):
            return heads
        group = attention.num_heads // attention.num_kv_heads
        first = self.parallel.rank * num_queries
        # A list as an index would travel to the GPU at every call, and the host would wait for it.
        dealt = range(first // group, (first + num_queries - 1) // group + 1)
        shares = [min((head + 1) * group, first + num_queries) - max(head * group, first) for head in dealt]
        own = [heads[:, :, head : head + 1].expand(-1, -1, n, -1) for head, n in zip(dealt, shares, strict=True)]
        return torch.cat(own, dim=2)

    def _biased(self, x: torch.Tensor, *linears: Linear) -> torch.Tensor:
        for linear in linears:
            if linear.bias is not None:
                x = x + local(linear.bias)
        return x


def kv_replicated(block: TransformerBlock, tp: int) -> bool:
    """Whether each of ``tp`` ranks holds all key/value heads: where they cannot be dealt out evenly, as PLaMo's 5."""
    attention = block.attention
    return tp > 1 and (attention.num_kv_heads % tp > 0 or attention.kv_heads_per_rank(tp) == attention.num_kv_heads)


def _keep_products(_context: Any, operator: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def _check(block: TransformerBlock) -> None:
    allowed: Iterable[int] = (1, 2) if block.parallel else (2, 4)
    if block.num_norms not in allowed:
        kind = "parallel" if block.parallel else "sequential"
        raise InputError(f"a {kind} block with num_norms={block.num_norms} cannot be trained; give it 2 norms")
    if block.attention.chunk:
        raise InputError("a block that attends in chunks cannot be trained, only forecast")
    if block.post_norm or block.attention.sinks:
        feature = "norms behind its parts (post_norm)" if block.post_norm else "scores of its own (sinks)"
        raise InputError(f"a block with {feature} cannot be trained, only forecast")
    if block.attention.qk_norm_per_head:
        raise InputError("qk_norm_per_head: the trainer norms all heads with the same weights; set qk_norm instead")
