"""Which of many measured devices stand out, and by how much: a slow node sets the pace of the whole job."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from flopcast.simulator.profile import KINDS, Kind, Profile

# Iglewicz and Hoaglin 1993 call a modified z-score beyond 3.5 an outlier; the median absolute deviation times 1.4826
# estimates a standard deviation.
OUTLIER = 3.5
DEVIATION_PER_MAD = 1.4826
# Repeats of one measurement differ by about a hundredth, so devices are not told apart more finely.
SMALLEST_DEVIATION = 0.01
FEWEST_DEVICES = 3


@dataclass(frozen=True)
class OddDevice:
    """A device, or all devices of a host, that stands out in one kind: ``slower`` 0.12 takes 12 % longer than the rest.

    ``score``: its robust z-score, log seconds over the median device's in deviations of the devices.
    """

    where: str
    kind: Kind
    slower: float
    score: float

    def sentence(self) -> str:
        """``host b12 is 12 % slower than the others in gemm (robust z-score 11)``."""
        way = "slower" if self.slower > 0 else "faster"
        return (
            f"{self.where} is {abs(self.slower):.0%} {way} than the others in {self.kind} "
            f"(robust z-score {self.score:.0f})"
        )


def odd_devices(profile: Profile) -> list[OddDevice]:
    """The devices that stand out, slowest first; a host whose devices all do is named once.

    Needs three devices: of two nobody can say which is odd.
    """
    found = [odd for kind in KINDS for odd in _odd_of_kind(profile, kind)]
    return sorted(found, key=lambda odd: -odd.slower)


def _odd_of_kind(profile: Profile, kind: Kind) -> list[OddDevice]:
    logs: list[list[float]] = [[] for _ in profile.devices]
    for sample in profile.of_kind(kind):
        for place, seconds in enumerate(sample.by_device):
            if seconds is not None:
                logs[place].append(math.log(seconds / sample.median_s))
    present = [place for place, values in enumerate(logs) if values]
    if len(present) < FEWEST_DEVICES:
        return []
    ratios = {place: statistics.median(logs[place]) for place in present}
    center = statistics.median(ratios.values())
    distances = [abs(ratio - center) for ratio in ratios.values()]
    deviation = max(DEVIATION_PER_MAD * statistics.median(distances), SMALLEST_DEVIATION)
    scores = {place: (ratio - center) / deviation for place, ratio in ratios.items()}
    odd = [place for place in present if abs(scores[place]) > OUTLIER]
    return [
        OddDevice(
            where,
            kind,
            math.expm1(statistics.mean(ratios[place] - center for place in places)),
            statistics.mean(scores[place] for place in places),
        )
        for where, places in _by_host(profile, odd)
    ]


def _by_host(profile: Profile, odd: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Each odd device by its label, or once by its host where every device of the host is odd."""
    hosts: dict[str, list[int]] = {}
    for place, device in enumerate(profile.devices):
        hosts.setdefault(device.host, []).append(place)
    named: list[tuple[str, list[int]]] = []
    for host, places in hosts.items():
        inside = [place for place in places if place in odd]
        if inside == places:
            named.append((f"host {host}", inside))
        else:
            named += [(profile.devices[place].label, [place]) for place in inside]
    return named
