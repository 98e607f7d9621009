"""Several gloo ranks that train the same small models under many plans and write down what came out.

Run as a script: ``python engine_ranks.py WORLD_SIZE FOLDER``. The test reads FOLDER/results.json. Ranks are forked
after the imports, which cost as much as many of the cases, and do all cases of one layout, whose groups and first steps
cost as much as the rest of a case.
"""

import gc
import json
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional as F

from flopcast.simulator.blocks.transformer import Attention, Mlp, TransformerBlock
from flopcast.simulator.model import Model
from flopcast.simulator.plan import Plan, placement
from flopcast.trainer.checkpoint import Checkpoints
from flopcast.trainer.engine import Engine, OptimizerSettings, build
from flopcast.trainer.engine.weights import draw
from flopcast.trainer.model import Decoder
from flopcast.trainer.numerics import Numerics
from flopcast.trainer.pretrained import export

WORLD_SIZE, NODE = 8, 4
STEPS, SEED, SEQ_LEN, MICRO_BATCHES = 10, 7, 16, 2
SETTINGS = OptimizerSettings(lr=1e-3, max_grad_norm=0.5)
QUANTISED = ("zero3+q4", "zero3-node+q4", "hsdp+q4")

# Nothing divides by eight: hidden 72, intermediate 100, vocabulary 101, six tiled query heads on three.
PLAMO = Model(
    "tiny-plamo",
    72,
    101,
    32,
    (TransformerBlock(Attention(6, 3, 12, kv_layout="tiled"), Mlp(100), parallel=True, num_norms=1),) * 2,
)
# Everything the sequential block can have.
SEQUENTIAL = Model(
    "tiny-sequential",
    64,
    96,
    32,
    (
        TransformerBlock(
            Attention(4, 2, 16, qkv_bias=True, output_bias=True, qk_norm=True),
            Mlp(96, gated=False, bias=True),
            norm="layernorm",
            norm_bias=True,
        ),
    )
    * 2,
    tied_embeddings=True,
    norm="layernorm",
    norm_bias=True,
    positions="learned",
    num_positions=32,
)
# One fused matrix, two norms side by side (GPT-NeoX).
NEOX = Model(
    "tiny-neox",
    64,
    96,
    32,
    (TransformerBlock(Attention(4, 4, 16, fused_qkv=True, rotary_share=0.5), Mlp(96), parallel=True),) * 2,
)
MODELS = {model.name: model for model in (PLAMO, SEQUENTIAL, NEOX)}


@dataclass(frozen=True)
class Case:
    model: str
    strategy: str
    dtype: str = "float32"
    sequence_parallel: bool = False
    pp: int = 1
    tp: int = 1
    recompute: str = "none"
    steps: int = STEPS

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    def plan(self, world_size: int = WORLD_SIZE) -> Plan:
        fields = placement(self.strategy, world_size, NODE, tp=self.tp, pp=self.pp)
        dp = world_size // (int(fields["tp"]) * self.pp)
        return Plan(
            **fields,  # type: ignore[arg-type]
            seq_len=SEQ_LEN,
            micro_batch=WORLD_SIZE // dp // (2 if self.pp > 1 else 1),
            grad_accum=MICRO_BATCHES * 2 if self.pp > 1 else MICRO_BATCHES,
            sequence_parallel=self.sequence_parallel,
            recompute=self.recompute,  # type: ignore[arg-type]
        )


def cases() -> list[Case]:
    names = ("ddp", "zero1", "zero2", "zero3", "zero3-node", "hsdp", "tp2")
    chosen = [Case("tiny-plamo", name, dtype) for name in names for dtype in ("float32", "bfloat16")]
    chosen += [Case("tiny-plamo", "tp2", "bfloat16", sequence_parallel=True)]
    chosen += [Case("tiny-plamo", name, tp=2, steps=4) for name in ("zero3", "hsdp")]
    chosen += [Case("tiny-plamo", "zero3-node", recompute="full", steps=4)]
    chosen += [Case("tiny-plamo", "zero3", recompute="selective", steps=4)]
    chosen += [Case("tiny-sequential", "tp4", steps=4)]
    chosen += [Case("tiny-sequential", "tp2", sequence_parallel=True, recompute="full", steps=4)]
    chosen += [Case("tiny-plamo", "ddp", pp=2), Case("tiny-plamo", "zero1", "bfloat16", pp=2)]
    chosen += [Case("tiny-neox", "tp2", sequence_parallel=True, pp=2, recompute="full", steps=4)]
    chosen += [Case("tiny-neox", "tp4", sequence_parallel=True, steps=4)]
    return chosen


# One step each, from the checkpoint of the one before; and weights dealt out and exported under each.
TURNS = [Case("tiny-plamo", name) for name in ("zero3", "hsdp", "zero1", "zero3-node", "zero2")] + [
    Case("tiny-plamo", "tp2", sequence_parallel=True),
    Case("tiny-plamo", "zero3", tp=2),
    Case("tiny-plamo", "zero1", pp=2),
    Case("tiny-plamo", "ddp"),
]


def batch(step: int) -> torch.Tensor:
    """Tokens [micro-batches, global sequences, S + 1] of a step, few of the vocabulary; the same on every rank."""
    generator = torch.Generator().manual_seed(1000 + step)
    shape = (MICRO_BATCHES, WORLD_SIZE, SEQ_LEN + 1)
    return torch.randint(0, 24, shape, generator=generator)


def reference(model: Model, dtype: torch.dtype) -> dict[str, Any]:
    """One process, plain PyTorch: fp32 master weights, products in ``dtype``, clipping, AdamW."""
    master = {name: tensor.requires_grad_() for name, tensor in draw(model, SEED).items()}
    decoder = Decoder(model)
    groups = [
        {"params": [p for p in master.values() if p.ndim > 1], "weight_decay": SETTINGS.weight_decay},
        {"params": [p for p in master.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=SETTINGS.lr, betas=SETTINGS.betas, eps=SETTINGS.eps, foreach=False)
    losses, norms = [], []
    for step in range(STEPS):
        total = 0.0
        sequences = batch(step).flatten(0, 1)
        for tokens in sequences.split(1):
            weights = {name: tensor.to(dtype) for name, tensor in master.items()}
            logits = torch.func.functional_call(decoder, weights, (tokens[:, :-1],))
            loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()) / len(sequences)
            loss.backward()
            total += float(loss.detach())
        losses.append(total)
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(master.values()), SETTINGS.max_grad_norm)))
        optimizer.step()
        optimizer.zero_grad()
    unseen = batch(STEPS).flatten(0, 1)
    with torch.no_grad():
        weights = {name: tensor.to(dtype) for name, tensor in master.items()}
        logits = torch.func.functional_call(decoder, weights, (unseen[:, :-1],)).float()
    each = F.cross_entropy(logits.transpose(1, 2), unseen[:, 1:], reduction="none").mean(1)
    return {"losses": losses, "norms": norms, "evaluations": each.tolist()}


def built(case: Case, z_loss: float = 0.0) -> Engine:
    return build(
        MODELS[case.model],
        case.plan(),
        gpus_per_node=NODE,
        device=torch.device("cpu"),
        dtype=getattr(torch, case.dtype),
        seed=SEED,
        optimizer=SETTINGS,
        z_loss=z_loss,
    )


def one_step(engine: Engine, step: int) -> tuple[float, float]:
    """The mean loss over all ranks, and the gradients' norm."""
    plan = engine.plan
    sequences = batch(step).view(plan.grad_accum, -1, SEQ_LEN + 1)
    total = torch.zeros(())
    for index, tokens in enumerate(sequences.chunk(plan.dp, dim=1)[engine.data_rank]):
        is_last = index == plan.grad_accum - 1
        total += engine.accumulate(tokens[:, :-1], tokens[:, 1:], is_last=is_last) / plan.grad_accum
    norm = float(engine.step())
    dist.all_reduce(total)
    return float(total) / WORLD_SIZE, norm


def train(case: Case) -> dict[str, Any]:
    engine = built(case)
    losses, norms = zip(*(one_step(engine, step) for step in range(case.steps)), strict=True)
    return {"losses": losses, "norms": norms, "evaluation": evaluation(engine)}


def evaluation(engine: Engine) -> float:
    """The mean loss over all ranks of the first sequences of a batch that was not trained on."""
    sequences = batch(STEPS).flatten(0, 1)[: engine.plan.micro_batch * engine.plan.dp]
    tokens = sequences.chunk(engine.plan.dp)[engine.data_rank]
    loss = engine.evaluate(tokens[:, :-1], tokens[:, 1:])
    dist.all_reduce(loss)
    return float(loss) / WORLD_SIZE


def reloaded(case: Case, folder: Path) -> bool:
    """Deal out weights and export them into ``folder``; whether they are collected as they were given."""
    engine, whole = built(case), draw(MODELS[case.model], SEED + 1)
    engine.load_weights(whole)
    export(engine, MODELS[case.model], Numerics(), torch.float32, folder)
    collected = dict(engine.whole_weights())
    return collected.keys() == whole.keys() and all(torch.equal(whole[name], collected[name]) for name in whole)


def z_loss(case: Case) -> dict[str, Any]:
    """The loss of a batch without and with z-loss, evaluated and trained on."""
    return {
        "evaluated": [evaluation(built(case, weight)) for weight in (0.0, 1.0)],
        "trained": [one_step(built(case, weight), 0)[0] for weight in (0.0, 1.0)],
    }


def quantised(case: Case, folder: Path) -> dict[str, Any]:
    """Losses under the 4-bit all-gather, and whether every rank computed with the same weights."""
    engine = built(case)
    checkpoints = Checkpoints(folder / case.strategy, keep=1)
    losses = [one_step(engine, step)[0] for step in range(2)]
    checkpoints.save(2, engine.state(), {})
    losses += [one_step(engine, step)[0] for step in range(2, 4)]
    checkpoints.wait()
    tokens = batch(0)[0, :1]
    own = engine.evaluate(tokens[:, :-1], tokens[:, 1:])
    both = torch.stack([own, -own])
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    return {"losses": losses, "same_everywhere": bool(both[0] == -both[1])}


def quantised_resumed(case: Case, folder: Path) -> list[float]:
    """The last two of the four steps, from the checkpoint between."""
    engine = built(case)
    state = engine.state()
    Checkpoints(folder / case.strategy, keep=1).load(2, state, {})
    engine.load(state)
    return [one_step(engine, step)[0] for step in range(2, 4)]


def resumed(turn: int, folder: Path) -> float:
    """The loss of a step under one strategy, from the checkpoint that the one before left."""
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    case = TURNS[turn]
    engine = built(case)
    if turn:
        state = engine.state()
        checkpoints.load(turn, state, {})
        engine.load(state)
    loss, _ = one_step(engine, turn)
    checkpoints.save(turn + 1, engine.state(), {})
    checkpoints.wait()
    return loss


def layout(case: Case) -> tuple[object, ...]:
    """What decides which groups of ranks a case makes."""
    return case.strategy, case.tp, case.pp, case.sequence_parallel


def tasks(folder: Path) -> dict[tuple[object, ...], dict[str, tuple[Any, ...]]]:
    """What the ranks do, by layout and name: a function and what it is given. Turns come first, in their order."""
    found: dict[tuple[object, ...], dict[str, tuple[Any, ...]]] = {}

    def add(name: str, function: Callable[..., Any], case: Case, *arguments: Any) -> None:
        found.setdefault(layout(case), {})[name] = (function, *arguments)

    for turn, case in enumerate(TURNS):
        add(f"resumed {turn}", resumed, case, turn, folder)
        add(f"reloaded {case.key}", reloaded, case, case, folder / f"reloaded-{turn}")
    for case in cases():
        add(case.key, train, case, case)
    for name in QUANTISED:
        case = Case("tiny-plamo", name, steps=4)
        add(name, quantised, case, case, folder)
        add(f"{name} resumed", quantised_resumed, case, case, folder)
    for pp in (1, 2):
        case = Case("tiny-plamo", "zero1", pp=pp)
        add(f"z-loss {pp}", z_loss, case, case)
    return found


def work(rank: int, world_size: int, file: Path, todo: dict[str, tuple[Any, ...]]) -> None:
    """One of the ranks that do the tasks of one layout together; the first writes what they give."""
    store = dist.FileStore(str(file.with_suffix(".store")), world_size)
    dist.init_process_group("gloo", rank=rank, world_size=world_size, store=store, timeout=timedelta(seconds=120))
    found = {name: function(*arguments) for name, (function, *arguments) in todo.items()}
    if rank == 0:
        file.write_text(json.dumps(found))
    dist.destroy_process_group()


def main() -> int:
    world_size, folder = int(sys.argv[1]), Path(sys.argv[2])
    gc.freeze()  # or the collector would write to what the ranks share, and copy it
    forking = multiprocessing.get_context("fork")
    results: dict[str, Any] = {}
    for number, todo in enumerate(tasks(folder).values()):
        file = folder / f"{number}.json"
        ranks = [forking.Process(target=work, args=(rank, world_size, file, todo)) for rank in range(world_size)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        if any(rank.exitcode for rank in ranks):
            return 1
        results |= json.loads(file.read_text())
    for model, dtype in {(case.model, case.dtype) for case in cases()}:
        results[f"{model} {dtype}"] = reference(MODELS[model], getattr(torch, dtype))
    (folder / "results.json").write_text(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
