"""The 2D-torus all-reduce on four gloo ranks, in grids of 2x2, 1x4 and 4x1."""

import pytest

CASES = (
    "case_a_parameter_is_memory_like_any_other",
    "case_sum_of_every_size_and_type_is_exact",
    "case_mean_matches_the_mean",
    "case_any_chunk_gives_the_same_bits",
    "case_chunks_overlap",
    "case_bad_input_is_the_same_error_on_every_rank",
)


@pytest.mark.parametrize("case", CASES)
def test_on_four_ranks(four_ranks: dict[str, list[str]], case: str) -> None:
    name = f"torus_all_reduce_cases.{case}"
    assert four_ranks.get(name) == ["passed"] * 4, "\n".join(four_ranks.get(name, [str(four_ranks)]))
