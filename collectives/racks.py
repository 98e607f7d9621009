"""Boards of superchips whose GPUs share the NVLink switches of a rack: one node, unless a table says otherwise."""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Boards of four superchips share the NVLink switches of their rack, which hold up to 72 GPUs (GB200 NVL72 datasheet).
_RACK_BOARD = re.compile(r"GB[23]00")
_BOARD_GPUS, _RACK_GPUS = 4.0, 72.0
# A partition of a rack is named by its GPUs, as the whole is: NVL4, NVL36.
_PARTITION = re.compile(r"\bNVL([0-9]+)\b")
# What the interconnect or the notes tell of NVLink between boards: that it was off, or how many domains there were.
_APART = re.compile(r"NCCL_MNNVL_ENABLE=0|MNNVL (?:IS |WAS )?(?:OFF|DISABLED|NOT USED)")
_JOINED = re.compile(r"NCCL_MNNVL_ENABLE=[12]")
_DOMAINS = re.compile(
    r"(?<!MAY SPAN )\b([0-9]+|TWO|THREE|FOUR)\s+"
    r"(?:(?:FULL|WHOLE|NVL[0-9]*|NVLINK|DIFFERENT|SEPARATE)\s+)*(?:RACKS|DOMAINS)\b"
)
_CROSSING = re.compile(r"(?:CROSS|ACROSS|DIFFERENT|BETWEEN)[- ](?:NVL[0-9]*|NVLINK)?[- ]?DOMAINS?\b")
_COUNT_WORDS = {"TWO": 2.0, "THREE": 3.0, "FOUR": 4.0}


def join_racks(found: dict[str, NDArray[Any]]) -> None:
    """Boards of one NVLink domain as one node, with the NICs of all of them.

    A rack of up to 72 GPUs is one domain unless the interconnect or the notes name other ones or say that NVLink
    between boards was off.
    """
    gpus, nodes = found["gpus_per_node"], found["n_nodes"]
    board = np.array([bool(_RACK_BOARD.search(name.upper())) for name in found["gpu"]], dtype=np.bool_)
    domains = np.full(gpus.shape, np.nan)
    for place in np.flatnonzero(board & (gpus == _BOARD_GPUS) & (nodes > 1)):
        said = " ".join((found["interconnect"][place], found["notes"][place])).upper()
        domains[place] = _domains(said, float(gpus[place] * nodes[place]), float(nodes[place]))
    with np.errstate(invalid="ignore", divide="ignore"):
        boards = nodes / domains
    joined = (boards > 1) & (boards == np.floor(boards))
    found["n_nodes"] = np.where(joined, domains, nodes)
    for name in ("gpus_per_node", "nics_per_node"):
        found[name] = np.where(joined, found[name] * boards, found[name])


def _domains(said: str, gpus: float, boards: float) -> float:
    """The NVLink domains that ``gpus`` on as many ``boards`` are in, by what is ``said`` of them."""
    if _APART.search(said) and not ("NCCL_MNNVL_ENABLE=0" not in said and _JOINED.search(said)):
        return boards
    partition = _PARTITION.search(said)
    size = min(float(partition.group(1)), _RACK_GPUS) if partition else _RACK_GPUS
    least = float(np.ceil(gpus / max(size, _BOARD_GPUS)))
    if told := _DOMAINS.search(said):
        return max(_COUNT_WORDS.get(told.group(1)) or float(told.group(1)), 1.0)
    return max(least, 2.0) if _CROSSING.search(said) else least
