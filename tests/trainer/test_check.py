from dataclasses import replace

import pytest
from builders import plan, small_model

from flopcast.errors import InputError
from flopcast.trainer.engine.check import check_plan


def test_cuda_graphs_are_refused() -> None:
    with pytest.raises(InputError, match=r"cuda_graphs=full: the trainer launches every kernel"):
        check_plan(small_model(), plan("ddp", 1, 1, cuda_graphs="full"), 1)


def test_more_tokens_than_learned_positions_are_refused() -> None:
    model = replace(small_model(), positions="learned", num_positions=64)
    check_plan(model, plan("ddp", 1, 1, seq_len=64), 1)
    with pytest.raises(InputError, match=r"seq_len=128 but small has 64 positions; use at most as many"):
        check_plan(model, plan("ddp", 1, 1, seq_len=128), 1)
    check_plan(small_model(), plan("ddp", 1, 1, seq_len=4096), 1)  # rotary positions go on
