"""The 2D-torus all-reduce on four gloo ranks, in grids of 2x2, 1x4 and 4x1."""


def test_on_four_ranks(four_ranks: dict[str, list[str]], case: str) -> None:
    assert four_ranks.get(case) == ["passed"] * 4, "\n".join(four_ranks.get(case, [str(four_ranks)]))
