"""The 4-bit gather inside FSDP2 on four gloo ranks: fully sharded, kept in the node, hybrid."""

import pytest

CASES = (
    "case_parameters_arrive_as_their_round_trip",
    "case_training_follows_the_16_bit_gather",
    "case_the_node_keeps_the_payloads_and_sees_the_same_weights_again",
    "case_in_node_training_equals_full_sharding",
    "case_wrong_use_is_refused_in_a_sentence",
)


@pytest.mark.parametrize("case", CASES)
def test_on_four_ranks(four_ranks: dict[str, list[str]], case: str) -> None:
    name = f"fsdp2_cases.{case}"
    assert four_ranks.get(name) == ["passed"] * 4, "\n".join(four_ranks.get(name, [str(four_ranks)]))
