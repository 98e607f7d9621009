import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopcast.errors import InputError
from flopcast.trainer.data.packing import IGNORED, Packed
from flopcast.trainer.data.tokens import TokenFile


def token_file(lengths: list[int]) -> TokenFile:
    tokens = np.arange(sum(lengths), dtype=np.uint16)
    return TokenFile(tokens, np.cumsum(lengths).astype(np.uint64), "digest")


def test_a_row_over_two_documents_by_hand() -> None:
    packed = Packed("x", token_file([3, 4, 6]), seq_len=6)
    first, second = packed[0], packed[1]
    assert first.tokens.tolist() == [0, 1, 2, 3, 4, 5]
    # Token 2 ends the first document, so that token 3 is not predicted from it.
    assert first.targets.tolist() == [1, 2, IGNORED, 4, 5, 6]
    assert first.positions.tolist() == [0, 1, 2, 0, 1, 2]
    # Token 6 is the rest of the second document, token 7 begins the third.
    assert second.targets.tolist() == [IGNORED, 8, 9, 10, 11, 12]
    assert second.positions.tolist() == [0, 0, 1, 2, 3, 4]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 8))
def test_every_row_against_a_walk_token_by_token(lengths: list[int], seq_len: int) -> None:
    if sum(lengths) - 1 < seq_len:
        with pytest.raises(InputError, match="source 'x' has"):
            Packed("x", token_file(lengths), seq_len)
        return
    packed = Packed("x", token_file(lengths), seq_len)
    begins = set(np.cumsum([0, *lengths]).tolist())
    assert packed.num_sequences == (sum(lengths) - 1) // seq_len
    for index in range(packed.num_sequences):
        row, position = packed[index], 0
        for place in range(seq_len):
            token = index * seq_len + place
            position = 0 if place == 0 or token in begins else position + 1
            assert row.tokens[place] == token
            assert row.positions[place] == position
            assert row.targets[place] == (IGNORED if token + 1 in begins else token + 1)


def test_a_range_of_sequences() -> None:
    whole = Packed("x", token_file([100]), 8)
    kept = Packed("x", token_file([100]), 8, first=10)
    assert whole.num_sequences == 12
    assert kept.num_sequences == 2
    assert kept[0].tokens.tolist() == whole[10].tokens.tolist()
    with pytest.raises(InputError, match="give it more text or shorten"):
        Packed("x", token_file([100]), 8, first=12)
