"""A cluster as those see it who run collectives on it: its links, and what a profile measured of each collective."""

import numpy as np

from flopcast.collectives.group import Group
from flopcast.collectives.running.forecasts import Machine
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.constants import default_constants
from flopcast.simulator.cost import work_seconds
from flopcast.simulator.hardware import Hardware
from flopcast.simulator.operation import Collective


def machine_of(cluster: Cluster) -> Machine:
    """The machine of a catalogue's cluster, a TOML file's or a profile's."""
    hardware = Hardware.of([cluster])
    if hardware.measured is None:
        return Machine(hardware.fabric)
    corrections = hardware.measured.collectives_alone

    def measured_s(name: str, num_bytes: float, group: Group) -> float | None:
        correction = corrections.get(name)
        if correction is None:
            return None
        # The formula that the profile's corrections were taken over, whose purpose is that of no special link.
        work = Collective(name, np.array([num_bytes]), group, "world", "norm")
        ratio = correction(work.tensor_bytes, np.asarray(group.size), group.num_nodes)
        return float((work_seconds(work, hardware, default_constants()) * ratio).flat[0])

    return Machine(hardware.fabric, measured_s)
