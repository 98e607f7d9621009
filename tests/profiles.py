"""Profiles made by hand for the tests, with times that a formula gives."""

from typing import Any

from flopcast.simulator.profile import FORMAT, Device, Profile, Sample

DATE = "2026-01-02T03:04:05+00:00"


def sample(kind: str, median_s: float, arguments: dict[str, Any], **work: Any) -> Sample:
    return Sample(kind=kind, arguments=arguments, median_s=median_s, spread=0.01, num_samples=5, **work)  # type: ignore[arg-type]


def gemm(m: int, n: int, k: int, flop_per_s: float, layout: str = "nt") -> Sample:
    flop = 2.0 * m * n * k
    arguments = {"m": m, "n": n, "k": k, "layout": layout, "dtype": "bfloat16"}
    return sample("gemm", flop / flop_per_s, arguments, flop=flop)


def copy(num_bytes: int, bytes_per_s: float) -> Sample:
    return sample("copy", 2 * num_bytes / bytes_per_s, {"bytes": num_bytes}, bytes=2.0 * num_bytes)


def collective(name: str, num_bytes: int, seconds: float, ranks: int = 2, nodes: int = 1) -> Sample:
    arguments = {"collective": name, "bytes": num_bytes, "ranks": ranks, "nodes": nodes}
    return sample("collective", seconds, arguments, bytes=float(num_bytes))


def cpu_profile(*more: Sample, host: str = "one", ranks: int = 2, scale: float = 1.0) -> Profile:
    """A CPU of 0.5 TFLOP/s and 10 GB/s; ``scale`` slows every sample."""
    samples = [
        *(gemm(m, n, k, 0.5e12 / scale) for m in (256, 1024) for n in (256, 1024) for k in (256, 1024)),
        *(copy(size, 10e9 / scale) for size in (2**16, 2**24)),
        *(
            collective(name, size, (1e-4 + size / 1e9) * scale)
            for name in ("all_gather", "reduce_scatter", "all_reduce")
            for size in (2**12, 2**18, 2**24)
        ),
        sample("launch", 2e-3 * scale, {"op": "layer", "listed_kernels": 100.0}),
        *more,
    ]
    devices = [Device(host=host, index=index) for index in range(ranks)]
    spread = [s.model_copy(update={"by_device": [s.median_s] * ranks}) for s in samples]
    return Profile(
        format=FORMAT,
        device="Some CPU",
        device_type="cpu",
        memory_bytes=16e9,
        ranks_per_node=ranks,
        date=DATE,
        versions={"flopcast": "0.1.0"},
        devices=devices,
        samples=spread if ranks > 1 else samples,
    )


def gpu_profile(*samples: Sample, device: str = "NVIDIA H100 80GB HBM3", host: str = "one") -> Profile:
    return Profile(
        format=FORMAT,
        device=device,
        device_type="cuda",
        memory_bytes=79.2 * 2**30,
        ranks_per_node=1,
        date=DATE,
        versions={"flopcast": "0.1.0"},
        devices=[Device(host=host, index=0, environment={"power.limit": "700.00"})],
        samples=list(samples) or [gemm(4096, 4096, 4096, 600e12)],
    )
