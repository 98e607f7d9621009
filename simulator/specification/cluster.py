"""A cluster file: node, network and operation, each figure with its source or marked as assumed."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from flopcast.collectives.group import FABRICS
from flopcast.errors import InputError
from flopcast.simulator.cluster import Cluster, Costs
from flopcast.simulator.specification.document import (
    Bandwidth,
    Count,
    Figure,
    Flag,
    NetworkRate,
    Number,
    PositiveInt,
    Power,
    Section,
    Table,
    Text,
    check_table,
    one_of,
    parse_toml,
)
from flopcast.simulator.specification.doubled import Doubled, doubled_figures
from flopcast.simulator.specification.gpu import GpuTable, catalogue_gpu, completed, figures, known_gpu
from flopcast.simulator.specification.network_doubts import network_doubts
from flopcast.simulator.textfile import read_text

EXPECTED = "a cluster file (TOML)"


class NodeTable(Section):
    """``[node]``: ``gpu`` is a name of the catalogue, or left out where the file has a ``[gpu]`` table."""

    gpu: Figure[Text] | None = None
    num_gpus: Count = Field(examples=["8"])
    nvlink: Bandwidth | None = None
    nvswitch: Flag | None = None


def _joining(number: object) -> object:
    if number == 0 and not isinstance(number, bool):
        raise InputError("0 NICs join no nodes; leave out [network] where nodes are not joined")
    return number


class NetworkTable(Section):
    """``[network]``: what joins the nodes. ``nic`` is one way, per NIC; ``sharp`` reduces in the switches."""

    nics_per_node: Figure[Annotated[PositiveInt, BeforeValidator(_joining)]] = Field(examples=["4"])
    nic: NetworkRate = Field(examples=['"200 Gbit/s"'])
    fabric: Figure[Annotated[str, one_of(FABRICS)]] = Field(examples=['"infiniband"'])
    sharp: Flag = Flag(value=False)


class OperationTable(Section):
    """``[operation]``: what a capacity plan adds; the price per GPU and hour is in any one currency."""

    gpu_hour_price: Number | None = None
    node_power: Power | None = None
    node_mtbf_hours: Number | None = None
    checkpoint_bandwidth: Bandwidth | None = None


class ClusterTable(Table):
    """The whole file."""

    name: Text = ""
    num_nodes: Count | None = None
    gpu: GpuTable | None = None
    node: NodeTable = Field(examples=['{gpu = "a100-40gb", num_gpus = 8}'])
    network: NetworkTable | None = None
    operation: OperationTable = OperationTable()
    source: Text = ""


def read_cluster(path: str | Path) -> Cluster:
    """The cluster that a TOML file describes. Raises InputError, one line, for anything wrong with it."""
    path = Path(path)
    return parse_cluster(read_text(path, EXPECTED), str(path), path.stem)


def parse_cluster(text: str, origin: str, default_name: str = "cluster") -> Cluster:
    """The cluster that the text of a file describes; ``origin`` names it in errors."""
    data = parse_toml(text, origin)
    node = data.get("node")
    if isinstance(node, dict):
        data = _gpu_in_its_place(data, node)
    if isinstance(data.get("gpu"), dict):
        data = {**data, "gpu": completed(data["gpu"])}
    return _cluster(check_table(ClusterTable, data, origin), origin, default_name)


def _gpu_in_its_place(data: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """[node.gpu] is another spelling of [gpu], and gpu = "a100-40gb" above all tables one of node.gpu."""
    inner, outer = node.get("gpu"), data.get("gpu")
    if isinstance(inner, dict) and "value" not in inner and outer is None:
        return {**data, "gpu": inner, "node": {k: v for k, v in node.items() if k != "gpu"}}
    if isinstance(outer, str) and inner is None:
        return {**{k: v for k, v in data.items() if k != "gpu"}, "node": {**node, "gpu": outer}}
    return data


def _cluster(table: ClusterTable, origin: str, default_name: str) -> Cluster:
    gpu = _gpu(table, origin)
    name = table.name or default_name
    node = table.node
    nvlink, nvswitch = node.nvlink, node.nvswitch
    if known_gpu(gpu.name) is not None:
        usual = catalogue_gpu(gpu.name).node
        nvlink = nvlink or _typical(usual.nvlink, gpu.name)
        nvswitch = nvswitch or _typical(usual.nvswitch, gpu.name)
    if nvlink is None:
        raise InputError(f'{origin}: node.nvlink is missing; add it, such as nvlink = "300 GB/s" (one way, per GPU)')
    nvswitch = nvswitch or Flag(value=False, assumed=True, source="not given")
    network, costs = table.network, table.operation
    sections: dict[str, Section] = {"gpu": gpu, "node": node, "operation": costs}
    if network is not None:
        sections["network"] = network
    by_path = {f"{section}.{key}": f for section, part in sections.items() for key, f in figures(part).items()}
    by_path |= {"node.nvlink": nvlink, "node.nvswitch": nvswitch}
    if table.num_nodes is not None:
        by_path["num_nodes"] = table.num_nodes
    sources = {path: figure.source for path, figure in by_path.items() if figure.source}
    sources |= {section: part.source for section, part in sections.items() if part.source}
    if table.source:
        sources["cluster"] = table.source
    nics_per_node = network.nics_per_node.value if network else 0
    nic_bytes_per_s = network.nic.value if network else 0.0
    return Cluster(
        name=name,
        gpu=gpu.gpu(),
        gpus_per_node=node.num_gpus.value,
        nvlink_bytes_per_s=nvlink.value,
        nvswitch=nvswitch.value,
        nics_per_node=nics_per_node,
        nic_bytes_per_s=nic_bytes_per_s,
        fabric=network.fabric.value if network else "ethernet",
        sharp=network.sharp.value if network else False,
        num_nodes=_num_nodes(table, origin),
        costs=Costs(
            gpu_hour_price=_value(costs.gpu_hour_price),
            node_power_w=_value(costs.node_power),
            node_mtbf_hours=_value(costs.node_mtbf_hours),
            checkpoint_bytes_per_s=_value(costs.checkpoint_bandwidth),
        ),
        assumptions=(
            *(assumption(path, figure.value, figure.source) for path, figure in by_path.items() if figure.assumed),
            *map(_doubt, doubled_figures(gpu, nvlink)),
            *network_doubts(node.num_gpus.value, nics_per_node, nic_bytes_per_s),
        ),
        sources=sources,
    )


def _gpu(table: ClusterTable, origin: str) -> GpuTable:
    if table.gpu is not None and table.node.gpu is not None:
        raise InputError(f"{origin}: node.gpu and [gpu] both name a GPU; keep one of them")
    if table.gpu is not None:
        return table.gpu
    if table.node.gpu is None:
        raise InputError(f'{origin}: node.gpu is missing; add it, such as gpu = "a100-40gb", or a [gpu] table')
    try:
        return catalogue_gpu(table.node.gpu.value)
    except InputError as error:
        raise InputError(f"{origin}: node.gpu: {error}") from None


def _num_nodes(table: ClusterTable, origin: str) -> int | None:
    """How many nodes there are; without a network, one."""
    if table.network is not None:
        return None if table.num_nodes is None else table.num_nodes.value
    if table.num_nodes is not None and table.num_nodes.value > 1:
        raise InputError(f"{origin}: num_nodes is {table.num_nodes.value} without a [network]; add one, or use 1 node")
    return 1


def _typical(figure: Figure[Any], gpu: str) -> Any:
    """A figure of the GPU's typical node, taken because the file does not give it."""
    return figure.model_copy(update={"source": f"not given: as usual for {gpu}", "assumed": True})


def _value(figure: Figure[Any] | None) -> Any:
    return None if figure is None else figure.value


def assumption(path: str, value: object, reason: str) -> str:
    """One sentence for a figure that is not published."""
    return f"{path}: {describe(path, value)} is assumed ({reason or 'no reason is given'})"


def _doubt(found: Doubled) -> str:
    """One sentence for a figure as given, though it looks like one that this file's fields are not."""
    given, usual = describe(found.path, found.given), describe(found.path, found.usual)
    taken, other = ("one way", "both ways") if found.path == "node.nvlink" else ("dense", "sparse products")
    return (
        f"{found.path}: {given} is taken as {taken}, though it is twice the {usual} of {found.gpu}; many datasheets "
        f"count {other}: halve it if yours does"
    )


def describe(path: str, value: object) -> str:
    """A figure as a reader writes it: ``200 Gbit/s per NIC``, ``300 GB/s per GPU``, ``4``, ``true``."""
    field = path.rpartition(".")[2]
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, int | float):
        return str(value)
    scaled = {
        "nic": (8e-9, " Gbit/s per NIC"),
        "nvlink": (1e-9, " GB/s per GPU"),
        "memory_bandwidth": (1e-9, " GB/s"),
        "checkpoint_bandwidth": (1e-9, " GB/s"),
        "tensor": (1e-12, " TFLOP/s"),
        "matmul": (1e-12, " TFLOP/s"),
        "fp8": (1e-12, " TFLOP/s"),
        "memory": (2.0**-30, " GiB"),
        "power": (1.0, " W"),
        "node_power": (1e-3, " kW"),
    }
    factor, unit = scaled.get(field, (1.0, ""))
    return f"{value * factor:.6g}{unit}"
