"""GPUs by name: architecture and NVLink rate, as far as a collective's cost depends on them."""

import re
from dataclasses import dataclass

from flopcast.collectives.group import architecture_code

# (pattern in the upper-case name, architecture, bytes/s one way per GPU, source); the first match counts.
# NVLink rates are half of the bidirectional totals of the vendors' datasheets.
_PCIE = "PCIe x16 as NCCL counts it (topo.h, 2.30.7): 12, 24, 48 GB/s for generations 3, 4, 5"
GPUS: tuple[tuple[str, str, float, str], ...] = (
    (r"(H100|H200|H800|H20).*(PCIE|NVL\b)", "other", 48e9, _PCIE),
    (r"V100.*PCIE", "other", 12e9, _PCIE),
    (r"(A100|A800).*PCIE", "other", 24e9, _PCIE),
    (r"V100", "volta", 150e9, "NVIDIA V100 datasheet, 2020: NVLink 300 GB/s"),
    (r"A800", "ampere", 200e9, "NVIDIA A800 datasheet, 2022: NVLink 400 GB/s"),
    (r"A100", "ampere", 300e9, "NVIDIA A100 datasheet, 2021: NVLink 600 GB/s"),
    (r"H800", "hopper", 200e9, "NVIDIA H800 datasheet, 2023: NVLink 400 GB/s"),
    (r"GH200|H100|H200|H20\b|H20-", "hopper", 450e9, "NVIDIA H100 datasheet, 2023: NVLink 900 GB/s"),
    (r"G?B[123]00", "blackwell", 900e9, "NVIDIA B200 datasheet, 2024: NVLink 1.8 TB/s"),
    (r"MI3[0-5]\dX?", "other", 448e9, "AMD MI300X datasheet, 2023: seven Infinity Fabric links of 64 GB/s one way"),
    (r"MI2[15]0", "other", 200e9, "AMD MI250X datasheet, 2021: four external links of 50 GB/s one way"),
    (r"P100", "other", 80e9, "NVIDIA P100 datasheet, 2016: NVLink 160 GB/s"),
    (r"H100|H200|L40|RTX PRO 6000", "other", 48e9, _PCIE),
)
NVLINK_GENERATIONS = {"2": ("volta", 150e9), "3": ("ampere", 300e9), "4": ("hopper", 450e9), "5": ("blackwell", 900e9)}
PCIE_GENERATIONS = {"3": 12e9, "4": 24e9, "5": 48e9, "6": 96e9}
_PCIE_OF = {"volta": "3", "ampere": "4", "hopper": "5", "blackwell": "5"}
# Tables of several nodes often describe the network where others describe the node.
NETWORK = re.compile(r"\bIB\b|INFINIBAND|ROCE|EFA|TCP|SLINGSHOT|ETHERNET|\bNICS?\b")


@dataclass(frozen=True)
class Gpu:
    """What the name of a GPU tells: the code of its architecture and its link rate, one way."""

    architecture: int
    nvlink_bytes_per_s: float


def gpu(name: str, interconnect: str = "") -> Gpu:
    """The GPU called ``name``, in a node of this ``interconnect`` where that is said.

    An interconnect of PCIe alone is believed over the name. A GPU that is not in the table goes by the NVLink
    generation in ``interconnect``, else by a rate there ("600 GB/s", both ways together, as vendors state it), else it
    counts as a PCIe card of the fourth generation.
    """
    inside = "" if NETWORK.search(interconnect.upper()) else interconnect.upper()
    pcie = None if "NV" in inside else re.search(r"PCIE?\s*(?:GEN\s*)?([3-6])?", inside)
    for pattern, architecture, rate, _ in GPUS:
        if re.search(pattern, name.upper()):
            if not pcie:
                return Gpu(architecture_code(architecture), rate)
            usual = PCIE_GENERATIONS[_PCIE_OF[architecture]] if architecture in _PCIE_OF else rate
            return Gpu(architecture_code("other"), PCIE_GENERATIONS.get(pcie.group(1), usual))
    if generation := re.search(r"NVLINK\s*([2-5])", interconnect.upper()):
        architecture, rate = NVLINK_GENERATIONS[generation.group(1)]
        return Gpu(architecture_code(architecture), rate)
    if stated := re.search(r"([0-9]+(?:\.[0-9]+)?)\s*([GT])(?:B/S|BPS)", inside):
        return Gpu(architecture_code("other"), float(stated.group(1)) * (1e9 if stated.group(2) == "G" else 1e12) / 2)
    return Gpu(architecture_code("other"), PCIE_GENERATIONS[(pcie and pcie.group(1)) or "4"])
