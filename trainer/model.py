"""The decoder, built from the same :class:`~flopcast.simulator.model.Model` that the forecast reads."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from flopcast.errors import InputError
from flopcast.kernels.rope.op import rotary_tables
from flopcast.simulator.blocks.transformer import TransformerBlock
from flopcast.simulator.model import Model, ParameterTensor
from flopcast.simulator.plan import Recompute
from flopcast.trainer.attention import Documents
from flopcast.trainer.block import Block, Linear, Normalisation
from flopcast.trainer.loss import cross_entropy
from flopcast.trainer.numerics import Numerics
from flopcast.trainer.pointwise import Angles, kernels_run
from flopcast.trainer.tensor_parallel import TensorParallel, local


class Decoder(nn.Module):
    """Tokens [B, S] to the loss, or to logits [B, S, V] where no targets are given.

    ``layers`` are the numbers of the layers this module holds (all by default): a pipeline stage that does not begin
    with the first takes hidden states [B, S, D], one that does not end with the last returns them. Of them the first
    ``recompute_layers``, or where 0 all, are computed again in backward as ``recompute`` says. Parameters are created
    on the current device, whole; ``parallel`` says how an engine has split them.
    """

    def __init__(
        self,
        model: Model,
        numerics: Numerics | None = None,
        *,
        parallel: TensorParallel | None = None,
        recompute: Recompute = "none",
        recompute_layers: int = 0,
        fused_kernels: bool = True,
        compiled: bool = False,
        z_loss: float = 0.0,
        layers: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check(model)
        self.model, self.z_loss, self.fused_kernels, self.compiled = model, z_loss, fused_kernels, compiled
        self.numerics = numerics or Numerics()
        self.parallel = parallel or TensorParallel()
        numbers = range(model.num_layers) if layers is None else layers
        self.is_first, self.is_last = numbers[0] == 0, numbers[-1] == model.num_layers - 1
        blocks = {n: _transformer(model, n) for n in numbers}
        first = recompute_layers or len(blocks)
        recomputes: list[Recompute] = [recompute if place < first else "none" for place in range(len(blocks))]
        self.layers = nn.ModuleDict(
            {
                str(n): Block(block, model.hidden, self.numerics, self.parallel, again, fused_kernels, compiled)
                for (n, block), again in zip(blocks.items(), recomputes, strict=True)
            }
        )
        self.rotary_pairs = _rotary_pairs(model, list(blocks.values()))
        self._angle_tables: tuple[torch.Tensor, torch.Tensor] | None = None
        if self.is_first:
            self.embedding = nn.Embedding(model.embedding_rows or model.vocab_size, model.hidden)
            if model.positions == "learned":
                self.positions = nn.Embedding(model.num_positions, model.hidden)
            if model.embedding_norm:
                self.embedding_norm = self._norm()
        if self.is_last:
            if model.final_norm:
                self.norm = self._norm()
            if not model.tied_embeddings:
                self.head = Linear(model.hidden, model.vocab_size, model.head_bias)
            elif model.head_bias:
                self.head_bias = nn.Parameter(torch.empty(model.vocab_size))

    def forward(
        self, x: torch.Tensor, targets: torch.Tensor | None = None, positions: torch.Tensor | Documents | None = None
    ) -> torch.Tensor:
        """``positions`` [B, S] count from 0 in every document of a packed sequence; documents do not see each other."""
        length = self._length(x)
        documents = Documents.of(positions) if isinstance(positions, torch.Tensor) else positions
        positions = None if documents is None else documents.positions
        if self.is_first:
            x = self._embed(x, positions)
        angles = self._angles(length, positions, x.device)
        for layer in self.layers.values():
            x = layer(x, angles, documents)
        if not self.is_last:
            return x
        logits = self._logits(x)
        if targets is None:
            return logits
        return self.loss(logits, targets)

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy of this rank's logits [B, S, V], with z-loss while training (see ``eval()``)."""
        z_loss = self.z_loss if self.training else 0.0
        first_row = self._first_vocabulary_row
        return cross_entropy(
            logits.flatten(0, 1),
            targets.flatten(),
            z_loss,
            self.parallel,
            first_row,
            compiled=self.compiled,
            fused=self.fused_kernels and logits.is_cuda and kernels_run(),
        )

    @property
    def _first_vocabulary_row(self) -> int:
        """The first row of the vocabulary of which this rank computes logits."""
        return self.parallel.rank * -(-self.model.vocab_size // self.parallel.size)

    def _length(self, x: torch.Tensor) -> int:
        """Tokens per sequence over all ranks."""
        return x.shape[1] * (1 if self.is_first or not self.parallel.sequence else self.parallel.size)

    def _embed(self, tokens: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        rows = local(self.embedding.weight)
        if self.parallel.size == 1:
            x = F.embedding(tokens, rows)
        else:
            row = tokens - self.parallel.rank * -(-self.embedding.num_embeddings // self.parallel.size)
            elsewhere = (row < 0) | (row >= len(rows))
            x = F.embedding(row.masked_fill(elsewhere, 0), rows).masked_fill(elsewhere.unsqueeze(-1), 0)
        x = self.parallel.leave(x)
        if self.model.positions == "learned":
            places = torch.arange(tokens.shape[1], device=x.device)[None] if positions is None else positions
            x = x + F.embedding(self.parallel.own_tokens(places), local(self.positions.weight))
        return self.embedding_norm(x) if self.model.embedding_norm else x

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        if self.model.final_norm:
            x = self.norm(x)
        x = self.parallel.enter(x)
        if not self.model.tied_embeddings:
            logits: torch.Tensor = self.head(x)
            return logits
        bias = local(self.head_bias) if self.model.head_bias else None
        return F.linear(x, local(self.embedding.weight), bias)

    def _angles(self, length: int, positions: torch.Tensor | None, device: torch.device) -> Angles | None:
        if self.rotary_pairs == 0:
            return None
        tables = self._angle_tables
        if tables is None or len(tables[0]) < length or tables[0].device != device:
            constants = self.numerics
            tables = rotary_tables(2 * self.rotary_pairs, length, constants.rope_theta, device, constants.rope_scaling)
            self._angle_tables = tables
        return Angles(*tables, positions)

    def _norm(self) -> Normalisation:
        model = self.model
        return Normalisation(model.hidden, model.norm, model.norm_bias, self.numerics.norm_eps, self.fused_kernels)


def parameter_tensors(model: Model) -> dict[str, ParameterTensor]:
    """Every parameter of the decoder by the name the module gives it, as the forecast counts it."""
    tensors = {_parameter_name(tensor): tensor for tensor in model.root_tensors()}
    if model.tied_embeddings and "head.bias" in tensors:
        tensors["head_bias"] = tensors.pop("head.bias")
    for number in range(model.num_layers):
        for tensor in model.layers[number].tensors(model.hidden):
            tensors[f"layers.{number}.{_parameter_name(tensor)}"] = tensor
    return tensors


def _parameter_name(tensor: ParameterTensor) -> str:
    return tensor.name if tensor.name.endswith((".weight", ".bias")) else f"{tensor.name}.weight"


def check(model: Model) -> None:
    """Raise InputError for what the forecast knows and the trainer does not."""
    if model.positions == "alibi":
        raise InputError(f"model '{model.name}' has ALiBi positions, which the trainer lacks; use rotary or learned")
    if model.embedding_rows not in (0, model.vocab_size) and model.tied_embeddings:
        raise InputError(
            f"model '{model.name}' ties a head of {model.vocab_size} rows to an embedding of {model.embedding_rows}; "
            "give both the same rows to train it"
        )
    for number in range(model.num_layers):
        _transformer(model, number)


def _transformer(model: Model, number: int) -> TransformerBlock:
    block = model.layers[number]
    if not isinstance(block, TransformerBlock):
        raise InputError(f"model '{model.name}': layer {number} is of the kind {block.kind}, which the trainer lacks")
    return block


def _rotary_pairs(model: Model, blocks: Sequence[TransformerBlock]) -> int:
    """Pairs of features of a head that RoPE turns: the same in every layer."""
    if model.positions != "rotary":
        return 0
    pairs = {int(block.attention.head_dim * block.attention.rotary_share) // 2 for block in blocks}
    if len(pairs) > 1:
        raise InputError(f"model '{model.name}': its layers turn {sorted(pairs)} pairs of features; give all the same")
    return pairs.pop()
