"""Sizes as nccl-tests writes them."""

import pytest

from flopcast.collectives.running.sizes import parse_size, sweep
from flopcast.errors import InputError


@pytest.mark.parametrize(
    ("text", "size"),
    [("8", 8), ("8K", 8192), ("1M", 2**20), ("2G", 2**31), ("1.5k", 1536), ("4 MiB", 2**22), ("1T", 2**40)],
)
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "-8", "8X", "1e6", "0", "nan", "8 K K", "99999T", "\n"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="size '"):
        parse_size(text)


def test_sweep() -> None:
    assert sweep(8, 100, 2) == [8, 16, 32, 64]
    assert sweep(8, 8, 2) == [8]
    with pytest.raises(InputError, match="no larger"):
        sweep(16, 8, 2)
    with pytest.raises(InputError, match="at least 2"):
        sweep(8, 16, 1)
