"""Seconds per operation: the one place where work meets hardware."""

from collections.abc import Hashable
from dataclasses import is_dataclass
from typing import Any

import numpy as np

from flopcast.collectives import COLLECTIVES
from flopcast.collectives.group import ARCHITECTURES
from flopcast.simulator.constants import ATTENTION_SHARES, Constants
from flopcast.simulator.hardware import Hardware
from flopcast.simulator.operation import (
    Array,
    AttentionCore,
    Collective,
    Gemm,
    HostUpdate,
    Operation,
    Pointwise,
    SmallCopies,
    Work,
)
from flopcast.simulator.plan import CHOICES

HEAD_DIM_OF_TABLE = 128
# The most nodes but in one series that the cost of collectives was fitted to, and the most that are known to slow it.
MEASURED_NODES, CONGESTED_NODES = 4, 128
# Unfused attention multiplies by heads of this many features or a multiple on the tensor cores: rows of 16-bit numbers
# must start on 16 bytes (cuBLAS, "Tensor Core Usage"). Others run where fp32 does, at this share of the 16-bit peak.
ALIGNED_FEATURES = 8
FP32_SHARE = {"volta": 15.7 / 125, "ampere": 19.5 / 312, "hopper": 66.9 / 989, "blackwell": 80 / 2250, "other": 1 / 16}
# Board limits of the cards that the architectures' shares of peak are stated for: V100, A100, H100, B200 SXM.
USUAL_POWER_W = {"volta": 300.0, "ampere": 400.0, "hopper": 700.0, "blackwell": 1000.0, "other": 400.0}


class Costs:
    """:func:`seconds` of many operations on one machine: equal work is costed once.

    Kinds of layer share most of theirs: with and without a window they have the same parameters to gather.
    """

    def __init__(self, hardware: Hardware, constants: Constants) -> None:
        self._hardware, self._constants = hardware, constants
        self._known: dict[int, Array] = {}
        self._equal: dict[Hashable, Array] = {}

    def seconds(self, operation: Operation) -> Array:
        """Time of one occurrence of an operation that outlives this object."""
        work = operation.work
        if id(work) not in self._known:
            contents = _contents(work)
            if contents not in self._equal:
                self._equal[contents] = np.asarray(work_seconds(work, self._hardware, self._constants))
            self._known[id(work)] = self._equal[contents]
        return _in_step(operation, self._known[id(work)], self._hardware, self._constants)


def _contents(value: Any) -> Hashable:
    """What makes two pieces of work equal: their kinds, and the numbers in them and in what they hold."""
    if isinstance(value, np.ndarray):
        return value.dtype.char, value.shape, value.tobytes()
    if is_dataclass(value):
        return type(value), *map(_contents, vars(value).values())
    assert isinstance(value, Hashable)
    return value


def seconds(operation: Operation, hardware: Hardware, constants: Constants) -> Array:
    """Time of one occurrence of the operation when nothing runs beside it, launch not included; as measured if so."""
    formula = np.asarray(work_seconds(operation.work, hardware, constants))
    return _in_step(operation, formula, hardware, constants)


def _in_step(operation: Operation, formula: Array, hardware: Hardware, constants: Constants) -> Array:
    """As measured where it was, gaps included; else the formula's time, and for each kernel what it takes besides."""
    if hardware.measured is not None:
        return hardware.measured.corrected(operation, formula)
    if isinstance(operation.work, Collective | SmallCopies | HostUpdate):
        return formula
    return formula + constants.kernel_s * (operation.num_kernels + operation.inner_launches)


def work_seconds(work: Work, hardware: Hardware, constants: Constants) -> Array:
    """The formula's time of a piece of work, from the datasheet and the constants."""
    if isinstance(work, Gemm):
        return gemm_seconds(work, hardware, constants)
    if isinstance(work, AttentionCore):
        return attention_seconds(work, hardware, constants)
    if isinstance(work, Pointwise):
        rate = hardware.memory_bytes_per_s * constants.memory_share
        return work.bytes * np.where(work.counted, 1.0, constants.pointwise_scale) / rate
    if isinstance(work, SmallCopies):
        return work.number * constants.inner_launch_s
    if isinstance(work, HostUpdate):
        return work.host_bytes / constants.host_bytes_per_s + work.link_bytes / constants.host_link_bytes_per_s
    return collective_seconds(work, hardware, constants)


def gemm_seconds(work: Gemm, hardware: Hardware, constants: Constants) -> Array:
    """2 m n k / (share peak) (1 + h/m)(1 + h/n)(1 + d/k), and no faster than its operands pass through memory.

    h is the half of a tile that idles at an edge, d the depth lost to filling and draining a tile's pipeline. In 8 bits
    its operand is converted first.
    """
    peak = np.where(
        work.fp8 & (hardware.fp8_flop_per_s > 0),
        hardware.fp8_flop_per_s * constants.fp8_share,
        hardware.tensor_flop_per_s,
    )
    edge, depth = constants.gemm_half_rows, constants.gemm_half_depth
    loss = (1 + edge / work.m) * (1 + edge / work.n) * (1 + depth / work.k)
    share = _gemm_share(hardware, constants)
    compute = work.flop * loss / (peak * share)
    moved_per_s = hardware.memory_bytes_per_s * constants.memory_share
    converted = np.where(hardware.fp8_flop_per_s > 0, work.quantised_bytes, 0.0) / moved_per_s
    return np.maximum(compute, work.moved_bytes / moved_per_s) + converted


def host_seconds(operation: Operation, constants: Constants) -> Array:
    """What the host takes to launch one occurrence: a collective, with the copies around it, or kernels.

    Nothing where a CUDA graph does.
    """
    host = operation.num_kernels * constants.launch_s + operation.inner_launches * constants.inner_launch_s
    if isinstance(operation.work, Collective):
        host = host + (constants.collective_launch_s - constants.launch_s)
    return np.asarray(np.where(operation.replayed, 0.0, host))


def attention_seconds(work: AttentionCore, hardware: Hardware, constants: Constants) -> Array:
    """FLOPs over the kernel's share of the 16-bit peak, lower for small heads, short sequences and low power limits."""
    table = _attention_table(constants)[:, :, int(work.backward)]
    share = table[hardware.architecture, work.kernel]
    size = np.minimum(work.head_dim / HEAD_DIM_OF_TABLE, 1.0) ** constants.head_dim_power
    length = work.length / (work.length + constants.attention_half_length)
    misaligned = (work.kernel == CHOICES["attention"].index("unfused")) & (work.head_dim % ALIGNED_FEATURES > 0)
    if np.any(misaligned):
        share = share * np.where(misaligned, _of_architecture(FP32_SHARE, hardware), 1.0)
    return work.flop / (hardware.tensor_flop_per_s * share * size * length * _sustained(hardware, constants))


def collective_seconds(work: Collective, hardware: Hardware, constants: Constants) -> Array:
    """The collective alone, slower on many nodes; between two products or stages, by what the step leaves of the links.

    Gathers and reductions are slowed where something runs beside them, which is for the reader of the step to say.
    """
    share = {
        "tensor": constants.nvlink_share,
        "context": constants.nvlink_share,
        "expert": constants.nvlink_share,
        "pipeline": constants.pipeline_share,
    }.get(work.purpose, 1.0)
    alone = COLLECTIVES[work.collective].cost(work.tensor_bytes, work.group, hardware.fabric).time_s
    doublings = np.log2(np.clip(work.group.num_nodes, MEASURED_NODES, CONGESTED_NODES) / MEASURED_NODES)
    return np.asarray(alone * (1 + constants.network_congestion * doublings) / share, dtype=np.float64)


def _gemm_share(hardware: Hardware, constants: Constants) -> Array:
    """What the best large product sustains of the 16-bit peak: as measured on the card, else by its architecture."""
    shares = np.array([getattr(constants, f"gemm_share_{name}") for name in ARCHITECTURES])
    usual = shares[hardware.architecture] * _sustained(hardware, constants)
    measured = hardware.matmul_flop_per_s / hardware.tensor_flop_per_s
    return np.asarray(np.where(measured > 0, measured, usual))


def _of_architecture(table: dict[str, float], hardware: Hardware) -> Array:
    return np.array([table[name] for name in ARCHITECTURES])[hardware.architecture]


def _sustained(hardware: Hardware, constants: Constants) -> Array:
    """What a card keeps of its architecture's rate: as measured, else by its power limit, (limit / usual)^power."""
    usual = _of_architecture(USUAL_POWER_W, hardware)
    by_power = np.minimum(hardware.power_w / usual, 1.0) ** constants.power_exponent
    return np.asarray(np.where(hardware.sustained_share > 0, hardware.sustained_share, by_power))


def _attention_table(constants: Constants) -> Array:
    """Shares by architecture, kernel and direction; a kernel an architecture lacks runs as its flash2."""
    table = np.empty((len(ARCHITECTURES), len(CHOICES["attention"]), 2))
    for row, architecture in enumerate(ARCHITECTURES):
        shares = ATTENTION_SHARES[architecture]
        for column, kernel in enumerate(CHOICES["attention"]):
            unfused = (constants.attention_unfused_share,) * 2
            found = unfused if kernel == "unfused" else shares.get(kernel, shares["flash2"])
            table[row, column] = np.array(found) * (1.0 if kernel == "unfused" else constants.attention_scale)
    return table
