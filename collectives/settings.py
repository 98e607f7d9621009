"""What the words beside a measured run tell of how NCCL was set: its version, what it forced, how it was started."""

import re
from collections.abc import Iterable

from flopcast.collectives.group import USUAL_NCCL_MINOR, Fabric

# That a run did without the switches' own reduction; a recommendation is not what a run did.
_WITHOUT_NVLS = re.compile(
    r"NCCL_NVLS_ENABLE=0(?! RECOMMENDED)|\bNVLS (?:AND SHARP )?(?:IS |WAS )?(?:OFF|DISABLED)\b|\bWITHOUT NVLS\b"
)
# Machines whose provider sets larger chunks: AWS's plugin for EFA and Google's gIB.
_LARGE_CHUNKS = re.compile(r"\bEFA|\bp5(?:en?)?\b|\bp6-b[23]00\b|\ba3-ultragpu|\ba4-highgpu", re.IGNORECASE)
LARGE_CHUNK_BYTES = 512 * 2**10
_ALGORITHMS = {"RING": "ring", "TREE": "tree", "NVLSTREE": "nvls-tree", "NVLS": "nvls", "COLLNET": "collnet"}


def algorithm(note: str) -> str:
    """The algorithm that the run forced with NCCL_ALGO, or ""."""
    found = re.search(r"NCCL_ALGO=(?:ALLREDUCE:)?(RING|TREE|NVLSTREE|NVLS|COLLNET)(?:DIRECT|CHAIN)?\b", note.upper())
    return _ALGORITHMS[found.group(1)] if found else ""


def without_nvls(note: str) -> bool:
    """Whether the run switched NVLS off."""
    return bool(_WITHOUT_NVLS.search(note.upper()))


def nccl_minor(version: str) -> int:
    """The x of NCCL 2.x, the model's usual one where the table does not say or another library ran."""
    found = re.search(r"(?<![0-9.])2\.([0-9]+)", version)
    return int(found.group(1)) if found and "RCCL" not in version.upper() else USUAL_NCCL_MINOR


def min_channels(note: str) -> int:
    """The channels that the run asked for, 1 where the notes say nothing."""
    found = re.search(r"NCCL_MIN(?:/MAX)?_(?:CTAS|NCHANNELS)=([0-9]+)", note.upper())
    return max(int(found.group(1)), 1) if found else 1


def nvls_chunk_bytes(words: Iterable[str]) -> int:
    """NCCL_NVLS_CHUNKSIZE where the words give it, 512 KiB on the machines of clouds that set it, else NCCL's own."""
    said = " ".join(words)
    if found := re.search(r"NCCL_NVLS_CHUNKSIZE=([1-9][0-9]*)", said):
        return int(found.group(1))
    return LARGE_CHUNK_BYTES if _LARGE_CHUNKS.search(said) else int(Fabric.nvls_chunk_bytes)


def gpus_per_process(note: str, gpus: int) -> int:
    """The GPUs of one process (nccl-tests' -g), 1 where the notes say nothing."""
    found = re.search(r"(?:^|\s)-g\s*([0-9]+)\b", note)
    told = int(found.group(1)) if found else gpus if "single process" in note.lower() else 1
    return min(max(told, 1), gpus)
