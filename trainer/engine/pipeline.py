"""A pipeline of stages on torch.distributed.pipelining: all micro-batches of a step run when the last one has come."""

from collections import deque
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from flopcast.simulator.plan import Plan
from flopcast.trainer.attention import Documents
from flopcast.trainer.engine.engine import Sharding
from flopcast.trainer.engine.mesh import PIPELINE, Ranks
from flopcast.trainer.model import Decoder


class PipelinePasses:
    """The passes of one stage. Losses come from the last stage and are the same on every rank of a pipeline."""

    def __init__(self, module: Decoder, sharding: Sharding, plan: Plan, ranks: Ranks, dtype: torch.dtype) -> None:
        self.module, self.sharding, self.plan = module, sharding, plan
        self._group = ranks.group(PIPELINE)
        self._stage_index = ranks.place(PIPELINE)
        self._dtype = dtype
        self._waiting: list[tuple[torch.Tensor, torch.Tensor, Documents | None]] = []
        self._schedules: dict[bool, PipelineScheduleSingle] = {}
        self._stages: dict[bool, PipelineStage] = {}
        self._documents: deque[Documents] = deque()  # of the micro-batches that this stage has not begun
        self._weights: deque[float] = deque()  # of those whose loss has not been worked out, where this stage does it
        module.register_forward_pre_hook(self._with_documents, with_kwargs=True)

    def train(
        self, tokens: torch.Tensor, targets: torch.Tensor, documents: Documents | None, weight: float, is_last: bool
    ) -> torch.Tensor:
        """Keep a micro-batch; with the last one run them all. Returns the sum of their losses then, else 0."""
        self._waiting.append((tokens, targets, documents))
        self._weights.append(weight)
        if not is_last:
            return torch.zeros((), device=tokens.device)
        batch, self._waiting = self._waiting, []
        self.sharding.before(is_last=True)
        return self._run(batch, training=True)

    def evaluate(self, tokens: torch.Tensor, targets: torch.Tensor, documents: Documents | None) -> torch.Tensor:
        """The loss of one micro-batch, forward only."""
        self._weights.append(1.0)
        return self._run([(tokens, targets, documents)], training=False)

    def release(self) -> None:
        """Drop gathered copies."""
        self.sharding.release()

    def _run(self, batch: list[tuple[torch.Tensor, torch.Tensor, Documents | None]], training: bool) -> torch.Tensor:
        tokens = torch.cat([tokens for tokens, _, _ in batch])
        targets = torch.cat([targets for _, targets, _ in batch])
        self._documents.extend(documents for _, _, documents in batch if documents is not None)
        schedule = self._schedule(training, batch[0][0])
        keywords: dict[str, Any] = {}
        losses: list[torch.Tensor] = []
        if self.module.is_last:
            keywords = {"target": targets, "losses": losses}
        run = cast("Callable[..., Any]", schedule.step if training else schedule.eval)
        inputs = (tokens,) if self.module.is_first else ()
        run(*inputs, **keywords, **({"return_outputs": False} if training else {}))
        self._weights.clear()  # no other stage has losses
        if training:
            self._share_buffers(self._stages[training])
        total = torch.stack(losses).detach().sum() if losses else torch.zeros((), device=tokens.device)
        dist.broadcast(total, group=self._group, group_src=self.plan.pp - 1)
        return total

    def _with_documents(self, _module: Decoder, inputs: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """A stage begins micro-batches in order. PyTorch would cut tensors, in which to find documents is to wait."""
        return inputs, keywords | {"positions": self._documents.popleft()} if self._documents else keywords

    def _loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.module.loss(logits, targets) * self._weights.popleft()

    def _schedule(self, training: bool, tokens: torch.Tensor) -> PipelineScheduleSingle:
        """Made once: the shapes that pass between the stages are those of the plan."""
        if training not in self._schedules:
            kind = Schedule1F1B if training and self.plan.schedule == "1f1b" else ScheduleGPipe
            micro_batches = self.plan.grad_accum if training else 1
            self._stages[training] = self._stage(tokens)
            self._schedules[training] = kind(self._stages[training], micro_batches, loss_fn=self._loss)
        return self._schedules[training]

    def _stage(self, tokens: torch.Tensor) -> PipelineStage:
        model, parallel = self.module.model, self.module.parallel
        batch, length = tokens.shape
        residual_length = length // parallel.size if parallel.sequence else length
        shape = (batch, residual_length, model.hidden)
        residual = torch.empty(shape, dtype=self._dtype, device="meta", requires_grad=True)
        rows = -(-model.vocab_size // parallel.size)
        own_rows = min(rows, max(model.vocab_size - parallel.rank * rows, 0))
        logits = torch.empty(batch, length, own_rows, dtype=self._dtype, device="meta", requires_grad=True)
        return PipelineStage(
            self.module,
            self._stage_index,
            self.plan.pp,
            tokens.device,
            input_args=tokens.to("meta") if self.module.is_first else residual,
            output_args=logits if self.module.is_last else residual,
            group=self._group,
        )

    def _share_buffers(self, stage: PipelineStage) -> None:
        """Receive into as many buffers as micro-batches are in flight; PyTorch makes one for each of the step's.

        An input is needed until its micro-batch has gone backward, a gradient only until the next one comes.
        """
        in_flight = self.plan.pp - self._stage_index if self.plan.schedule == "1f1b" else self.plan.grad_accum
        for buffers, number in ((stage.args_recv_info, in_flight), (stage.grad_recv_info, 1)):
            for micro_batch, received in buffers.items():
                for own, shared in zip(received, buffers[micro_batch % number], strict=True):
                    own.buffer = shared.buffer
