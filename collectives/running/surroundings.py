"""Where a benchmark ran: the process group of torchrun, the hosts and devices of its ranks, and versions."""

import os
import platform
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from flopcast.collectives.running.agreement import reporting
from flopcast.collectives.running.pytorch import all_gather_single, leave_process_group
from flopcast.errors import InputError
from flopcast.kernels.environment import device_name
from flopcast.version import __version__

_TEXT_BYTES = 256
_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def process_group(backend: str | None, timeout_s: float) -> Iterator[torch.device]:
    """Join the group that torchrun describes, or be a group of one; gives the device of this rank.

    ``backend`` is nccl where there is a GPU and gloo where not, unless named. A group that the caller has already
    joined is used as it is and left open.
    """
    if dist.is_initialized():
        yield _device(dist.get_backend())
        return
    present = [name for name in _TORCHRUN if name in os.environ]
    if present and len(present) < len(_TORCHRUN):
        missing = ", ".join(name for name in _TORCHRUN if name not in present)
        raise InputError(f"{missing} is not set but {present[0]} is; start the ranks with torchrun")
    chosen = backend or ("nccl" if torch.cuda.is_available() else "gloo")
    if chosen not in dist.Backend.backend_list:
        raise InputError(f"backend '{chosen}' is unknown; give one of {', '.join(dist.Backend.backend_list)}")
    if chosen == "nccl" and not torch.cuda.is_available():
        raise InputError("backend 'nccl' needs a GPU; give --backend gloo")
    device = _device(chosen)
    timeout = timedelta(seconds=timeout_s)
    with reporting("joining the process group"):
        if present:
            dist.init_process_group(chosen, timeout=timeout, device_id=device if device.type == "cuda" else None)
        else:
            dist.init_process_group(chosen, store=HashStore(), rank=0, world_size=1, timeout=timeout)
    try:
        yield device
    finally:
        leave_process_group()


def _device(backend: str) -> torch.device:
    if "nccl" not in backend:
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise InputError(
            f"local rank {local} has no GPU of its own, the node has {torch.cuda.device_count()}; "
            "lower torchrun's --nproc-per-node"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


@dataclass(frozen=True)
class Topology:
    """``hosts`` and ``devices`` in rank order."""

    hosts: tuple[str, ...]
    devices: tuple[str, ...]

    @property
    def num_nodes(self) -> int:
        """Different hosts."""
        return len(set(self.hosts))

    @property
    def ranks_per_node(self) -> int:
        """Ranks of each host where all have as many and in a row, else 0."""
        per_node = len(self.hosts) // self.num_nodes
        blocks = [self.hosts[first : first + per_node] for first in range(0, len(self.hosts), per_node)]
        return per_node if all(len(set(block)) == 1 for block in blocks) and len(blocks) == self.num_nodes else 0

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the torus: nodes by GPUs, or the most nearly square one inside a single node."""
        ranks = len(self.hosts)
        if self.num_nodes > 1 and self.ranks_per_node:
            return self.num_nodes, self.ranks_per_node
        rows = max(rows for rows in range(1, ranks + 1) if ranks % rows == 0 and rows * rows <= ranks)
        return rows, ranks // rows


def topology(device: torch.device) -> Topology:
    """Hosts and devices of all ranks, told to all ranks."""
    hosts, devices = gather_text(socket.gethostname(), device), gather_text(device_name(device), device)
    return Topology(tuple(hosts), tuple(devices))


def versions() -> dict[str, str]:
    """Of flopcast, Python, PyTorch and, on GPUs, CUDA and NCCL."""
    found = {"flopcast": __version__, "python": platform.python_version(), "torch": torch.__version__}
    if torch.cuda.is_available():
        found["cuda"] = str(torch.version.cuda)
        if dist.is_nccl_available():
            parts: tuple[int, ...] = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
            found["nccl"] = ".".join(str(part) for part in parts)
    return found


def nccl_settings() -> dict[str, str]:
    """The environment's NCCL_ variables, which change what is measured."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith("NCCL_")}


def gather_text(text: str, device: torch.device) -> list[str]:
    """A short text from every rank, without pickle."""
    mine = text.encode()[:_TEXT_BYTES].ljust(_TEXT_BYTES, b"\0")
    everyone = torch.empty(dist.get_world_size() * _TEXT_BYTES, dtype=torch.uint8, device=device)
    with reporting("comparing hosts"):
        all_gather_single(everyone, torch.frombuffer(bytearray(mine), dtype=torch.uint8).to(device))
    rows = everyone.cpu().view(-1, _TEXT_BYTES)
    return [bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for row in rows]
