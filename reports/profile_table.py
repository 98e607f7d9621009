"""A profile in a few lines: what was measured, where, and the best of each kind."""

from collections.abc import Iterator

from flopcast.simulator.profile import KINDS, Profile, Sample


def summary(profile: Profile) -> Iterator[str]:
    """One line for the machine and one for each kind of sample."""
    hosts = len({device.host for device in profile.devices})
    yield (
        f"{profile.device}: {len(profile.devices)} device{'s' if len(profile.devices) > 1 else ''} on {hosts} "
        f"host{'s' if hosts > 1 else ''}, {profile.date}"
    )
    for kind in KINDS:
        samples = profile.of_kind(kind)
        if samples:
            spread = sorted(sample.spread for sample in samples)[len(samples) // 2]
            yield f"{kind:<11}{len(samples):>4} samples, {_best(samples):<32} median spread {spread:.0%}"
    if profile.skipped:
        yield f"{len(profile.skipped)} samples do not run here; the file says why"


def _best(samples: list[Sample]) -> str:
    """The highest rate, or the shortest time where the samples have no work."""
    by_flop = [sample.flop / sample.median_s for sample in samples if sample.flop]
    if by_flop:
        return f"at best {max(by_flop) / 1e12:.3g} TFLOP/s"
    by_bytes = [sample.bytes / sample.median_s for sample in samples if sample.bytes]
    if by_bytes:
        return f"at best {max(by_bytes) / 1e9:.3g} GB/s"
    return f"at least {min(sample.median_s for sample in samples) * 1e6:.3g} us"
