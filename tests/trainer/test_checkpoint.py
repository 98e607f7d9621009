import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from checkpoint_ranks import DESCRIPTION, differences, hang_while_writing, sharded, whole_tensors, work
from forked_ranks import server
from torch.distributed.device_mesh import init_device_mesh

from flopcast.errors import InputError
from flopcast.trainer.checkpoint import Checkpoints, complete_steps, folder_name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks have saved, loaded and failed."""
    folder = tmp_path_factory.mktemp("checkpoints")
    mp.start_processes(work, args=(folder,), nprocs=2, start_method=server().get_start_method())
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """What each rank found."""
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_the_last_checkpoints_are_kept_and_come_back_bit_for_bit(found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert rank["steps"] == [2, 3]
        assert rank["order"] == {"step": 3}
        assert rank["difference"] == 0.0


def test_every_rank_hears_of_an_error_on_one(found: list[dict[str, Any]]) -> None:
    assert found[0]["on one rank"] == "rank 1: no text on this rank"
    assert found[1]["on one rank"] == "no text on this rank"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("truncated", "it is truncated; remove "),
        ("corrupted", "it is corrupted; remove "),
        ("other model", "model is 'a model' in the checkpoint and 'another' in this run"),
        ("full disk", r"cannot be written \(rank 1: .*File too large.*the checkpoints before it are untouched"),
    ],
)
def test_faults_are_said_on_every_rank(found: list[dict[str, Any]], fault: str, message: str) -> None:
    for rank in found:
        assert re.search(message, rank[fault]), rank[fault]
        assert "\n" not in rank[fault]


def test_a_damaged_checkpoint_names_the_file_and_the_one_to_go_on_from(found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert "shard-00002" in rank["truncated"]
        assert f"to go on from {folder_name(2)}" in rank["truncated"]
        # No tensor is touched before every shard has been checked.
        assert rank["truncated difference"] == rank["corrupted difference"] == 0.0
        assert rank["one before"] == 0.0


def test_a_full_disk_leaves_the_last_good_checkpoint_and_nothing_half_written(found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert rank["after full disk"] == [[2, 3], [folder_name(2), folder_name(3)]]
        assert rank["difference after full disk"] == 0.0


def test_a_rank_that_hangs_while_a_checkpoint_is_written_is_named(tmp_path: Path) -> None:
    method = server().get_start_method()
    started = mp.start_processes(hang_while_writing, args=(tmp_path,), nprocs=2, join=False, start_method=method)
    processes = started.processes
    try:
        processes[0].join(120)
        found = json.loads((tmp_path / "hang.json").read_text())
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert "Ranks 1 failed to pass monitoredBarrier" in found["message"]
    assert found["lost"]


def test_no_file_of_a_checkpoint_is_a_pickle(folder: Path) -> None:
    names = {path.name for path in (folder / "run" / folder_name(2)).iterdir()}
    shards = {f"shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2)}
    assert names == {"manifest.json", *shards}


@pytest.mark.usefixtures("alone")
def test_two_ranks_checkpoint_loads_on_one(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    state = sharded(whole_tensors(99), init_device_mesh("cpu", (1,)))
    Checkpoints(tmp_path / "run", keep=1).load(2, state, DESCRIPTION)
    assert differences(state, 2) == 0.0


@pytest.mark.usefixtures("alone")
def test_a_shard_that_the_manifest_does_not_know_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    step = tmp_path / "run" / folder_name(2)
    own = next(step.glob("shard-00001*"))
    shutil.copy(own, step / own.name.replace("shard-00001", "shard-00003"))
    state = sharded(whole_tensors(99), init_device_mesh("cpu", (1,)))
    with pytest.raises(InputError, match=r"shard-00003\S*: is not in manifest\.json, .*; remove "):
        Checkpoints(tmp_path / "run", keep=1).load(2, state, DESCRIPTION)


@pytest.mark.usefixtures("alone")
def test_what_a_killed_run_left_is_not_a_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    mesh = init_device_mesh("cpu", (1,))
    checkpoints.save(5, sharded(whole_tensors(5), mesh), DESCRIPTION)
    checkpoints.wait()
    shutil.copytree(tmp_path / folder_name(5), tmp_path / f".{folder_name(6)}.partial")
    shutil.copytree(tmp_path / folder_name(5), tmp_path / folder_name(7))
    (tmp_path / folder_name(7) / "manifest.json").unlink()
    assert complete_steps(tmp_path) == [5]
    with pytest.raises(
        InputError, match=rf"{folder_name(7)}: is no whole checkpoint, as it has no manifest\.json; remo"
    ):
        Checkpoints(tmp_path, keep=1)
    shutil.rmtree(tmp_path / folder_name(7))
    again = Checkpoints(tmp_path, keep=1)
    assert again.steps() == [5]
    assert not list(tmp_path.glob(".step-*"))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"format": 1, "shards": {"x": {}}}'])
def test_a_damaged_manifest_is_refused(tmp_path: Path, manifest: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    (tmp_path / folder_name(1)).mkdir()
    (tmp_path / folder_name(1) / "manifest.json").write_text(manifest)
    with pytest.raises(InputError, match=r"manifest\.json: is not the manifest .*; remove .* to start over"):
        checkpoints.load(1, {}, {})


@pytest.mark.usefixtures("alone")
def test_a_checkpoint_without_one_of_the_tensors_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"model": {"a": torch.zeros(2)}}, DESCRIPTION)
    checkpoints.wait()
    with pytest.raises(InputError, match=r"does not fit this run .*model.b"):
        checkpoints.load(1, {"model": {"b": torch.zeros(2)}}, DESCRIPTION)
