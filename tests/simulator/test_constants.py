"""Every constant stands with its range, unit, meaning and origin, and the cited tables are whole."""

from flopcast.collectives.group import ARCHITECTURES
from flopcast.simulator.constants import ATTENTION_SHARES, default_constants, entries
from flopcast.simulator.plan import CHOICES


def test_every_constant_is_inside_its_range_and_says_where_it_is_from() -> None:
    for entry in entries():
        assert entry.low <= entry.value <= entry.high, entry.name
        assert entry.low < entry.high, entry.name
        assert entry.unit, entry.name
        assert entry.meaning, entry.name
        assert entry.source, entry.name
        assert getattr(default_constants(), entry.name) == entry.value


def test_attention_shares_are_of_known_kernels_and_backward_is_the_slower() -> None:
    assert set(ATTENTION_SHARES) == set(ARCHITECTURES)
    for shares in ATTENTION_SHARES.values():
        assert "flash2" in shares
        for kernel, (forward, backward) in shares.items():
            assert kernel in CHOICES["attention"]
            assert 0 < backward <= forward < 1
