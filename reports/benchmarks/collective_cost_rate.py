"""How many collective costs per second one core computes: every collective over a million random cases.

Run ``python reports/benchmarks/collective_cost_rate.py``; it writes ``collective_cost_rate.json`` beside itself.
"""

import statistics
import time

import numpy as np

from flopcast.collectives import ARCHITECTURES, COLLECTIVES, FABRICS, Fabric, Group
from flopcast.reports.benchmarks.result import write_result

NUM_CASES = 1_000_000
REPEATS = 3


def cases(count: int) -> tuple[np.ndarray, Group, Fabric]:
    """Sizes, groups and machines, every field an array of ``count`` random values."""
    rng = np.random.default_rng(0)
    per_node = 2 ** rng.integers(0, 4, count)
    group = Group(per_node * 2 ** rng.integers(0, 9, count), per_node, 8 // per_node)
    fabric = Fabric(
        architecture=rng.integers(0, len(ARCHITECTURES), count),
        nvlink_bytes_per_s=rng.uniform(100e9, 900e9, count),
        nvswitch=rng.random(count) < 0.8,
        nics_per_node=2 ** rng.integers(0, 5, count),
        nic_bytes_per_s=rng.uniform(12.5e9, 100e9, count),
        fabric=rng.integers(0, len(FABRICS), count),
        gpus_per_node=np.full(count, 8),
    )
    return np.exp(rng.uniform(0, np.log(16e9), count)), group, fabric


def main() -> None:
    """Time every collective and write the result."""
    size, group, fabric = cases(NUM_CASES)
    one_group, one_fabric = Group(512, 8), Fabric(1, 300e9, True, 8, 25e9, 0, 8)
    rates: dict[str, dict[str, float]] = {}
    for name, module in COLLECTIVES.items():
        rates[name] = {}
        for kind, of, on in (("every field an array", group, fabric), ("only sizes an array", one_group, one_fabric)):
            seconds = []
            for _ in range(REPEATS):
                start = time.process_time()
                module.cost(size, of, on)
                seconds.append(time.process_time() - start)
            rates[name][kind] = round(NUM_CASES / statistics.median(seconds))
    result = {
        "what": "collective costs per second of one core (median of CPU seconds over repeats)",
        "num_cases": NUM_CASES,
        "repeats": REPEATS,
        "costs_per_s": rates,
    }
    write_result(__file__, result, np)


if __name__ == "__main__":
    main()
