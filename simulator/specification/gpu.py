"""A GPU's table, and the catalogue of GPUs: datasheet figures, dense, with the node that usually has them."""

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Annotated, Any

from pydantic import Field

from flopcast.collectives.group import ARCHITECTURES, FABRICS
from flopcast.errors import InputError, nearest
from flopcast.simulator.cluster import Gpu
from flopcast.simulator.specification.document import (
    Bandwidth,
    Compute,
    Count,
    Figure,
    Flag,
    Memory,
    Number,
    Power,
    Section,
    Table,
    Text,
    check_table,
    one_of,
    parse_toml,
)


class GpuTable(Section):
    """``[gpu]``: one GPU by its datasheet; ``tensor`` and ``fp8`` are the dense 16-bit and 8-bit peaks.

    ``matmul``: what large 16-bit products were measured to sustain, where that is known; else the architecture's share.
    ``sustained``: what products reach of that share on this card, where it was measured beside the usual one; else what
    its power limit says.
    ``architecture`` is one of those that the cost constants know, or "other".
    """

    name: Text = Field(examples=['"my-gpu"'])
    architecture: Annotated[str, one_of(ARCHITECTURES)] = Field(examples=['"hopper"'])
    tensor: Compute = Field(examples=['"312 TFLOP/s"'])
    fp8: Compute | None = None
    matmul: Compute | None = None
    sustained: Number | None = None
    memory: Memory = Field(examples=['"80 GiB"'])
    memory_bandwidth: Bandwidth = Field(examples=['"2039 GB/s"'])
    power: Power = Field(examples=['"400 W"'])

    def gpu(self) -> Gpu:
        """The GPU in SI base units."""
        return Gpu(
            name=self.name,
            architecture=self.architecture,
            tensor_flop_per_s=self.tensor.value,
            memory_bytes=self.memory.value,
            memory_bytes_per_s=self.memory_bandwidth.value,
            power_w=self.power.value,
            fp8_flop_per_s=self.fp8.value if self.fp8 else 0.0,
            matmul_flop_per_s=self.matmul.value if self.matmul else 0.0,
            sustained_share=self.sustained.value if self.sustained else 0.0,
        )


class TypicalNode(Section):
    """The node this GPU is usually sold in: ``nvlink`` one way per GPU (PCIe where it has no NVLink)."""

    num_gpus: Count
    nvlink: Bandwidth
    nvswitch: Flag
    nics_per_node: Count
    nic: Bandwidth
    fabric: Annotated[str, one_of(FABRICS)]


class CatalogueGpu(GpuTable):
    """A GPU of the catalogue: other names it answers to, and its typical node."""

    name: Text = ""
    aliases: list[str] = Field(default_factory=list)
    node: TypicalNode


@cache
def _tables() -> dict[str, dict[str, Any]]:
    file = files("flopcast.simulator.catalogue") / "gpus.toml"
    return parse_toml(file.read_text(encoding="utf-8"), "gpus.toml")


def gpu_names() -> list[str]:
    """The catalogue's GPUs."""
    return list(_tables())


# What makers, programs and sellers write around a GPU's name ("NVIDIA A100-SXM4-80GB", "Tesla V100", "DGX H100").
AROUND_A_NAME = {"nvidia", "amd", "instinct", "tesla", "geforce", "quadro", "dgx", "hgx", "tensor", "core", "gpu"}


def _key(name: str) -> frozenset[str]:
    """The words of a GPU's name, in whatever order and case they were written."""
    words = re.split(r"[-_ ()]+", re.sub(r"\b(\d+)g\b", r"\1gb", re.sub(r"\bsxm\d\b", "sxm", name.lower())))
    return frozenset(words) - AROUND_A_NAME - {""}


@cache
def _by_name() -> dict[frozenset[str], str]:
    tables = _tables()
    return {_key(alias): name for name, table in tables.items() for alias in (name, *table.get("aliases", ()))}


def known_gpu(name: str) -> str | None:
    """The catalogue's name of a GPU, its words in any order and case; None where it has none."""
    return _by_name().get(_key(name))


@cache
def catalogue_gpu(name: str) -> CatalogueGpu:
    """The catalogue's entry of that name or alias; InputError offers the nearest."""
    key = known_gpu(name)
    if key is None:
        raise InputError(f"unknown GPU '{name}'; {nearest(name, gpu_names())}")
    return check_table(CatalogueGpu, {"name": key, **_tables()[key]}, f"gpus.toml: {key}")


def completed(gpu: Mapping[str, Any]) -> dict[str, Any]:
    """A ``[gpu]`` table with what it leaves out as the catalogue has it, where the catalogue knows its ``name``.

    What was measured of the card (``matmul``, ``sustained``) is not taken where the table has a peak or a power limit
    of its own: it holds for the usual ones.
    """
    name = gpu.get("name")
    known = known_gpu(name) if isinstance(name, str) else None
    if known is None:
        return dict(gpu)
    measured = {"matmul", "sustained"} if {"tensor", "power"} & set(gpu) else set()
    left_out = {"aliases", "node", *measured}
    return {**{key: figure for key, figure in _tables()[known].items() if key not in left_out}, **gpu}


def figures(table: Table) -> dict[str, Figure[Any]]:
    """The figures of a table by field name."""
    values = {name: getattr(table, name) for name in type(table).model_fields}
    return {name: value for name, value in values.items() if isinstance(value, Figure)}
