"""The constants of the cost model that come from measurements: few, physical, each with its unit and range.

NCCL's own published tables are not here but beside the formulas that use them (:mod:`flopcast.collectives.nccl`).
``FITTED`` says for every constant what it means and the range in which it is plausible. The values come from
:mod:`flopcast.collectives.fitting`: all at once, from the out-of-place rows of reports/measurements/collectives.csv,
each held inside its range and drawn to the range's middle, every series with a launch time of its own.
"""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Constants:
    """Values of the constants; see ``FITTED`` for what each one means."""

    launch_s: float = 2.16e-05
    process_gpu_s: float = 1.39e-06
    protocol_base_s: float = 1.63e-05
    hopper_base_scale: float = 0.546
    ring_share: float = 0.974
    copy_share: float = 0.97
    nvls_share_hopper: float = 1.06
    nvls_share_blackwell: float = 0.929
    nvls_short_share_hopper: float = 0.949
    nvls_short_share_blackwell: float = 0.899
    ll_share: float = 0.134
    ll128_share: float = 0.678
    ll128_share_hopper: float = 0.762
    ring_fill_chunks: float = 0.932
    ring_fill_limit: float = 6.47
    tree_fill_chunks: float = 2.78
    tree_fill_limit: float = 4.93
    nvls_base_s: float = 4.74e-06
    nvls_rank_s: float = 1.76e-06
    nvls_tree_hop_s: float = 2.11e-05
    network_fill_share: float = 0.447
    all_to_all_base_s: float = 3.98e-06
    all_to_all_peer_s: float = 4.22e-07
    point_to_point_share: float = 0.89
    hop_infiniband_s: float = 2.26e-06
    hop_roce_s: float = 2.24e-06
    hop_efa_s: float = 2.69e-05
    hop_efa_first_s: float = 7.21e-05
    hop_tcpx_s: float = 0.000685
    hop_tcpxo_s: float = 4.34e-05
    hop_slingshot_s: float = 7.33e-06
    hop_ethernet_s: float = 5e-05
    nic_share_infiniband: float = 0.944
    nic_share_roce: float = 0.913
    nic_share_efa: float = 0.877
    nic_share_efa_first: float = 0.844
    nic_share_tcpx: float = 0.599
    nic_share_tcpxo: float = 0.908
    nic_share_slingshot: float = 0.913
    nic_share_ethernet: float = 0.8


class Range(NamedTuple):
    """Plausible range, unit and meaning of one constant, and what its value rests on."""

    low: float
    high: float
    unit: str
    meaning: str
    source: str


_SMALL = "rows of at most 256 KiB"
_MIDDLE = "rows of 256 KiB to 512 MiB"
_LARGE = "rows of at least 512 MiB"
_HOP = "what a crossing between nodes adds to NCCL's own network latency, over "
_NIC = "share of its line rate that a NIC reaches, over "

FITTED: dict[str, Range] = {
    "launch_s": Range(12e-6, 40e-6, "s", "starting a collective's kernel", f"median over series of {_SMALL}"),
    "process_gpu_s": Range(
        0.5e-6, 4e-6, "s", "what each further GPU of one process adds to that", "8 A100, one process"
    ),
    "protocol_base_s": Range(6e-6, 40e-6, "s", "fixed cost of LL128 and Simple over LL", _MIDDLE),
    "hopper_base_scale": Range(0.3, 1.0, "1", "protocol_base_s on Hopper and Blackwell over Ampere", _MIDDLE),
    "ring_share": Range(0.95, 1.0, "1", "ring's rate over the NVLink rate NCCL counts on", f"{_LARGE}, one node"),
    "copy_share": Range(0.94, 1.0, "1", "all-gather's, all-to-all's and send's rate over a reduction's", _LARGE),
    "nvls_share_hopper": Range(1.03, 1.09, "1", "bus rate of NVLS over one-way NVLink; NCCL counts on 1.06", _LARGE),
    "nvls_share_blackwell": Range(0.88, 0.98, "1", "the same on Blackwell; NCCL counts on 0.92", _LARGE),
    "nvls_short_share_hopper": Range(0.90, 1.0, "1", "NVLS's rate with short chunks over that with long ones", _LARGE),
    "nvls_short_share_blackwell": Range(0.80, 1.0, "1", "the same on Blackwell", _LARGE),
    "ll_share": Range(0.05, 0.5, "1", "LL's rate over the ring's; NCCL counts on at most 0.5", _MIDDLE),
    "ll128_share": Range(0.5, 0.95, "1", "LL128's rate over that of NVLink, at most", _MIDDLE),
    "ll128_share_hopper": Range(0.6, 0.95, "1", "the same on Hopper and Blackwell", _MIDDLE),
    "ring_fill_chunks": Range(0.3, 3.0, "1", "transfers that filling a ring takes, small messages", _MIDDLE),
    "ring_fill_limit": Range(2.0, 20.0, "1", "latencies that filling a ring takes, large messages", _MIDDLE),
    "tree_fill_chunks": Range(1.0, 8.0, "1", "the same of tree and NVLS", _MIDDLE),
    "tree_fill_limit": Range(2.0, 12.0, "1", "the same of tree and NVLS", _LARGE),
    "nvls_base_s": Range(1e-6, 25e-6, "s", "latency of NVLS; NCCL counts on 25 us", f"{_SMALL}, one Hopper node"),
    "nvls_rank_s": Range(0.5e-6, 6e-6, "s", "what each rank adds to the pipeline of NVLS", "72 against 8 GPUs"),
    "nvls_tree_hop_s": Range(10e-6, 45e-6, "s", "NVLS-tree's latency per hop; NCCL counts on 20.9", _MIDDLE),
    "network_fill_share": Range(0.2, 1.0, "1", "share of a tree's network latency that recurs in its fill", _LARGE),
    "all_to_all_base_s": Range(2e-6, 8e-6, "s", "setting up one GPU's sends and receives", "8 A100, one process"),
    "all_to_all_peer_s": Range(0.12e-6, 1.5e-6, "s", "what each peer adds to that", "8 A100, one process"),
    "point_to_point_share": Range(0.80, 1.0, "1", "NIC's rate in sends over that in rings", "16 A100"),
    "hop_infiniband_s": Range(0.5e-6, 10e-6, "s", _HOP + "InfiniBand", _SMALL),
    "hop_roce_s": Range(0.5e-6, 10e-6, "s", _HOP + "RoCE", _SMALL),
    "hop_efa_s": Range(12e-6, 60e-6, "s", _HOP + "EFA of the second and third generation", _SMALL),
    "hop_efa_first_s": Range(30e-6, 160e-6, "s", _HOP + "EFA of the first generation", _SMALL),
    "hop_tcpx_s": Range(100e-6, 1200e-6, "s", _HOP + "GPUDirect-TCPX", _MIDDLE),
    "hop_tcpxo_s": Range(15e-6, 120e-6, "s", _HOP + "GPUDirect-TCPXO", _SMALL),
    "hop_slingshot_s": Range(1e-6, 60e-6, "s", _HOP + "Slingshot", _SMALL),
    "hop_ethernet_s": Range(20e-6, 120e-6, "s", _HOP + "TCP sockets", "assumed: no rows"),
    "nic_share_infiniband": Range(0.90, 0.99, "1", _NIC + "InfiniBand; NVIDIA's target is 0.96", _LARGE),
    "nic_share_roce": Range(0.86, 0.97, "1", _NIC + "RoCE", _LARGE),
    "nic_share_efa": Range(0.80, 0.96, "1", _NIC + "EFA of the second and third generation", _LARGE),
    "nic_share_efa_first": Range(0.75, 0.95, "1", _NIC + "EFA of the first generation", _LARGE),
    "nic_share_tcpx": Range(0.45, 0.80, "1", _NIC + "GPUDirect-TCPX", _LARGE),
    "nic_share_tcpxo": Range(0.84, 0.98, "1", _NIC + "GPUDirect-TCPXO", _LARGE),
    "nic_share_slingshot": Range(0.86, 0.97, "1", _NIC + "Slingshot; HPE's 24 of 25 GB/s", "rows of 16 to 128 MiB"),
    "nic_share_ethernet": Range(0.60, 0.95, "1", _NIC + "TCP sockets", "assumed: no rows"),
}

DEFAULT = Constants()
