"""A profile in a few lines: what was measured, where, and the best of each kind."""

from collections.abc import Iterator

from flopcast.simulator.profile import Profile, Sample
from flopcast.simulator.profile_words import KIND_WORDS, devices, median_spread
from flopcast.simulator.units import format_rate, format_seconds


def summary(profile: Profile) -> Iterator[str]:
    """One line for the machine and one for each kind of sample."""
    yield f"{profile.device}: {devices(profile)}, {profile.date}"
    for kind in KIND_WORDS:
        samples = profile.of_kind(kind)
        if samples:
            spread = median_spread(samples)
            yield f"{kind:<11}{len(samples):>4} samples, {_best(samples):<32} median spread {spread:.0%}"
    if profile.skipped:
        yield f"{len(profile.skipped)} samples do not run here; the file says why"


def _best(samples: list[Sample]) -> str:
    """The highest rate, or the shortest time where the samples have no work."""
    by_flop = [sample.flop / sample.median_s for sample in samples if sample.flop]
    if by_flop:
        return f"at best {format_rate(max(by_flop), 'FLOP/s')}"
    by_bytes = [sample.bytes / sample.median_s for sample in samples if sample.bytes]
    if by_bytes:
        return f"at best {format_rate(max(by_bytes), 'B/s')}"
    return f"at least {format_seconds(min(sample.median_s for sample in samples))}"
