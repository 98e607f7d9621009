"""The training loop: data in, optimizer steps, checkpoints, log; stops cleanly and says why."""

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from flopcast.errors import InputError
from flopcast.trainer.agreement import everywhere, gather_text, on_first_rank
from flopcast.trainer.checkpoint import CHECKPOINTS, Checkpoints
from flopcast.trainer.data.batches import Dataset, MicroBatch
from flopcast.trainer.data.preparation import prepare
from flopcast.trainer.description import architecture, constants, described, start_record, warnings
from flopcast.trainer.engine import Engine, OptimizerSettings, build
from flopcast.trainer.files import locked
from flopcast.trainer.huggingface import Checkpoint as Weights
from flopcast.trainer.log import Log
from flopcast.trainer.measurement import Meter, profiled
from flopcast.trainer.pretrained import Export, make_numerics
from flopcast.trainer.processes import (
    LostRankError,
    TrainingStoppedError,
    gpus_per_node,
    is_lost_rank,
    process_group,
    set_timeout,
)
from flopcast.trainer.schedule import learning_rate
from flopcast.trainer.settings import Settings
from flopcast.trainer.transfer import to_device
from flopcast.trainer.workload import DTYPES, make_model, make_plan

TRACES = "traces"
SAMPLES_NAMED = 8  # in the message about a batch; the log has them all


def train(settings: Settings) -> int:
    """Train as the settings say, from the last whole checkpoint where there is one; the steps done in all.

    Collective over the processes that torchrun started. Raises InputError on every rank for bad input,
    TrainingStoppedError where the loss is not finite, and LostRankError; the checkpoints stay as they are.
    """
    with process_group() as device:
        try:
            with Run(settings, device) as run:
                return run.train()
        except RuntimeError as error:
            if not is_lost_rank(error):
                raise
            raise LostRankError(
                f"rank {dist.get_rank()} lost another rank ({str(error).splitlines()[0]}); start again to go on from "
                f"the last whole checkpoint in {Path(settings.output) / CHECKPOINTS}"
            ) from error


class Run(AbstractContextManager["Run"]):
    """One run on one rank: everything that its steps need. The first rank holds the output folder until it is left."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        """Prepare the data, build the engine and load the last checkpoint. Raises InputError on every rank."""
        self.settings, self.device = settings, device
        self.output = Path(settings.output)
        self.gpus_per_node = settings.plan.gpus_per_node or gpus_per_node()
        self.model = everywhere(lambda: make_model(settings.model))
        self.numerics = everywhere(lambda: make_numerics(settings.model, self.model))
        self._export = Export(settings, self.model, self.numerics)
        self.plan = everywhere(lambda: make_plan(settings.plan, dist.get_world_size(), self.gpus_per_node))
        on_first_rank(lambda: prepare(settings.data))
        self.data = everywhere(self._data)
        self.engine = everywhere(self._engine)
        set_timeout(settings.timeout_s)  # not of what checkpoints are written over, which a disk may keep waiting
        self.meter = everywhere(
            lambda: Meter(self.model, settings.plan.seq_len, settings.plan.global_batch, settings.log, device)
        )
        with ExitStack() as held:
            mend = "wait for it or name another output"
            on_first_rank(lambda: held.enter_context(locked(self.output, mend)))
            folder, keep = self.output / CHECKPOINTS, settings.checkpoint.keep
            self.checkpoints = Checkpoints(folder, keep, settings.timeout_s)
            self.step = self._resume()
            self._held = held.pop_all()
        self._order = self.data.state()  # of the steps taken: the batch of the next may have been read already
        self._read_ahead: list[MicroBatch] = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the output folder back."""
        self._held.close()

    def _data(self) -> Dataset:
        table = self.settings.data
        if dist.get_rank() != 0:  # rank 0 checks the files for all
            table = table.model_copy(update={"verify": False})
        data = Dataset(table, self.settings.plan.seq_len, self.settings.seed)
        if data.vocab_size > self.model.vocab_size:
            raise InputError(
                f"the tokenizer has {data.vocab_size} pieces, but the model has {self.model.vocab_size} rows of "
                "embedding; use a tokenizer of at most as many"
            )
        return data

    def _engine(self) -> Engine:
        table = self.settings.optimizer
        return build(
            self.model,
            self.plan,
            gpus_per_node=self.gpus_per_node,
            device=self.device,
            dtype=DTYPES[self.settings.plan.dtype],
            seed=self.settings.seed,
            optimizer=OptimizerSettings(
                lr=table.learning_rate,
                betas=(table.beta1, table.beta2),
                eps=table.eps,
                weight_decay=table.weight_decay,
                max_grad_norm=table.max_gradient_norm,
            ),
            z_loss=table.z_loss,
            numerics=self.numerics,
        )

    def _resume(self) -> int:
        steps = self.checkpoints.steps()
        if not steps:
            weights = self.settings.model.weights
            if weights is not None:
                everywhere(lambda: self.engine.load_weights(Weights(weights)))
            return 0
        state = self.engine.state()
        manifest = self.checkpoints.load(steps[-1], state, self._must_agree())
        self.engine.load(state)
        everywhere(lambda: self._restore_order(manifest, steps[-1]))
        return steps[-1]

    def _restore_order(self, manifest: dict[str, Any], step: int) -> None:
        try:
            self.data.restore(manifest["order"])
        except (KeyError, TypeError, AttributeError):
            path = self.checkpoints.manifest(step)
            raise InputError(f"{path}: does not say where the order of the data stands; remove its folder") from None

    def _must_agree(self) -> dict[str, Any]:
        """What a checkpoint and the run that goes on from it have in common."""
        return {
            "model": described(self.model),
            "constants": constants(self.numerics),
            "architecture": architecture(self.model),
            "tokenizer": self.data.identity,
        }

    def train(self) -> int:
        """Every step that is left."""
        settings = self.settings
        with self._log() as log, _stop_signal() as stop:
            start = start_record(settings, self.plan, self.numerics, self.data)
            self._event(log, "start", **start, ranks=dist.get_world_size(), **self.meter.machine)
            for words in warnings(settings, self.plan, self.model, self.step):
                self._event(log, "warning", words=words)
            stopped = False
            while self.step < settings.optimizer.num_steps and not stopped:
                stopped = self._optimizer_step(log, stop)
                is_last = self.step == settings.optimizer.num_steps
                stopped = stopped and not is_last  # nothing is left to go on with
                if stopped or is_last or _is_due(self.step, settings.checkpoint.every):
                    self._save(log)
                if settings.evaluation.every and (is_last or _is_due(self.step, settings.evaluation.every)):
                    self._event(log, "validation", loss=self._evaluate())
            self._finish_checkpoint(log)
            if not stopped and self._export.write(self.engine):
                self._event(log, "exported", folder=settings.checkpoint.export)
            self._event(log, "stopped" if stopped else "done")
        return self.step

    def _log(self) -> AbstractContextManager[Log | None]:
        log, steps = self.settings.log, self.settings.optimizer.num_steps
        opened = everywhere(lambda: Log(self.output, steps, log.tensorboard) if dist.get_rank() == 0 else None)
        return nullcontext() if opened is None else opened

    def _event(self, log: Log | None, event: str, **fields: Any) -> None:
        if log is not None:
            log.event(event, step=self.step, **fields)

    def _optimizer_step(self, log: Log | None, stop: threading.Event) -> bool:
        """One step; whether a signal asked any rank to stop."""
        number = self.step + 1
        tracing = number in self.settings.log.profile
        with profiled(self.output / TRACES, number, self.device) if tracing else nullcontext():
            started = time.perf_counter()
            batch = self._read_ahead or self._next_batch()
            losses = torch.stack([self._accumulate(micro, is_last=micro is batch[-1]) for micro in batch])
            rate = self._learning_rate()
            norm_found = self.engine.step(rate).double()
            # One reduction for the mean loss and for whatever all ranks must know before the next step.
            own = torch.stack([losses.double().mean(), norm_found.isfinite().logical_not().double()])
            asked = torch.tensor([stop.is_set(), self.checkpoints.has_failed], dtype=torch.float64)
            signs = torch.cat([own, to_device(asked, self.device)])
            dist.all_reduce(signs)
            # All of the step is on its way to the device: the next one's batch is read while it works.
            self._order = self.data.state()
            self._read_ahead = self._next_batch() if number < self.settings.optimizer.num_steps else []
            means = torch.cat([signs / dist.get_world_size(), norm_found[None]])
            loss, bad_norm, stopping, failed, norm = means.tolist()
            step_s = time.perf_counter() - started
        if bad_norm or not math.isfinite(loss):
            self._refuse(log, number, batch, losses, norm)
        self.step = number
        if log is not None:
            log.step(number, loss=loss, gradient_norm=norm, learning_rate=rate, **self.meter.readings(step_s))
        if failed:
            self._finish_checkpoint(log)
        return bool(stopping)

    def _next_batch(self) -> list[MicroBatch]:
        """The micro-batches of this rank in the next step of the data's order."""
        plan, engine = self.plan, self.engine
        return self.data.next_step(plan.micro_batch, plan.grad_accum, engine.data_rank, engine.data_ranks)

    def _accumulate(self, micro: MicroBatch, is_last: bool) -> torch.Tensor:
        loss = self.engine.accumulate(
            micro.tokens, micro.targets, micro.positions, is_last=is_last, weight=micro.weight
        )
        return loss.reshape(())

    def _learning_rate(self) -> float:
        table = self.settings.optimizer
        return learning_rate(
            self.step,
            peak=table.learning_rate,
            warmup_steps=table.warmup_steps,
            num_steps=table.num_steps,
            final_share=table.final_share,
        )

    def _evaluate(self) -> float:
        """The mean cross-entropy over all counted tokens of all validation sequences, the same on any layout."""
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        for micro in self.data.validation(self.plan.micro_batch, self.engine.data_rank, self.engine.data_ranks):
            loss = self.engine.evaluate(micro.tokens, micro.targets, micro.positions).double()
            total += torch.stack([loss, torch.ones_like(loss)]) * micro.num_counted
        # Ranks that share sequences all count them, in the sum and in the number.
        dist.all_reduce(total)
        return float(total[0] / total[1])

    def _save(self, log: Log | None) -> None:
        self._finish_checkpoint(log)
        started = time.perf_counter()
        description = {**self._must_agree(), "order": self._order, "plan": dataclasses.asdict(self.plan)}
        self.checkpoints.save(self.step, self.engine.state(), description)
        self._event(log, "checkpoint begun", stall_s=round(time.perf_counter() - started, 4))

    def _finish_checkpoint(self, log: Log | None) -> None:
        finished = self.checkpoints.wait()
        if finished is not None:
            self._event(log, "checkpoint", of_step=finished)

    def _refuse(self, log: Log | None, step: int, batch: list[MicroBatch], losses: torch.Tensor, norm: float) -> None:
        """Stop every rank over a loss or a gradient that is not finite, naming the samples."""
        culprits = [m for m, loss in zip(batch, losses.tolist(), strict=True) if not math.isfinite(loss)]
        what, texts = "loss", gather_text(_names(culprits))
        if not any(texts):
            what, texts = "gradient norm", gather_text(_names(batch))
        samples = list(dict.fromkeys(" ".join(texts).split()))
        named = ", ".join(samples[:SAMPLES_NAMED]) + (", ..." if len(samples) > SAMPLES_NAMED else "")
        self._finish_checkpoint(log)
        self._event(log, "not finite", what=what, in_step=step, samples=samples)
        raise TrainingStoppedError(
            f"step {step}: the {what} is not finite (norm {norm}); samples {named}; the checkpoints are untouched"
        )


def _names(batch: list[MicroBatch]) -> str:
    return " ".join(sample for micro in batch for sample in micro.samples)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM sets; the handler before is put back at the end. Only a main thread can receive one."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
