"""One rank's share of a training run: forward and backward of micro-batches, and the optimizer's step."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate

from flopcast.errors import InputError
from flopcast.simulator.plan import Plan
from flopcast.trainer.attention import Documents
from flopcast.trainer.engine import gradients, weights
from flopcast.trainer.engine.mesh import PIPELINE, TENSOR, Ranks
from flopcast.trainer.engine.settings import OptimizerSettings
from flopcast.trainer.engine.split import unfinished_gradients
from flopcast.trainer.model import Decoder, parameter_tensors
from flopcast.trainer.transfer import to_device


class Passes(Protocol):
    """How micro-batches go through a sharded module: at once, or in a pipeline."""

    def train(
        self, tokens: torch.Tensor, targets: torch.Tensor, documents: Documents | None, weight: float, is_last: bool
    ) -> torch.Tensor:
        """One micro-batch of a step, forward and backward; its loss times ``weight``."""

    def evaluate(self, tokens: torch.Tensor, targets: torch.Tensor, documents: Documents | None) -> torch.Tensor:
        """The loss without gradients."""

    def release(self) -> None:
        """Drop gathered copies, so that the next pass sees the parameters as they are now."""


class Engine:
    """A sharded decoder and its optimizer. Made by :func:`flopcast.trainer.engine.build`.

    ``module`` holds this rank's shards in fp32 as DTensors; ``mesh`` is pipeline x replicas x shards x tensor. Losses
    are this rank's own; :attr:`data_rank` of :attr:`data_ranks` says which sequences it reads.
    """

    def __init__(self, module: Decoder, passes: Passes, plan: Plan, ranks: Ranks, settings: OptimizerSettings) -> None:
        self.module: nn.Module = module
        self.plan = plan
        self.settings = settings
        self._passes = passes
        self._model = module.model
        self.ranks = ranks
        self._micro_batches = 0
        named = dict(module.named_parameters())
        decaying = [p for p in named.values() if p.ndim > 1]
        others = [p for p in named.values() if p.ndim == 1]
        groups = [{"params": decaying, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            fused=True,
        )
        unfinished = unfinished_gradients(module.model, plan.tp, plan.sequence_parallel)
        self._unfinished = [parameter for name, parameter in named.items() if name in unfinished]

    @property
    def mesh(self) -> DeviceMesh:
        """All ranks of the job."""
        return self.ranks.mesh

    @property
    def data_rank(self) -> int:
        """Which of ``data_ranks`` this is; ranks that share layers or a pipeline have the same."""
        return self.ranks.data_rank

    @property
    def data_ranks(self) -> int:
        """Ranks that each read their own sequences."""
        return self.plan.dp

    def accumulate(
        self,
        tokens: torch.Tensor,
        targets: torch.Tensor,
        positions: torch.Tensor | None = None,
        *,
        is_last: bool,
        weight: float = 1.0,
    ) -> torch.Tensor:
        """Forward and backward of one of the plan's ``grad_accum`` micro-batches; ``weight`` x its mean loss, detached.

        The gradient is that of the mean of these over the step's micro-batches on all data ranks; a ``weight`` of a
        micro-batch's counted targets over their mean makes it the mean over the step's counted targets.

        ``tokens``, ``targets`` int64 [B, S]; targets of -100 do not count. ``positions`` [B, S] count from 0 in every
        document of a packed sequence. All may be on the host: they travel while the device works. In a pipeline all
        micro-batches run when the last one comes, and its call returns the sum of their losses, the others 0.
        """
        self._micro_batches += 1
        if is_last != (self._micro_batches == self.plan.grad_accum):
            raise InputError(
                f"micro-batch {self._micro_batches} of the plan's grad_accum={self.plan.grad_accum} came with "
                f"is_last={is_last}; give exactly grad_accum micro-batches per step"
            )
        return self._passes.train(*self._inputs(tokens, targets, positions), weight, is_last)

    def step(self, lr: float | None = None) -> torch.Tensor:
        """Clip, update and forget the gradients; returns their norm over the whole model before clipping, fp32."""
        if self._micro_batches != self.plan.grad_accum:
            raise InputError(
                f"step after {self._micro_batches} of grad_accum={self.plan.grad_accum} micro-batches; accumulate all"
            )
        self._micro_batches = 0
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr if lr is None else lr
        if self._unfinished:
            gradients.sum_over_tensor_ranks(self._unfinished, self.ranks.group(TENSOR))
        found = gradients.gradients(self.module.parameters())
        norm = gradients.clip(found, self.settings.max_grad_norm, self._device)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    @torch.no_grad()
    def evaluate(
        self, tokens: torch.Tensor, targets: torch.Tensor, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The mean cross-entropy of one micro-batch, without z-loss or gradients; every rank of the job takes part."""
        self.module.eval()
        try:
            return self._passes.evaluate(*self._inputs(tokens, targets, positions))
        finally:
            self.module.train()
            self._passes.release()

    def state(self) -> dict[str, Any]:
        """``model`` and ``optimizer``, flat dictionaries of DTensors and numbers by parameter name.

        For torch.distributed.checkpoint: fit to be loaded on another number of ranks and under another strategy. The
        optimizer's entries exist from before the first step.
        """
        self._passes.release()
        options = StateDictOptions(flatten_optimizer_state_dict=True)
        return {
            "model": get_model_state_dict(self.module),
            "optimizer": get_optimizer_state_dict(self.module, self.optimizer, options=options),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over a state of the form that :meth:`state` gives, as loaded for this rank."""
        self._passes.release()
        set_model_state_dict(self.module, state["model"])
        options = StateDictOptions(flatten_optimizer_state_dict=True)
        set_optimizer_state_dict(self.module, self.optimizer, state["optimizer"], options=options)

    def load_weights(self, whole: Mapping[str, torch.Tensor]) -> None:
        """Copy this rank's parts of whole tensors by parameter name, such as a Hugging Face checkpoint."""
        self._passes.release()
        weights.load(self.module, self._model, self.ranks, whole)

    def whole_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter of the model, whole, one at a time and on every rank; every rank of the job takes part."""
        self._passes.release()
        own = dict(self.module.named_parameters())
        tensors = parameter_tensors(self._model)
        for name, stage in zip(tensors, self._stages_of(list(tensors)), strict=True):
            if name in own:
                shard = own[name].detach()
                assert isinstance(shard, DTensor)
                # Dimension by dimension, as one redistribution of several makes PyTorch warn on every rank.
                for done in range(1, shard.device_mesh.ndim + 1):
                    shard = shard.redistribute(placements=[Replicate()] * done + list(shard.placements[done:]))
                whole = shard.to_local()
            else:
                whole = torch.empty(tensors[name].shape, device=self._device)
            if self.plan.pp > 1:
                dist.broadcast(whole, group=self.ranks.group(PIPELINE), group_src=stage)
            yield name, whole

    def _stages_of(self, names: list[str]) -> list[int]:
        """The pipeline stage that holds each parameter."""
        if self.plan.pp == 1:
            return [0] * len(names)
        own = {name for name, _ in self.module.named_parameters()}
        stage = self.ranks.place(PIPELINE)
        held = torch.tensor([stage if name in own else self.plan.pp for name in names], device=self._device)
        dist.all_reduce(held, dist.ReduceOp.MIN, group=self.ranks.group(PIPELINE))
        return [int(number) for number in held.tolist()]

    def _inputs(
        self, tokens: torch.Tensor, targets: torch.Tensor, positions: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, Documents | None]:
        """On the device. Documents are looked for before positions travel, so that the GPU need not be waited for."""
        device = self._device
        documents = None if positions is None else Documents.of(positions).to(device)
        return to_device(tokens, device), to_device(targets, device), documents

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device


class WholePasses:
    """A module that holds all layers: forward and backward of one micro-batch after another."""

    def __init__(self, module: Decoder, sharding: "Sharding", num_micro_batches: int) -> None:
        self.module, self.sharding, self.num_micro_batches = module, sharding, num_micro_batches

    def train(
        self, tokens: torch.Tensor, targets: torch.Tensor, documents: Documents | None, weight: float, is_last: bool
    ) -> torch.Tensor:
        """One micro-batch; its share of the step's loss goes backward."""
        self.sharding.before(is_last)
        loss: torch.Tensor = self.module(tokens, targets, documents) * weight
        (loss / self.num_micro_batches).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def evaluate(self, tokens: torch.Tensor, targets: torch.Tensor, documents: Documents | None) -> torch.Tensor:
        """The loss without gradients."""
        loss: torch.Tensor = self.module(tokens, targets, documents)
        return loss

    def release(self) -> None:
        """Drop gathered copies."""
        self.sharding.release()


class Sharding(Protocol):
    """What decides, micro-batch by micro-batch, what is gathered, kept and reduced."""

    def before(self, is_last: bool) -> None:
        """Set up for the next micro-batch of a step."""

    def release(self) -> None:
        """Drop gathered copies."""
