"""GPUs by name: architecture and NVLink rate, as far as a collective's cost depends on them."""

import re
from dataclasses import dataclass

from flopcast.collectives.group import architecture_code

# PCIe x16 one way; NCCL counts on three quarters of it (12 GB/s for generation 3: topo.h, 2.30.7).
PCIE_GENERATIONS = {"3": 16e9, "4": 32e9, "5": 64e9, "6": 128e9}
NVLINK_GENERATIONS = {"2": ("volta", 150e9), "3": ("ampere", 300e9), "4": ("hopper", 450e9), "5": ("blackwell", 900e9)}

# (pattern in the upper-case name, architecture, bytes/s one way per GPU, source); what the name says first counts, and
# of patterns that begin at one place the first.
# NVLink rates are half of the bidirectional totals of the vendors' datasheets.
GPUS: tuple[tuple[str, str, float, str], ...] = (
    (r"(H100|H200|H800|H20).*(PCIE|NVL\b)", "other", 64e9, "NVIDIA H100 PCIe and H200 NVL datasheets: PCIe 5.0 x16"),
    (r"V100.*PCIE", "other", 16e9, "NVIDIA V100 datasheet, 2020: PCIe 3.0 x16"),
    (r"(A100|A800).*PCIE", "other", 32e9, "NVIDIA A100 datasheet, 2021: PCIe 4.0 x16"),
    (r"V100", "volta", 150e9, "NVIDIA V100 datasheet, 2020: NVLink 300 GB/s"),
    (r"A800", "ampere", 200e9, "NVIDIA A800 datasheet, 2022: NVLink 400 GB/s"),
    (r"A100", "ampere", 300e9, "NVIDIA A100 datasheet, 2021: NVLink 600 GB/s"),
    (r"H800", "hopper", 200e9, "NVIDIA H800 datasheet, 2023: NVLink 400 GB/s"),
    (r"GH200|H100|H200|H20\b|H20-", "hopper", 450e9, "NVIDIA H100 datasheet, 2023: NVLink 900 GB/s"),
    (r"G?B[123]00", "blackwell", 900e9, "NVIDIA B200 datasheet, 2024: NVLink 1.8 TB/s"),
    (r"MI35[05]X?", "other", 537.6e9, "AMD CDNA 4 white paper, 2025: seven Infinity Fabric links of 76.8 GB/s one way"),
    (r"MI3[0-5]\dX?", "other", 448e9, "AMD MI300X datasheet, 2023: seven Infinity Fabric links of 64 GB/s one way"),
    (r"MI2[15]0", "other", 200e9, "AMD MI250X datasheet, 2021: four external links of 50 GB/s one way"),
    (r"P100", "other", 80e9, "NVIDIA P100 datasheet, 2016: NVLink 160 GB/s"),
    (r"RTX PRO|6000D|\b50[5-9]0", "other", 64e9, "NVIDIA RTX Blackwell architecture white paper, 2025: PCIe 5.0 x16"),
    (r"L40|\bL4\b|\b40[5-9]0|6000 ADA", "other", 32e9, "NVIDIA L40S and L4 datasheets, 2023: PCIe 4.0 x16, 64 GB/s"),
    (r"\bA(10G?|16|30|40)\b|RTX A\d|\b30[5-9]0", "other", 32e9, "NVIDIA A10 and A40 datasheets, 2021: PCIe 4.0 x16"),
    (r"\bT4\b|\bP40?\b|\b20[678]0|QUADRO|TITAN", "other", 16e9, "NVIDIA T4 datasheet, 2019: PCIe 3.0 x16, 32 GB/s"),
)
# NVLink bridges of a pair of PCIe cards, in the order of the datasheets: bytes/s one way.
BRIDGES: tuple[tuple[str, float, str], ...] = (
    (r"H200", 450e9, "NVIDIA H200 NVL datasheet, 2024: NVLink bridge 900 GB/s"),
    (r"H100|H800|A100|A800", 300e9, "NVIDIA A100 and H100 PCIe datasheets: NVLink bridge 600 GB/s"),
    (r"A30\b", 100e9, "NVIDIA A30 datasheet, 2021: NVLink bridge 200 GB/s"),
    (r"A40|RTX A[4-6]|3090", 56.25e9, "NVIDIA A40 and RTX A6000 datasheets, 2021: NVLink bridge 112.5 GB/s"),
)
_PCIE_OF = {"volta": "3", "ampere": "4", "hopper": "5", "blackwell": "5"}
# Every GPU of these boards has one link to each of the other seven: fewer GPUs have fewer links to use.
_MESH = re.compile(r"MI3[0-5]\dX?")
MESH_GPUS = 8
# AMD counts on 48 of the 64 GB/s of a link (rocm.blogs.amd.com, "Understanding RCCL Bandwidth and xGMI Performance on
# AMD Instinct MI300X", 2025); the model takes 0.8 of any link.
MESH_SHARE = 48 / 64 / 0.8
# Tables of several nodes often describe the network where others describe the node.
NETWORK = re.compile(r"\bIB\b|INFINIBAND|ROCE|EFA|TCP|SLINGSHOT|ETHERNET|\bNICS?\b")

_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([GT])(?:B/S|BPS)")


@dataclass(frozen=True)
class Gpu:
    """What the name of a GPU tells: the code of its architecture and its link rate, one way.

    ``mesh``: that rate is of all its links to ``MESH_GPUS`` - 1 others, one each, and not of one switch. ``known``:
    the name or the interconnect says so.
    """

    architecture: int
    nvlink_bytes_per_s: float
    mesh: bool = False
    known: bool = True

    def rate(self, gpus: int) -> float:
        """Bytes/s one way that a GPU has for a group of ``gpus`` in its node."""
        links = min(max(gpus, 2), MESH_GPUS) - 1
        return self.nvlink_bytes_per_s * MESH_SHARE * links / (MESH_GPUS - 1) if self.mesh else self.nvlink_bytes_per_s


def gpu(name: str, interconnect: str = "", gpus: int = 8) -> Gpu:
    """The GPU called ``name``, in a node of this ``interconnect`` where that is said.

    An interconnect of PCIe alone is believed over the name, and of a pair (``gpus`` of 2) of PCIe cards an NVLink
    bridge, with the rate that is stated for it or the card's own; in a larger group traffic passes the slots whatever
    bridges there are. A GPU that is not in the table goes by the NVLink generation in ``interconnect``, else by a rate
    there ("600 GB/s", both ways together, as vendors state it), else it counts as a PCIe card of the fourth generation.
    """
    inside = "" if NETWORK.search(interconnect.upper()) else interconnect.upper()
    pcie = None if "NV" in inside else re.search(r"PCIE?\s*(?:GEN\s*)?([3-6])?", inside)
    stated = _RATE.search(inside)
    named = _named(name.upper())
    if named and named[1] in PCIE_GENERATIONS.values() and gpus == 2 and "NV" in inside:
        bridges = [bridge for card, bridge, _ in BRIDGES if re.search(card, name.upper())]
        if bridges and not stated:
            return Gpu(architecture_code("other"), bridges[0])
        named = None if stated else named
    if named:
        architecture, rate = named
        if not pcie:
            return Gpu(architecture_code(architecture), rate, bool(_MESH.search(name.upper())))
        usual = PCIE_GENERATIONS[_PCIE_OF[architecture]] if architecture in _PCIE_OF else rate
        return Gpu(architecture_code("other"), PCIE_GENERATIONS.get(pcie.group(1), usual))
    if generation := re.search(r"NVLINK\s*([2-5])", interconnect.upper()):
        architecture, rate = NVLINK_GENERATIONS[generation.group(1)]
        return Gpu(architecture_code(architecture), rate)
    if stated:
        return Gpu(architecture_code("other"), float(stated.group(1)) * (1e9 if stated.group(2) == "G" else 1e12) / 2)
    return Gpu(architecture_code("other"), PCIE_GENERATIONS[(pcie and pcie.group(1)) or "4"], known=bool(pcie))


def _named(name: str) -> tuple[str, float] | None:
    """Architecture and rate of the GPU that ``name`` says first: "H100/H800" is an H100."""
    found = [(match.start(), row) for row in GPUS if (match := re.search(row[0], name))]
    if not found:
        return None
    _, architecture, rate, _ = min(found, key=lambda place: place[0])[1]
    return architecture, rate
