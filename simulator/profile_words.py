"""A profile in words: what was measured and on how many devices, and where its samples scatter too widely to trust."""

import statistics
from collections.abc import Iterator, Sequence
from types import MappingProxyType

from flopcast.simulator.profile import Kind, Profile, Sample

KIND_WORDS: MappingProxyType[Kind, str] = MappingProxyType(
    {
        "gemm": "matrix products",
        "attention": "attention",
        "copy": "memory bandwidth",
        "launch": "launches",
        "optimizer": "the optimizer",
        "kernel": "memory-bound kernels",
        "collective": "collectives",
    }
)
# Of a kind's median spread: our profiles of idle CPUs have at most 34 %, those taken beside other work 55 % and more.
WIDEST_SPREAD = 0.5


def measured(profile: Profile) -> Iterator[str]:
    """What was measured, and how far to trust it, in sentences that stand under an answer."""
    for kind, words in KIND_WORDS.items():
        if number := len(profile.of_kind(kind)):
            yield f"{words}: {_counted(number, 'sample')} on {devices(profile, 'of')}, {profile.date[:10]}"
    if caveat := scattered(profile):
        yield caveat


def scattered(profile: Profile) -> str:
    """One sentence that names the kinds whose median spread says that the machine was not idle; "" where none does."""
    spreads = {kind: median_spread(samples) for kind in KIND_WORDS if (samples := profile.of_kind(kind))}
    wide = [f"{kind} by {100 * spread:,.0f} %" for kind, spread in spreads.items() if spread > WIDEST_SPREAD]
    if not wide:
        return ""
    first, *others = wide
    named = ", ".join([first.replace(" by ", " samples scatter by "), *others])
    return f"{named}: something else runs here; measure again on an idle machine"


def median_spread(samples: Sequence[Sample]) -> float:
    """Of ``Sample.spread``, a share of the median."""
    return statistics.median(sample.spread for sample in samples)


def devices(profile: Profile, preposition: str = "on") -> str:
    """``2 devices on 1 host``."""
    hosts = len({device.host for device in profile.devices})
    return f"{_counted(len(profile.devices), 'device')} {preposition} {_counted(hosts, 'host')}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
