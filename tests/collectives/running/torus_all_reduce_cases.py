"""Cases of the 2D-torus all-reduce on four ranks."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from flopcast.collectives.running.torus_all_reduce import torus_all_reduce
from flopcast.errors import InputError

GRIDS = ((2, 2), (1, 4), (4, 1))


def mine(numel: int, dtype: torch.dtype) -> torch.Tensor:
    """Small whole numbers, whose sums every type holds exactly in any order."""
    return ((torch.arange(numel) * 7 + dist.get_rank() * 3) % 11 - 5).to(dtype)


def reference(tensor: torch.Tensor) -> torch.Tensor:
    total = tensor.double()
    dist.all_reduce(total)
    return total


def meshes() -> list[DeviceMesh]:
    return [dist.init_device_mesh("cpu", grid) for grid in GRIDS]


def case_sum_of_every_size_and_type_is_exact() -> None:
    for mesh in meshes():
        for dtype in (torch.float32, torch.bfloat16, torch.int64):
            for numel in (1, 3, 4, 5, 1000, 1001, 4099):
                tensor = mine(numel, dtype)
                expected = reference(tensor)
                torus_all_reduce(tensor, mesh, chunk_bytes=1024)
                assert tensor.dtype == dtype
                assert torch.equal(tensor.double(), expected), (mesh, dtype, numel)


def case_mean_matches_the_mean() -> None:
    for mesh in meshes():
        tensor = torch.randn(37, 53, generator=torch.Generator().manual_seed(dist.get_rank()))
        expected = reference(tensor) / 4
        torus_all_reduce(tensor, mesh, "avg", chunk_bytes=512)
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)
        first = tensor.clone()
        dist.broadcast(first, src=0)
        assert torch.equal(first, tensor)


def case_an_average_that_fits_its_type_does_not_overflow() -> None:
    """Four times 40000 is beyond fp16's 65504."""
    for mesh in meshes():
        tensor = torch.full((1001,), 40000.0, dtype=torch.float16)
        torus_all_reduce(tensor, mesh, "avg", chunk_bytes=512)
        assert torch.equal(tensor, torch.full_like(tensor, 40000.0))


def case_a_parameter_is_memory_like_any_other() -> None:
    for mesh in meshes():
        parameter = torch.nn.Parameter(mine(70, torch.float64))
        torus_all_reduce(parameter, mesh, chunk_bytes=128)
        torch.testing.assert_close(parameter.detach(), reference(mine(70, torch.float64)))


def case_any_chunk_gives_the_same_bits() -> None:
    mesh = meshes()[0]
    source = torch.randn(5003, generator=torch.Generator().manual_seed(dist.get_rank()))
    results = []
    for chunk_bytes in (8, 400, 20000, 2**25):
        tensor = source[:101].clone() if chunk_bytes == 8 else source.clone()
        torus_all_reduce(tensor, mesh, chunk_bytes=chunk_bytes)
        results.append(tensor)
    torch.testing.assert_close(results[0], results[-1][:101])
    torch.testing.assert_close(results[1], results[-1])
    torch.testing.assert_close(results[2], results[-1])


def case_chunks_overlap() -> None:
    """Scatter, all-reduce and gather of neighbouring chunks are under way together, in the order of the phases."""
    from flopcast.collectives.running import torus_all_reduce as module

    order: list[str] = []

    def spy(name: str, call: object) -> object:
        def called(*args: object, **options: object) -> object:
            order.append(name)
            return call(*args, **options)  # type: ignore[operator]

        return called

    mesh = meshes()[0]
    originals = module.reduce_scatter_single, module.all_gather_single, dist.all_reduce
    try:
        module.reduce_scatter_single = spy("scatter", originals[0])  # type: ignore[assignment]
        module.all_gather_single = spy("gather", originals[1])  # type: ignore[assignment]
        dist.all_reduce = spy("reduce", originals[2])
        torus_all_reduce(torch.ones(1000), mesh, chunk_bytes=1000, check=False)
    finally:
        module.reduce_scatter_single, module.all_gather_single, dist.all_reduce = originals
    steady = ["scatter", "reduce", "gather"]
    assert order == ["scatter", "scatter", "reduce", *steady * 2, "reduce", "gather", "gather"]


def case_bad_input_is_the_same_error_on_every_rank() -> None:
    mesh, rank = meshes()[0], dist.get_rank()
    with pytest.raises(InputError, match=r"rank 3 brings 9 elements of torch\.float32 and rank 0 8 elements"):
        torus_all_reduce(torch.ones(9 if rank == 3 else 8), mesh)
    with pytest.raises(InputError, match=r"rank 1 brings 8 elements of torch\.int64"):
        torus_all_reduce(torch.ones(8, dtype=torch.int64 if rank == 1 else torch.float32), mesh)
    with pytest.raises(InputError, match="empty"):
        torus_all_reduce(torch.ones(0), mesh)
    with pytest.raises(InputError, match="another layout or operation"):
        torus_all_reduce(torch.ones(8), mesh, "avg" if rank == 2 else "sum")
    with pytest.raises(InputError, match="give sum or avg"):
        torus_all_reduce(torch.ones(8), mesh, "max")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="average floating-point"):
        torus_all_reduce(torch.ones(8, dtype=torch.int64), mesh, "avg")
    with pytest.raises(InputError, match="not contiguous" if rank == 0 else "rank 0 has bad input"):
        torus_all_reduce(torch.ones(4, 4).t() if rank == 0 else torch.ones(4, 4), mesh)
    with pytest.raises(InputError, match="needs two"):
        torus_all_reduce(torch.ones(8), dist.init_device_mesh("cpu", (4,)))
    tensor = torch.ones(8)
    torus_all_reduce(tensor, mesh)
    assert torch.equal(tensor, torch.full((8,), 4.0))
