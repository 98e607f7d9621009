"""What cells say of recomputation: the kind, and of how many layers."""

import pytest
from builders import RUN

from flopcast import InputError
from flopcast.reports.run_recompute import layers_in, recompute_in
from flopcast.reports.runs import express
from flopcast.simulator.plan import Plan


@pytest.mark.parametrize(
    ("text", "recompute"),
    [
        *(("none", "none"), ("false", "none"), ("0", "none"), ("selective", "selective"), ("full", "full")),
        *(("yes", "full"), ("activation checkpointing", "full"), ("selective checkpointing", "selective")),
        *(("minimal_flash", "selective"), ("block", "full"), ("1", "full"), ("ckpt", "full"), ("remat", "full")),
        *(("core_attn", "selective"), ("layernorm moe_act", "selective"), ("save_qkv_proj", "selective")),
        *(
            ("nothing_saveable", "full"),
            ("no checkpointing", "none"),
            ("none (default)", "none"),
            ("op", "selective"),
            ("activation recomputation", "full"),
        ),
    ],
)
def test_recomputation(text: str, recompute: str) -> None:
    assert recompute_in(text) == recompute


@pytest.mark.parametrize(
    ("text", "pp", "virtual_pp", "layers"),
    [
        # Of the model, of a stage, of a chunk: 80 layers on 4 stages of 5 chunks are 20 and 4.
        *(("10/80", 1, 1, 10), ("40 / 80", 4, 1, 10), ("5 of 20 layers", 4, 1, 5)),
        *(("40/80", 4, 5, 2), ("2/4", 4, 5, 2)),
        *(("5 of 80 layers checkpointed", 1, 1, 5), ("0/80", 1, 1, 0), ("80/80", 8, 1, 10)),
        # Megatron's number is that of every chunk.
        *(("block 3", 4, 5, 3), ("full (3 layers)", 4, 1, 3), ("full/block/10", 4, 1, 10), ("num_layers=4", 4, 1, 4)),
        *(("10 layers checkpointed", 1, 1, 10), ("full, 5 transformer layers", 4, 1, 5), ("7", 4, 1, 7)),
        *(("80 layers", 4, 1, 20), ("all 80 layers", 4, 1, 20)),
        *(("50%", 4, 1, 10), ("full 25 %", 1, 1, 20), ("checkpoint=0.5", 1, 1, 40), ("0.25", 4, 1, 5)),
        *(("every other layer", 1, 1, 40), ("every 4th layer", 1, 1, 20), ("selective 2", 1, 1, 40)),
        *((words, 4, 1, None) for words in ("full", "yes", "1", "0", "none", "selective", "uniform, 2 layers")),
    ],
)  # fmt: skip
def test_layers(text: str, pp: int, virtual_pp: int, layers: float | None) -> None:
    found = layers_in(text, 80, pp, virtual_pp)
    assert (found if found is None else float(found)) == layers


@pytest.mark.parametrize(("text", "words"), [("10/96", "such as 10/80"), ("90/80", "10/80"), ("block 30", "20 layers")])
def test_layers_that_there_are_not(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        layers_in(text, 80, pp=4)


def plan_of(**cells: object) -> Plan:
    run = express({**RUN, **cells})
    assert run.plan is not None, run.skipped
    return run.plan


def test_a_run_recomputes_so_many_layers() -> None:
    found = plan_of(recompute="8/32")
    assert (found.recompute, found.recompute_layers) == ("full", 8)
    assert plan_of(recompute="32/32") == plan_of(recompute="full")
    assert plan_of(recompute="0/32") == plan_of(recompute="none")


def test_a_part_of_a_chunks_layer_counts_as_one_and_is_doubted() -> None:
    cells = {"pp": 4, "framework": "Megatron-LM", "sharding": "zero1", "recompute": "10/32", "global_batch_seqs": 256}
    assert plan_of(**cells).recompute_layers == 3
    assert "recompute_layers 3: '10/32' are 2.5 of a model chunk's layers" in express({**RUN, **cells}).doubts


def test_hardware_flops_count_the_layers_that_are_computed_again() -> None:
    """A published HFU makes the step shorter, the more layers were computed again for it."""
    cells = {"measured_step_s": None, "measured_hfu_pct": 50}
    none, some, all_ = (
        express({**RUN, **cells, "recompute": words}).measured_step_s for words in ("none", "16/32", "full")
    )
    assert some == pytest.approx((none + all_) / 2)
