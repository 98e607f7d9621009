"""Figures of a file's network that no node has: a NIC's rate in bytes where bits were meant, NICs by the dozen."""

from collections.abc import Iterator

# ConnectX-8, the fastest of the catalogue.
FASTEST_NIC_BYTES_PER_S = 100e9
# AWS P5: 32 for 8 GPUs.
MOST_NICS_PER_GPU = 4


def network_doubts(num_gpus: int, nics_per_node: int, nic_bytes_per_s: float) -> Iterator[str]:
    """One sentence for each figure that is taken as it stands, though it is beyond every node's of the catalogue.

    ``nic_bytes_per_s``: one way, of one NIC.
    """
    if nic_bytes_per_s > FASTEST_NIC_BYTES_PER_S:
        yield (
            f"network.nic: {_gbit(nic_bytes_per_s)} per NIC is taken as given, though the fastest NIC of the catalogue "
            f'has {_gbit(FASTEST_NIC_BYTES_PER_S)}; did you mean "{_gbit(nic_bytes_per_s / 8)}"?'
        )
    if nics_per_node > MOST_NICS_PER_GPU * num_gpus:
        yield (
            f"network.nics_per_node: {nics_per_node} NICs for {num_gpus} GPUs are taken as given, though no node of "
            f"the catalogue has more than {MOST_NICS_PER_GPU} per GPU; count those of one node that NCCL uses"
        )


def _gbit(bytes_per_s: float) -> str:
    return f"{bytes_per_s * 8e-9:.6g} Gbit/s"
