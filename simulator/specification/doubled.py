"""Figures of a cluster file that are twice a datasheet's: NVLink counted both ways, and peaks of sparse products."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flopcast.simulator.specification.document import Bandwidth
from flopcast.simulator.specification.gpu import CatalogueGpu, GpuTable, catalogue_gpu, gpu_names, known_gpu

# Figures are the same where they differ by less: datasheets round 989.4 to 989, and sellers to 1,000.
SAME = 0.03


@dataclass(frozen=True)
class Doubled:
    """The figure at ``path`` of a file is twice ``usual``, the datasheet's of the catalogue's ``gpu``; SI units."""

    path: str
    given: float
    usual: float
    gpu: str


def doubled_figures(gpu: GpuTable, nvlink: Bandwidth) -> Iterator[Doubled]:
    """Every figure that is twice that of the GPU of this name, or of one of its generation, and none's own."""
    alike = list(_alike(gpu))
    # A catalogue GPU's own peaks are the datasheet's.
    given = {"node.nvlink": nvlink.value}
    if not isinstance(gpu, CatalogueGpu):
        given |= {"gpu.tensor": gpu.tensor.value, "gpu.fp8": gpu.fp8.value if gpu.fp8 else 0.0}
    for path, value in given.items():
        usual = {entry.name: _figure(entry, path) for entry in alike}
        if any(_same(value, figure) for figure in usual.values()):
            continue
        twice = [name for name, figure in usual.items() if _same(value, 2 * figure)]
        if twice:
            yield Doubled(path, value, usual[twice[0]], twice[0])


def _alike(gpu: GpuTable) -> Iterable[CatalogueGpu]:
    if isinstance(gpu, CatalogueGpu):
        return [gpu]
    name = known_gpu(gpu.name)
    if name is not None:
        return [catalogue_gpu(name)]
    # What no generation claims has nothing in common.
    return [entry for entry in map(catalogue_gpu, gpu_names()) if entry.architecture == gpu.architecture != "other"]


def _figure(entry: CatalogueGpu, path: str) -> float:
    if path == "gpu.fp8":
        return entry.fp8.value if entry.fp8 else 0.0
    return entry.tensor.value if path == "gpu.tensor" else entry.node.nvlink.value


def _same(one: float, other: float) -> bool:
    return other > 0 and abs(one / other - 1) < SAME
