"""A cluster of the devices that a profile measured: datasheet and catalogue where nothing was measured, and said so."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flopcast.collectives import COLLECTIVES, all_reduce
from flopcast.collectives.calibration import calibrate
from flopcast.collectives.group import Fabric, Group
from flopcast.errors import InputError
from flopcast.simulator.calibrated import Calibrated, with_constants
from flopcast.simulator.catalogue.generic import generic_cluster
from flopcast.simulator.cluster import Cluster, Gpu
from flopcast.simulator.constants import default_constants
from flopcast.simulator.cost import USUAL_POWER_W, work_seconds
from flopcast.simulator.hardware import Hardware
from flopcast.simulator.measured import Correction, Measured
from flopcast.simulator.operation import AttentionCore, Collective, Gemm, Pointwise, Work
from flopcast.simulator.plan import CHOICES
from flopcast.simulator.profile import Profile, Sample
from flopcast.simulator.profile_words import measured as measured_words

# Which of PyTorch's backends measures a plan's attention kernel, in order; "packed" is the call of our own trainer.
BACKENDS = {
    "unfused": ("math",),
    "triton": ("efficient",),
    "flash1": ("efficient",),
    "flash2": ("packed", "flash"),
    "cudnn": ("cudnn",),
}
# A backward is never less than this share of what it was measured together with.
LEAST_BACKWARD = 0.1
# Marks a collective that was timed with the casts and copies of the engine around it.
ENGINE = "fsdp2"
# Pieces that the trainer runs operation by operation, as the forecast lists them.
LISTED_PIECES = ("activation", "loss")
SCALES = ("launch_scale", "hop_scale", "nvlink_scale", "nic_scale")
COLLECTIVE_NAMES = {"sendrecv": "point_to_point"}


def cluster_of(profile: Profile, folder: Path, name: str) -> Cluster:
    """The cluster that a profile in ``folder`` stands for.

    Raises InputError where its ``cluster`` is unknown, of another GPU, or samples lack what their kind needs.
    """
    base = _base(profile, folder, name)
    hardware = Hardware.of([base])
    scales = _fabric_scales(profile, hardware.fabric) if profile.device_type == "cuda" else {}
    hardware = replace(hardware, fabric=replace(hardware.fabric, **scales))
    try:
        measured = _measured(profile, hardware, scales)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{name}: a sample lacks what its kind needs ({error}); measure again") from None
    if profile.calibration is None:
        return replace(base, measured=measured)
    values = {constant: fitted.value for constant, fitted in profile.calibration.constants.items()}
    return replace(base, measured=with_constants(measured, values), calibration=Calibrated.of(profile.calibration))


def _base(profile: Profile, folder: Path, name: str) -> Cluster:
    if profile.device_type == "cpu":
        return _host(profile, name)
    card = card_of(profile.device, profile.memory_bytes)
    if profile.cluster:
        from flopcast.simulator.catalogue import load_cluster

        beside = folder / profile.cluster
        base = load_cluster(beside if beside.suffix == ".toml" and beside.exists() else profile.cluster)
        if card is not None and base.gpu.name != card.name:
            raise InputError(
                f"{name}: is of '{profile.device}', but cluster '{profile.cluster}' has {base.gpu.name}; name its own"
            )
    elif card is not None:
        base = generic_cluster(card.name, profile.ranks_per_node if profile.ranks_per_node > 1 else None)
    else:
        raise InputError(
            f"{name}: '{profile.device}' is not in the catalogue; profile with --cluster FILE.toml that describes it"
        )
    memory = replace(base.gpu, memory_bytes=profile.memory_bytes)
    return replace(base, name=f"{base.name}, measured", gpu=memory)


def card_of(device: str, memory_bytes: float) -> Gpu | None:
    """The catalogue's GPU for the name that a driver gives and the memory that it reports, None where it has none.

    A driver's name starts with the chip ("NVIDIA A100-SXM4-80GB"); of the catalogue's cards with that chip it is the
    one whose memory is nearest, a PCIe card where the name says so. A workstation's card is known by its whole name.
    """
    from flopcast.simulator.catalogue import gpu_names, load_gpu
    from flopcast.simulator.specification.gpu import known_gpu

    words = device.removeprefix("NVIDIA ").lower()
    chip = words.split()[0].split("-")[0]
    if chip in ("geforce", "rtx", "quadro"):
        name = known_gpu(device)
        return load_gpu(name) if name else None
    cards = [load_gpu(name) for name in gpu_names() if name.split("-")[0] == chip]
    if not cards:
        return None

    def distance(card: Gpu) -> tuple[bool, float]:
        return ("pcie" in card.name) != ("pcie" in words), abs(card.memory_bytes - memory_bytes)

    return min(cards, key=distance)


def _host(profile: Profile, name: str) -> Cluster:
    """A node of processes on a CPU: its peaks are the best that was measured."""
    flop = max((s.flop / s.median_s for s in profile.samples if s.kind == "gemm" and s.flop), default=0.0)
    moved = max((s.bytes / s.median_s for s in profile.samples if s.kind == "copy" and s.bytes), default=0.0)
    if not flop or not moved:
        raise InputError(f"{name}: has no gemm or no copy samples, without which a CPU has no peak; measure again")
    sent = [s.bytes / s.median_s for s in profile.of_kind("collective", through=None) if s.bytes]
    assumed = () if sent else ("node.nvlink: the memory's rate is assumed (collectives were not measured)",)
    gpu = Gpu(profile.device, "other", flop, profile.memory_bytes, moved, USUAL_POWER_W["other"])
    return Cluster(
        name=f"{profile.device}, measured",
        gpu=gpu,
        gpus_per_node=profile.ranks_per_node,
        nvlink_bytes_per_s=max(sent, default=moved),
        nvswitch=False,
        nics_per_node=1,
        nic_bytes_per_s=max(sent, default=moved),
        fabric="ethernet",
        assumptions=assumed,
    )


def _fabric_scales(profile: Profile, fabric: Fabric) -> dict[str, Any]:
    """Launch, hop and rates of the collectives' model, from all-reduces within a node and then between nodes."""
    samples = profile.of_kind("collective", collective="all_reduce", through=None)
    by_group: dict[tuple[int, int], list[Sample]] = {}
    for sample in samples:
        key = (_whole(sample, "nodes"), _whole(sample, "ranks"))
        by_group.setdefault(key, []).append(sample)
    found = fabric
    for (nodes, ranks), rows in sorted(by_group.items()):
        sizes, times = np.array([_number(s, "bytes") for s in rows]), np.array([s.median_s for s in rows])
        group = Group(ranks, ranks // nodes)
        found = calibrate(sizes, times, group, found, lambda s, g, f: all_reduce.cost(s, g, f).time_s).fabric
    return {name: float(np.asarray(getattr(found, name)).flat[0]) for name in SCALES}


def _measured(profile: Profile, hardware: Hardware, scales: dict[str, Any]) -> Measured:
    on_host = profile.device_type == "cpu"
    dispatch = [s.median_s / _number(s, "listed_kernels") for s in profile.of_kind("launch", op="layer")]
    constants: dict[str, float] = {}
    if on_host:
        # The host is the device: launches add to the work, collectives were timed with theirs, and nothing runs beside
        # them.
        constants = dict.fromkeys(("launch_s", "collective_launch_s"), 0.0)
        constants |= dict.fromkeys(("nvlink_leak", "network_leak", "nvlink_share", "network_share"), 1.0)
    elif dispatch:
        constants = {"launch_s": dispatch[0]}
    gemm = _correction(_gemms(profile), hardware)
    attention = {}
    for code, kernel in enumerate(CHOICES["attention"]):
        for backward in (False, True):
            points = next(filter(None, (_attentions(profile, b, code, backward) for b in BACKENDS.get(kernel, ()))), [])
            if points:
                attention[code, backward] = _correction(points, hardware)
    pieces = {}
    for key, points in _pieces(profile).items():
        pieces[key] = _correction(points, hardware)
    memory = _correction([_moved(s, counted=True) for s in profile.of_kind("copy")], hardware)
    collectives, collectives_alone = {}, {}
    for name in COLLECTIVES:
        through = [p for s in profile.of_kind("collective", through=ENGINE) for p in _collectives(s, name)]
        alone = [p for s in profile.of_kind("collective", through=None) for p in _collectives(s, name)]
        points = (through if on_host else alone) or alone
        if points:
            collectives[name] = _correction(points, hardware)
        collectives_alone[name] = _correction(alone, hardware)
    return Measured(
        gemm=gemm,
        attention={key: found for key, found in attention.items() if found},
        memory=memory,
        pieces={key: found for key, found in pieces.items() if found},
        collectives={key: found for key, found in collectives.items() if found},
        collectives_alone={key: found for key, found in collectives_alone.items() if found},
        dispatch_s=dispatch[0] if dispatch and on_host else 0.0,
        fabric_scales=scales,
        constants=constants,
        what=tuple(measured_words(profile)),
    )


Point = tuple[tuple[float, ...], Work, float]


def _correction(points: list[Point], hardware: Hardware) -> Correction | None:
    """Measured over formula seconds at each point's sizes; the formula's constants are the committed ones."""
    if not points:
        return None
    formula = [float(np.asarray(work_seconds(work, hardware, default_constants())).flat[0]) for _, work, _ in points]
    ratios = [seconds / expected for (_, _, seconds), expected in zip(points, formula, strict=True)]
    return Correction.of([sizes for sizes, _, _ in points], ratios)


def _gemms(profile: Profile) -> list[Point]:
    """Every layout counts alike: a step has as many of each."""
    points: list[Point] = []
    for s in profile.of_kind("gemm"):
        sizes = tuple(_number(s, name) for name in "mnk")
        m, n, k = (np.array([size]) for size in sizes)
        points.append((sizes, Gemm(m, n, k, np.array([False])), s.median_s))
    return points


def _attentions(profile: Profile, backend: str, code: int, backward: bool) -> list[Point]:
    """Of a backend in one direction; PyTorch's own are measured forward, and forward and backward together."""
    samples = profile.of_kind("attention", backend=backend)
    if backend == "packed":
        direction = "backward" if backward else "forward"
        chosen = [(s, s.median_s, s.flop) for s in samples if s.arguments.get("pass") == direction]
    else:
        shapes = {_shape(s): s for s in samples if s.arguments.get("backward") is False}
        chosen = [(s, s.median_s, s.flop) for s in shapes.values()]
        if backward:
            both = [(s, shapes.get(_shape(s))) for s in samples if s.arguments.get("backward") is True]
            chosen = [
                (s, max(s.median_s - f.median_s, LEAST_BACKWARD * s.median_s), s.flop - f.flop)
                for s, f in both
                if f and s.flop and f.flop
            ]
    points: list[Point] = []
    for sample, seconds, flop in chosen:
        if not flop:
            raise ValueError("flop of attention")
        length, size = _number(sample, "tokens"), _number(sample, "head_dim")
        work = AttentionCore(np.array([flop]), np.array([code]), np.array([size]), np.array([length]), backward)
        points.append(((flop, length, size), work, seconds))
    return points


def _shape(sample: Sample) -> tuple[object, ...]:
    return tuple(sample.arguments.get(name) for name in ("batch", "tokens", "heads", "kv_heads", "head_dim", "dtype"))


def _pieces(profile: Profile) -> dict[tuple[str, bool], list[Point]]:
    """Memory-bound work by the forecast's name and direction; the optimizer's step is a piece too."""
    found: dict[tuple[str, bool], list[Point]] = {}
    for s in profile.of_kind("kernel"):
        key = (str(s.arguments["op"]), s.arguments.get("pass") == "backward")
        found.setdefault(key, []).append(_moved(s, counted=key[0] in LISTED_PIECES))
    steps = [_moved(s, counted=True) for s in profile.of_kind("optimizer")]
    return found | ({("optimizer", False): steps} if steps else {})


def _moved(sample: Sample, counted: bool) -> Point:
    if not sample.bytes:
        raise ValueError(f"bytes of {sample.kind}")
    return (sample.bytes,), Pointwise(np.array([sample.bytes]), counted=counted), sample.median_s


def _collectives(sample: Sample, name: str) -> Iterator[Point]:
    given = str(sample.arguments["collective"])
    if COLLECTIVE_NAMES.get(given, given) != name:
        return
    size, ranks, nodes = _number(sample, "bytes"), _whole(sample, "ranks"), _whole(sample, "nodes")
    work = Collective(name, np.array([size]), Group(ranks, ranks // nodes), "world", "norm")
    yield (size, ranks, nodes), work, sample.median_s


def _number(sample: Sample, name: str) -> float:
    value = sample.arguments[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{name} of {sample.kind} is {value!r}")
    return float(value)


def _whole(sample: Sample, name: str) -> int:
    return int(_number(sample, name))
