"""A cluster made from the name of its GPU alone, for runs whose source says no more than "H100"."""

import math

from flopcast.errors import InputError
from flopcast.simulator.cluster import Cluster


def generic_cluster(gpu_name: str, gpus_per_node: int | None = None, node_bytes_per_s: float | None = None) -> Cluster:
    """Nodes of that GPU as they are usually sold; every figure that is not given is marked as assumed.

    ``gpus_per_node``: as usual for the GPU where None (8 for most). ``node_bytes_per_s``: what all NICs of a
    node carry, one way, in bytes per second; as usual for the GPU where None, in proportion to the GPUs.
    """
    from flopcast.simulator.specification import catalogue_gpu
    from flopcast.simulator.specification.cluster import assumption
    from flopcast.simulator.specification.gpu import figures

    entry = catalogue_gpu(gpu_name)
    typical = entry.node
    if gpus_per_node is not None and gpus_per_node < 1:
        raise InputError(f"gpus_per_node is {gpus_per_node}; it must be at least 1")
    if node_bytes_per_s is not None and not (math.isfinite(node_bytes_per_s) and node_bytes_per_s > 0):
        raise InputError(f"node_bytes_per_s is {node_bytes_per_s}; it must be positive and finite")
    num_gpus = gpus_per_node or typical.num_gpus.value
    nics = max(1, round(typical.nics_per_node.value * num_gpus / typical.num_gpus.value))
    nic_bytes_per_s = typical.nic.value if node_bytes_per_s is None else node_bytes_per_s / nics

    assumed: dict[str, object] = {
        "node.nvlink": typical.nvlink.value,
        "node.nvswitch": typical.nvswitch.value,
        "network.nics_per_node": nics,
        "network.fabric": typical.fabric,
    }
    if gpus_per_node is None:
        assumed["node.num_gpus"] = num_gpus
    if node_bytes_per_s is None:
        assumed["network.nic"] = nic_bytes_per_s
    reason = f"as usual for {entry.name}: {typical.source}"
    sentences = [assumption(path, value, reason) for path, value in assumed.items()]
    sentences += [
        assumption(f"gpu.{field}", figure.value, figure.source)
        for field, figure in figures(entry).items()
        if figure.assumed
    ]
    return Cluster(
        name=f"{entry.name} nodes of {num_gpus}",
        gpu=entry.gpu(),
        gpus_per_node=num_gpus,
        nvlink_bytes_per_s=typical.nvlink.value,
        nvswitch=typical.nvswitch.value,
        nics_per_node=nics,
        nic_bytes_per_s=nic_bytes_per_s,
        fabric=typical.fabric,
        assumptions=tuple(sentences),
        sources={"gpu": entry.source, "node": typical.source},
    )
