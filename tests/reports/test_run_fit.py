"""What is inferred because a run took place, and that nothing is where it may have been otherwise."""

from typing import Any

import pytest
from builders import RUN

from flopcast.reports.runs import Run, express


def changed(**cells: Any) -> Run:
    return express({**RUN, **cells})


def inferred(run: Run) -> list[str]:
    assert not run.skipped
    return [words.partition(":")[0] for words in run.assumed if "would not fit" in words]


def test_nothing_is_inferred_where_it_fits_or_is_stated() -> None:
    assert inferred(changed(recompute=None)) == []
    assert inferred(changed(micro_batch=64, global_batch_seqs=64 * 64, recompute="none")) == []


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"recompute": None, "micro_batch": 32, "global_batch_seqs": 32 * 64}, ["recompute full"]),
        ({"recompute": "none", "micro_batch": None, "global_batch_seqs": 32 * 64}, ["micro_batch 4"]),
        ({"sharding": None, "hidden": 8192, "n_layers": 80, "n_heads": 64, "n_kv_heads": 64}, ["sharding zero3"]),
    ],
)
def test_what_must_have_been(cells: dict[str, Any], said: list[str]) -> None:
    assert inferred(changed(**cells)) == said


def test_a_step_keeps_its_sequences_where_its_passes_are_cut() -> None:
    stated = changed(recompute="full", micro_batch=None, global_batch_seqs=32 * 64).plan
    cut = changed(recompute="none", micro_batch=None, global_batch_seqs=32 * 64).plan
    assert stated is not None
    assert cut is not None
    assert stated.global_batch_sequences == cut.global_batch_sequences == 32 * 64


def test_software_that_spills_onto_the_host_recomputes_nothing() -> None:
    cells = {"recompute": None, "micro_batch": 32, "global_batch_seqs": 32 * 64}
    assert inferred(changed(framework="Megatron-Bridge", sharding="fsdp", **cells)) == []
