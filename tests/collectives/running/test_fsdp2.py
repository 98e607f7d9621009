"""The 4-bit gather inside FSDP2 on four gloo ranks: fully sharded, kept in the node, hybrid."""


def test_on_four_ranks(four_ranks: dict[str, list[str]], case: str) -> None:
    assert four_ranks.get(case) == ["passed"] * 4, "\n".join(four_ranks.get(case, [str(four_ranks)]))
