"""What a pipeline stage does, from the operations of one plan: pieces of computation and transfers per layer."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from flopcast.simulator import placement
from flopcast.simulator.constants import Constants
from flopcast.simulator.cost import host_seconds, seconds
from flopcast.simulator.hardware import Hardware
from flopcast.simulator.model import Model
from flopcast.simulator.operation import (
    AttentionCore,
    Collective,
    Gemm,
    HostUpdate,
    Operation,
    Phase,
    Pointwise,
    SmallCopies,
    When,
)
from flopcast.simulator.plan import Plans
from flopcast.simulator.recompute import layers_in_full
from flopcast.simulator.step import SERIAL, chunk_share, exposed_interleaved_send
from flopcast.simulator.timeline.engine import Link

# What the time on the compute stream is spent on; communication here is what the stream itself waits out.
CAUSES = (
    *("gemm", "attention", "pointwise", "recompute", "optimizer", "launch"),
    *("tensor_communication", "context_communication", "expert_communication", "pipeline_communication"),
)
# The order of a layer's pieces, for traces.
ORDER = (
    *("graph", "checkpoint", "lookup", "norm", "norm1", "tensor_parallel1.gather"),
    *("tensor_parallel.gather", "tensor_parallel.sum", "tensor_parallel.scatter"),
    *("logits", "loss_maxima", "loss_sums", "loss"),
    *("qkv", "q", "k", "v", "q_a", "kv_a", "qk_norm", "q_b", "kv_b", "rope", "join"),
    *("context", "attention", "scores", "o"),
    *("in", "convolution", "bcdt", "bcdt_sum", "bcdt_norm", "dt", "states"),
    *("scan.inputs", "scan.within", "scan.states", "scan.carry", "scan.outputs", "gating", "out"),
    *("tensor_parallel1.sum", "tensor_parallel1.scatter", "norm3", "residual1"),
    *("norm2", "tensor_parallel2.gather"),
    *("router", "route", "permute", "dispatch_counts", "dispatch", "exchange.gather", "sort"),
    *("experts.gate", "experts.up", "experts.clamp", "experts.activation", "experts.down", "experts.bias"),
    *("unsort", "exchange.scatter", "combine", "unpermute"),
    *("shared.gate", "shared.up", "shared.activation", "shared.down", "shared_gate", "shared.add"),
    *("gate", "up", "activation", "down", "tensor_parallel2.sum", "tensor_parallel2.scatter"),
    *("norm4", "residual2"),
)
PLACE = {name: index for index, name in enumerate(ORDER)}


@dataclass(frozen=True)
class Piece:
    """Work on the compute stream: ``seconds`` of it, and ``host_s`` for the host to launch it.

    ``kind`` is gemm, attention, pointwise or a collective's purpose, ``cause`` what the waterfall counts it as.
    ``link`` is set where the stream waits out a collective. ``when`` as in :class:`Operation`.
    """

    name: str
    kind: str
    cause: str
    phase: Phase
    seconds: float
    host_s: float
    flop: float
    bytes: float
    when: When
    collective: str
    group: str
    group_size: int
    link: Link | None
    of_weights: bool


@dataclass(frozen=True)
class TransferKind:
    """A collective beside the computation: ``calls`` of it for each unit of parameters, ``seconds`` each when alone."""

    name: str
    collective: str
    purpose: str
    phase: Phase
    when: When
    group: str
    group_size: int
    link: Link
    seconds: float
    bytes: float
    calls: float
    host_s: float

    @property
    def parameters(self) -> str:
        """Those that are gathered or reduced: a layer's, or its experts'."""
        return self.name.rpartition(".")[0]

    @property
    def scatters(self) -> bool:
        """Whether it leaves each rank a shard."""
        return self.collective == "reduce_scatter"


@dataclass
class UnitProgram:
    """One layer, or what the first or last stage has besides: its pieces by phase, its gathers and its reductions.

    Of ``reductions`` with the same parameters the next begins with what the one before has reduced. ``exchanges`` are
    those with experts, as they run beside another micro-batch's pass; the pieces have them too, for a pass that runs
    alone.
    """

    forward: list[Piece] = field(default_factory=list)
    backward: list[Piece] = field(default_factory=list)
    gathers: list[TransferKind] = field(default_factory=list)
    reductions: list[TransferKind] = field(default_factory=list)
    exchanges: list[TransferKind] = field(default_factory=list)
    step: list[Piece] = field(default_factory=list)

    def pieces(self, phase: Phase) -> list[Piece]:
        """Those of the pass that the phase is in: what is computed again is, in the backward."""
        return {"forward": self.forward, "step": self.step}.get(phase, self.backward)


@dataclass(frozen=True)
class Program:
    """The whole step: units by name (kinds of layer, "embedding", "head", "root", "stage_root") and what is shared.

    ``sends``: a micro-batch handed to a stage in the same node or in the next. ``norms``: what the update waits for.
    """

    units: dict[str, UnitProgram]
    sends: dict[tuple[Phase, Link], Piece]
    stages_per_node: int
    exposed_send: float
    norms: tuple[TransferKind, ...]

    def send(self, phase: Phase, stage: int, to_stage: int) -> Piece:
        """What hands a micro-batch from one stage to another."""
        same = stage // self.stages_per_node == to_stage // self.stages_per_node
        return self.sends[phase, "in-node" if same else "between-nodes"]


def build(
    model: Model, operations: Sequence[Operation], plans: Plans, hardware: Hardware, constants: Constants
) -> Program:
    """The program of the one plan in ``plans``; every number is that of the closed form's operations."""
    stage_layers = float(placement.layers_of_fullest_stage(model.num_layers, plans.pp)[0])
    names = model.kind_names
    number = {names[kind]: n * stage_layers / model.num_layers for kind, n in model.kinds.items()}
    # Layers that are computed again in full are so as a whole; which ones those are is a matter of the pass.
    recomputed = float(layers_in_full(plans, int(stage_layers))[0]) / stage_layers or 1.0
    units: defaultdict[str, UnitProgram] = defaultdict(UnitProgram)
    sends: dict[tuple[Phase, Link], Piece] = {}
    norms: list[TransferKind] = []
    for operation in operations:
        if operation.count[0] == 0 or not operation.takes_time:
            continue
        unit_name = operation.name.partition(".")[0]
        times = float(operation.count[0]) / number.get(unit_name, 1.0)
        if operation.phase == "recompute":
            times /= recomputed
        spent = float(seconds(operation, hardware, constants)[0])
        work, unit = operation.work, units[unit_name]
        if isinstance(work, Collective) and work.purpose == "norm":
            norms.append(_transfer(operation, work, spent, 1.0, 0.0))
        elif isinstance(work, Collective) and work.purpose in ("gather", "reduce"):
            # What happens once per step is launched by hooks of the engine, off the critical host thread.
            launch = float(host_seconds(operation, constants).flat[0])
            host = launch if operation.when in ("every", "later") else 0.0
            kind = _transfer(operation, work, spent, times, host)
            (unit.gathers if work.purpose == "gather" else unit.reductions).append(kind)
        else:
            piece = _piece(operation, spent, times, plans, constants)
            if isinstance(work, Collective) and work.purpose == "expert":
                unit.exchanges.append(_transfer(operation, work, spent, times, piece.host_s))
            if unit_name != "pipeline" or operation.phase == "step":
                unit.pieces(operation.phase).append(piece)
            elif piece.collective == "point_to_point":
                assert piece.link is not None
                once = replace(piece, seconds=spent, bytes=piece.bytes / times, host_s=piece.host_s / times)
                sends[operation.phase, piece.link] = once
            else:
                of_phase = {key: sent for key, sent in sends.items() if key[0] == operation.phase}
                sends |= {key: replace(sent, seconds=sent.seconds + spent) for key, sent in of_phase.items()}
    for unit in units.values():
        unit.forward.sort(key=_place(unit.forward))
        unit.backward.sort(key=_place(unit.backward))
    units.pop("pipeline", None)
    interleaved = bool(plans.has(schedule="interleaved")[0])
    share = float(exposed_interleaved_send(plans, constants)[0]) if interleaved else 1.0
    in_node = int(placement.stages_per_node(plans.pp, hardware.gpus_per_node, plans.num_gpus)[0])
    return Program(dict(units), sends, in_node, share, tuple(norms))


def _link(work: Collective) -> Link:
    return "between-nodes" if int(work.group.num_nodes.flat[0]) > 1 else "in-node"


def _group_size(work: Collective) -> int:
    return int(work.group.size if isinstance(work.group.size, int) else work.group.size.flat[0])


def _group_name(work: Collective) -> str:
    """The group's name; "nodes" for a part of the ranks that spans several nodes, as of hsdp32."""
    name = work.group_name if isinstance(work.group_name, str) else str(work.group_name[0])
    return f"{name}s" if name in ("node", "expert-node") and _link(work) == "between-nodes" else name


def _transfer(operation: Operation, work: Collective, spent: float, calls: float, host_s: float) -> TransferKind:
    return TransferKind(
        name=operation.name,
        collective=work.collective,
        purpose=work.purpose,
        phase=operation.phase,
        when=operation.when,
        group=_group_name(work),
        group_size=_group_size(work),
        link=_link(work),
        seconds=spent,
        bytes=float(work.tensor_bytes[0]),
        calls=calls,
        host_s=host_s,
    )


def _piece(operation: Operation, spent: float, times: float, plans: Plans, constants: Constants) -> Piece:
    work = operation.work
    host_s = float(host_seconds(operation, constants).flat[0])
    flop = bytes_ = 0.0
    collective, link, group, group_size = "", None, "", 1
    if isinstance(work, Collective):
        assert work.purpose in SERIAL
        kind, link, bytes_ = str(work.purpose), _link(work), float(work.tensor_bytes[0])
        collective, group, group_size = work.collective, _group_name(work), _group_size(work)
        if work.purpose in ("tensor", "context"):
            spent *= float(chunk_share(work, plans).flat[0])
    elif isinstance(work, (SmallCopies, HostUpdate)):
        kind = "pointwise"
    elif isinstance(work, Pointwise):
        kind, bytes_ = "pointwise", float(work.bytes[0])
    else:
        kind, flop = ("attention" if isinstance(work, AttentionCore) else "gemm"), float(work.flop[0])
        if isinstance(work, Gemm):
            bytes_ = float(work.moved_bytes[0])
    cause = f"{kind}_communication" if link else kind
    if operation.phase == "recompute" and link is None:
        cause = "recompute"
    if operation.phase == "step":
        cause = "optimizer"
    return Piece(
        name=operation.name,
        kind=kind,
        cause=cause,
        phase=operation.phase,
        seconds=spent * times,
        host_s=host_s * times if operation.when in ("every", "later") else 0.0,
        flop=flop * times,
        bytes=bytes_ * times,
        when=operation.when,
        collective=collective,
        group=group,
        group_size=group_size,
        link=link,
        of_weights=operation.of_weights,
    )


def _place(pieces: Sequence[Piece]) -> Callable[[Piece], tuple[int, int]]:
    """The order of a layer's forward, or of its recomputation and then the forward's reversed.

    A parallel block has one sum over tensor-parallel ranks, which follows its last product.
    """
    parallel = not any(".tensor_parallel2." in piece.name for piece in pieces)

    def place(piece: Piece) -> tuple[int, int]:
        name = piece.name.partition(".")[2]
        if name.endswith(("dequantise", "accumulate")):
            return (-1, 0) if name.endswith("dequantise") else (2, 0)
        stem, _, last = name.rpartition(".")
        name = stem if last.isdigit() else name
        if parallel and name in ("tensor_parallel1.sum", "tensor_parallel1.scatter"):
            name = name.replace("1", "2")
        index = PLACE.get(name, len(ORDER))
        return (1, -index) if piece.phase == "backward" else (0, index)

    return place
