"""Tables of measured collectives as people write them, brought to the columns of reports/measurements/collectives.md.

Other names of columns and collectives, units in cells (``512M``, ``400 Gbit/s``, ``NDR``), a bandwidth in place of the
time, ranks in place of nodes: what can be told is filled in, and what cannot stays empty.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flopcast.collectives import headings
from flopcast.collectives.cells import gbit, is_missing, numbers, text_of
from flopcast.collectives.machines import NETWORK
from flopcast.collectives.racks import join_racks
from flopcast.errors import InputError

Columns: TypeAlias = dict[str, NDArray[Any]]

# What a column may be called, lower case, letters and digits only; the first name present counts.
_WORDS = {
    "collective": ("collective", "operation", "op", "coll", "test", "nccltest", "primitive"),
    "gpu": ("gpu", "gputype", "gpumodel", "gpuname", "accelerator", "device"),
    "interconnect": ("interconnect", "nvlink"),
    "fabric": ("fabric", "network", "nictype"),
    "nccl_version": ("ncclversion", "nccl"),
    "notes": ("notes", "note", "comment", "comments"),
    "series": ("series", "run", "id"),
    "source": ("source", "url"),
}
_NUMBERS = {
    "bytes": (
        "bytes",
        "size",
        "sizeb",
        "sizebytes",
        "numbytes",
        "messagebytes",
        *(f"{what}size{unit}" for what in ("message", "msg", "data", "buffer") for unit in ("", "b", "bytes")),
        "payload",
    ),
    "gpus_per_node": ("gpuspernode", "numgpuspernode", "ngpuspernode", "gpusnode", "rankspernode", "ppn"),
    "n_nodes": ("nnodes", "nodes", "numnodes"),
    "ranks": ("ranks", "nranks", "numranks", "worldsize", "ngpus", "numgpus", "gpus"),
    "nics_per_node": ("nicspernode", "numnicspernode", "nicsnode", "nics", "numnics"),
    "nic_gbit": (
        *(f"nic{what}{unit}" for what in ("", "rate", "speed", "bandwidth") for unit in ("gbit", "gbps", "gbits")),
        *("nicrate", "nicspeed", "nicbandwidth", "nicgb", "nic"),
    ),
    "sharp": ("sharp",),
    "in_place": ("inplace",),
}
_COLLECTIVES = {
    "allreduce": "all_reduce",
    "allgather": "all_gather",
    "hypercube": "all_gather",  # nccl-tests' all-gather by sends
    "reducescatter": "reduce_scatter",
    "alltoall": "all_to_all",
    "all2all": "all_to_all",
    # The root's links carry what every rank's carry in an all-to-all.
    "gather": "all_to_all",
    "scatter": "all_to_all",
    "broadcast": "broadcast",
    "bcast": "broadcast",
    "reduce": "reduce",
    "sendrecv": "point_to_point",
    "p2p": "point_to_point",
    "pointtopoint": "point_to_point",
}
_COUNTED = re.compile(r"\b([0-9]{1,3})\s*[x*\u00d7]\s*([0-9]+\s*G\S*|[A-Z]DR[0-9]*)", re.IGNORECASE)
# What a node is taken to hold where a table does not say: boards of four superchips, racks of 72, else eight.
_GPUS_PER_NODE = ((r"NVL72", 72.0), (r"GH200|GB[23]00", 4.0))
_ESSENTIAL = ("gpu", "collective")
# Where one of these is given, it is a whole number of at least 1.
_COUNTS = ("gpus_per_node", "n_nodes", "ranks")
_MOST_COUNTED = 10_000_000


def tidy(given: Mapping[str, NDArray[Any]]) -> Columns:
    """The columns of the table under their own names, numbers as float64 (not-a-number where missing), words as str.

    ``collective`` is the cost model's name, or what stood there where that is unknown. ``time_us`` comes from the
    bandwidth where only that is given, ``bytes`` from time and bandwidth. Nodes that are not given follow from the
    ranks; without these a table with a NIC rate is of two nodes, one without of one. ``unreadable`` says what is wrong
    with a row's nodes, GPUs or ranks, "" where nothing is. Raises InputError where the columns of the GPU, the
    collective, or any measure of size are missing.
    """
    names, timings = headings.named(given), headings.results(given)

    def column(aliases: tuple[str, ...]) -> NDArray[Any] | None:
        return next((np.asarray(given[names[alias][0]]) for alias in aliases if alias in names), None)

    def scale(aliases: tuple[str, ...]) -> float:
        return next(names[alias][1] for alias in aliases if alias in names)

    missing = [name for name in _ESSENTIAL if column(_WORDS[name]) is None]
    if column(_NUMBERS["bytes"]) is None and not timings["algbw_GBps"]:
        missing.append("bytes")
    if missing:
        raise InputError(f"columns {', '.join(missing)} are missing")
    count = len(next(iter(given.values())))
    found: Columns = {}
    for name, aliases in _WORDS.items():
        cells = column(aliases)
        found[name] = np.array([text_of(cell) for cell in cells] if cells is not None else [""] * count, dtype=np.str_)
    for name, aliases in _NUMBERS.items():
        cells = column(aliases)
        found[name] = np.full(count, np.nan)
        if cells is not None:
            found[name] = numbers(name, cells, scale(aliases))
    for name, scaled in timings.items():
        found[name] = np.full(count, np.nan)
        for written, scale_of in scaled:
            found[name] = np.where(found[name] > 0, found[name], numbers(name, np.asarray(given[written]), scale_of))
    # Of several nodes the interconnect often names the network.
    network = np.array([bool(NETWORK.search(words.upper())) for words in found["interconnect"]], dtype=np.bool_)
    found["fabric"] = np.where((found["fabric"] == "") & network, found["interconnect"], found["fabric"])
    _count_nics(found, column(_NUMBERS["nic_gbit"]))
    found["collective"] = np.array([collective_name(word) for word in found["collective"]], dtype=np.str_)
    found["in_place"] = np.where(found["in_place"] == 1, 1.0, 0.0)
    found["unreadable"] = _unreadable(
        {name: column(_NUMBERS[name]) for name in _COUNTS}, found, given.get("unreadable")
    )
    _fill_ranks(found)
    join_racks(found)
    _fill_times(found)
    machine = zip(found["gpu"], found["n_nodes"], found["gpus_per_node"], found["fabric"], strict=True)
    unnamed = [" ".join((gpu, f"{nodes:g} x {gpus:g}", fabric)).strip() for gpu, nodes, gpus, fabric in machine]
    named = np.where(found["series"] == "", found["source"], found["series"])
    found["series"] = np.where(named == "", np.array(unnamed, dtype=np.str_), named)
    return found


def _unreadable(
    written: Mapping[str, NDArray[Any] | None], found: Columns, before: NDArray[Any] | None
) -> NDArray[np.str_]:
    """What is wrong with each row's counts, "" where nothing is: such a row is of no machine that can be told.

    ``before``: what was wrong with them in a table that has been tidied.
    """
    words = [""] * len(found["collective"]) if before is None else [str(cell) for cell in before]
    for name, cells in written.items():
        for place, cell in enumerate([] if cells is None else cells):
            value = found[name][place]
            if not is_missing(text_of(cell)) and not (1 <= value <= _MOST_COUNTED and value == np.floor(value)):
                words[place] = f"{name} is '{text_of(cell)}'; write a whole number from 1 to {_MOST_COUNTED:,}"
    return np.array(words, dtype=np.str_)


def _count_nics(found: Columns, cells: NDArray[Any] | None) -> None:
    """NICs and their rate where a cell says both, such as ``16x200G``: in the NIC's column, or the network's."""
    written = [""] * len(found["fabric"]) if cells is None else [text_of(cell) for cell in cells]
    for place, words in enumerate(zip(written, found["fabric"], strict=True)):
        counted = next((match for match in map(_COUNTED.search, words) if match), None)
        if counted and not found["nics_per_node"][place] >= 1:
            found["nics_per_node"][place] = float(counted.group(1))
        if counted and not found["nic_gbit"][place] > 0:
            found["nic_gbit"][place] = gbit(counted.group(2))


def collective_name(word: str) -> str:
    """The cost model's name of a collective: ``AllReduce``, ``all-reduce`` and ``all_reduce_perf`` are "all_reduce"."""
    bare = re.sub("[^a-z0-9]", "", word.lower().removesuffix("_perf"))
    bare = re.sub("^nccl|(perf|mpi|base|intotensor|tensor|single)+$", "", bare)
    return _COLLECTIVES.get(bare, word)


def _fill_ranks(found: Columns) -> None:
    gpus, nodes, ranks = found["gpus_per_node"], found["n_nodes"], found.pop("ranks")
    usual = np.full(gpus.shape, 8.0)
    for place, words in enumerate(zip(found["gpu"], found["interconnect"], strict=True)):
        text = " ".join(words).upper()
        usual[place] = next((number for pattern, number in _GPUS_PER_NODE if re.search(pattern, text)), 8.0)
    known = gpus >= 1
    from_ranks = np.ceil(ranks / np.where(known, gpus, np.fmin(usual, ranks)))
    assumed = np.where(found["nic_gbit"] > 0, 2.0, 1.0)
    nodes = np.where(nodes >= 1, nodes, np.where(ranks >= 1, from_ranks, assumed))
    found["n_nodes"] = nodes
    found["gpus_per_node"] = np.where(known, gpus, np.where(ranks >= 1, np.ceil(ranks / nodes), usual))


def _fill_times(found: Columns) -> None:
    time = found["time_us"]
    ranks = found["gpus_per_node"] * found["n_nodes"]
    part = (ranks - 1) / np.maximum(ranks, 1)
    whole = np.isin(found["collective"], ["broadcast", "reduce", "point_to_point"])
    factor = np.where(whole, 1.0, np.where(found["collective"] == "all_reduce", 2 * part, part))
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.where(found["algbw_GBps"] > 0, found["algbw_GBps"], found["busbw_GBps"] / factor)
        rate = np.where((rate > 0) & np.isfinite(rate), rate, np.nan)
        found["time_us"] = np.where(time > 0, time, found["bytes"] / rate / 1e3)
        found["bytes"] = np.where(found["bytes"] >= 0, found["bytes"], np.round(found["time_us"] * rate * 1e3))
