"""What each of two ranks does in the checkpoint tests; it writes what it found as JSON for the test to read."""

import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from flopcast.collectives.running.pytorch import leave_process_group
from flopcast.errors import InputError
from flopcast.trainer import checkpoint
from flopcast.trainer.agreement import everywhere
from flopcast.trainer.checkpoint import Checkpoints, folder_name
from flopcast.trainer.processes import is_lost_rank

DESCRIPTION = {"model": "a model"}
SHARD_LIMIT_BYTES = 2000  # of any file, where the disk is full: a manifest fits, a shard does not


def whole_tensors(step: int) -> dict[str, torch.Tensor]:
    """Uneven rows (3 over 2 ranks), one row (one rank holds none), a scalar, 16 bits."""
    draw = torch.Generator().manual_seed(step)
    return {
        "model.uneven": torch.randn(3, 40, generator=draw),
        "model.one": torch.randn(1, 7, generator=draw),
        "model.half": torch.randn(4, 2, generator=draw).bfloat16(),
        "optimizer.moment": torch.randn(256, 4, generator=draw),
        "optimizer.step": torch.tensor(float(step)),
    }


def sharded(whole: dict[str, torch.Tensor], mesh: DeviceMesh) -> dict[str, dict[str, object]]:
    """The nested state of an engine: model and optimizer, with a number that no checkpoint holds."""
    state: dict[str, dict[str, object]] = {"model": {}, "optimizer": {"rate": 1e-3}}
    for name, tensor in whole.items():
        section, key = name.split(".")
        placement = Shard(0) if tensor.ndim else Replicate()
        state[section][key] = distribute_tensor(tensor.clone(), mesh, [placement])
    return state


def differences(state: dict[str, dict[str, object]], step: int) -> float:
    """The largest difference between a state and what was saved at ``step``."""
    found = 0.0
    for name, expected in whole_tensors(step).items():
        section, key = name.split(".")
        tensor = state[section][key]
        assert isinstance(tensor, DTensor)
        found = max(found, float((tensor.full_tensor().float() - expected.float()).abs().max()))
    return found


def message_of(action: Callable[[], object]) -> str:
    try:
        action()
    except InputError as error:
        return str(error)
    return "no error"


def work(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/rendezvous")
    mesh = init_device_mesh("cpu", (2,))
    checkpoints = Checkpoints(folder / "run", keep=2)
    found: dict[str, object] = {}
    for step in (1, 2, 3):
        state = sharded(whole_tensors(step), mesh)
        checkpoints.save(step, state, {**DESCRIPTION, "order": {"step": step}})
        for section in state.values():  # the checkpoint is of the moment of save, whatever training does next
            for tensor in section.values():
                if isinstance(tensor, DTensor):
                    tensor.to_local().fill_(-1.0)
    checkpoints.wait()
    found["steps"] = checkpoints.steps()

    fresh = sharded(whole_tensors(99), mesh)
    manifest = checkpoints.load(3, fresh, DESCRIPTION)
    found["order"] = manifest["order"]
    found["difference"] = differences(fresh, 3)

    found["other model"] = message_of(lambda: checkpoints.load(3, fresh, {"model": "another"}))
    found["on one rank"] = message_of(lambda: everywhere(lambda: fail(rank)))
    found["full disk"] = message_of(lambda: save_on_a_full_disk(rank, checkpoints, mesh))
    found["after full disk"] = [checkpoints.steps(), sorted(p.name for p in (folder / "run").iterdir())]
    found["difference after full disk"] = load_difference(checkpoints, 3, mesh)

    shard = sorted((folder / "run" / folder_name(3)).glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    dist.barrier()
    for name, damaged in (("truncated", whole[:-1]), ("corrupted", whole[:-1] + bytes([whole[-1] ^ 1]))):
        if rank == 0:
            shard.write_bytes(damaged)
        dist.barrier()
        untouched = sharded(whole_tensors(99), mesh)
        found[name] = message_of(lambda state=untouched: checkpoints.load(3, state, DESCRIPTION))  # type: ignore[misc]
        found[f"{name} difference"] = differences(untouched, 99)
        dist.barrier()
    if rank == 0:
        shutil.rmtree(folder / "run" / folder_name(3))
    dist.barrier()
    found["one before"] = load_difference(checkpoints, 2, mesh)
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))
    leave_process_group()


def hang_while_writing(rank: int, folder: Path) -> None:
    """Rank 1 stops, all threads of it, in the middle of a checkpoint; rank 0 writes how long it waited and why."""
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/rendezvous-hang")
    mesh = init_device_mesh("cpu", (2,))
    checkpoints = Checkpoints(folder / "hang", keep=2, timeout_s=1.0)
    if rank == 1:
        checkpoint.sha256 = lambda _: os.kill(os.getpid(), signal.SIGSTOP)  # type: ignore[assignment]
    checkpoints.save(1, sharded(whole_tensors(1), mesh), DESCRIPTION)
    started = time.monotonic()
    try:
        checkpoints.wait()
    except RuntimeError as error:
        found = {"seconds": time.monotonic() - started, "message": str(error), "lost": is_lost_rank(error)}
        (folder / "hang.json").write_text(json.dumps(found))
    os._exit(0)  # the thread still waits


def fail(rank: int) -> None:
    if rank == 1:
        raise InputError("no text on this rank")


def load_difference(checkpoints: Checkpoints, step: int, mesh: DeviceMesh) -> float:
    state = sharded(whole_tensors(99), mesh)
    checkpoints.load(step, state, DESCRIPTION)
    return differences(state, step)


def save_on_a_full_disk(rank: int, checkpoints: Checkpoints, mesh: DeviceMesh) -> None:
    """Rank 1 cannot write more than a small file: the operating system refuses, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    state = sharded(whole_tensors(4), mesh)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (SHARD_LIMIT_BYTES, hard))
    try:
        checkpoints.save(4, state, DESCRIPTION)
        checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
