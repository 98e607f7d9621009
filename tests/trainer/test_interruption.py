from pathlib import Path

import pytest
from training_runs import write_config

from flopcast.trainer.interruption import interrupt


@pytest.mark.usefixtures("forked_ranks")
def test_two_kills_lose_nothing_and_change_no_bit(tmp_path: Path) -> None:
    """The second kills a run that was resumed. Under the 4-bit all-gather, whose codes are of a checkpoint's shards."""
    config = tmp_path / "run.toml"
    fields = {"plan__strategy": "zero3+q4", "plan__micro_batch": 1, "checkpoint__every": 2}
    write_config(config, tmp_path, optimizer__num_steps=20, **fields)
    found = interrupt(config, [], kills=2, num_ranks=2, output=tmp_path / "runs", seed=1)
    assert len(found.kills) == 2
    assert all(kill.resumed_from >= kill.last_checkpoint for kill in found.kills)
    assert found.num_losses_compared >= 20
    assert found.losses_equal
    assert found.checkpoint_equal
    assert found.passed
