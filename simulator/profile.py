"""A profile: what one kind of device was measured to do, as a file that stands for a cluster.

One JSON document holds the devices that were measured (hosts, clocks, power caps, versions) and every sample with its
spread. Profiles of many nodes merge into one; :mod:`flopcast.simulator.profiled_cluster` makes a cluster of it.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from flopcast.errors import InputError
from flopcast.files import write_atomically
from flopcast.simulator.specification.document import Table, Text, check_table
from flopcast.simulator.textfile import read_text

FORMAT: Literal["flopcast profile 1"] = "flopcast profile 1"
EXPECTED = "a profile (the JSON that 'flopcast profile' writes)"

Kind = Literal["gemm", "attention", "copy", "launch", "optimizer", "kernel", "collective"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Scalar = bool | int | float | str | None
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]


class Sample(Table):
    """One operation with its arguments: the median seconds of a call over all devices.

    ``spread``: the distance between the 10th and the 90th percentile over the median, of the median device.
    ``host_bound``: the GPU may have waited for the host. ``flop`` and ``bytes``: the work of a call. ``by_device``:
    each device's own median in the order of ``Profile.devices``, null where it was not measured there.
    """

    kind: Kind
    arguments: dict[str, Scalar]
    median_s: Seconds
    spread: Amount
    num_samples: Count
    host_bound: bool = False
    flop: Amount | None = None
    bytes: Amount | None = None
    by_device: list[Seconds | None] = Field(default_factory=list)

    @property
    def key(self) -> str:
        """What makes two samples the same measurement."""
        return f"{self.kind} {json.dumps(self.arguments, sort_keys=True)}"


class Skipped(Table):
    """An operation that does not run on this device, and why."""

    kind: Kind
    arguments: dict[str, Scalar]
    reason: str


class Device(Table):
    """One device that was measured: its host, its number there, and its surroundings as they were found."""

    host: Text
    index: Annotated[int, Field(ge=0)]
    environment: dict[str, Scalar] = Field(default_factory=dict)

    @property
    def label(self) -> str:
        """How a reader finds it."""
        return f"host {self.host}, device {self.index}"


class FittedConstant(Table):
    """A constant fitted to runs of this machine; ``deviation`` is its standard deviation by the fit's covariance."""

    value: Finite
    deviation: Amount
    low: Finite
    high: Finite
    unit: str


class CalibrationRun(Table):
    """A run that was calibrated on; ``left_out_step_s`` is its forecast by constants fitted to the others."""

    name: Text
    measured_step_s: Seconds
    predicted_step_s: Seconds
    left_out_step_s: Seconds | None = None


class Calibration(Table):
    """Constants that a profile cannot see, fitted to runs, and the range of what those runs were.

    ``ranges``: least and most of each quantity over the runs. ``band``: the 10 % and 90 % quantiles of log(measured /
    predicted), from the runs left out in turn; null where there were too few.
    """

    constants: dict[str, FittedConstant]
    correlations: dict[str, Finite] = Field(default_factory=dict)
    ranges: dict[str, Annotated[list[Amount], Field(min_length=2, max_length=2)]]
    runs: Annotated[list[CalibrationRun], Field(min_length=1)]
    band: Annotated[list[Finite], Field(min_length=2, max_length=2)] | None = None
    date: Text


class Profile(Table):
    """The whole file. ``cluster``: a catalogue name or a TOML file beside it that says what was not measured.

    ``ranks_per_node``: how many devices of a node were measured at a time. ``memory_bytes``: of one device.
    """

    format: Literal["flopcast profile 1"]
    device: Text
    device_type: Literal["cpu", "cuda"]
    memory_bytes: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    ranks_per_node: Count
    date: Text
    versions: dict[str, str]
    devices: Annotated[list[Device], Field(min_length=1)]
    samples: Annotated[list[Sample], Field(min_length=1)]
    skipped: list[Skipped] = Field(default_factory=list)
    cluster: str = ""
    calibration: Calibration | None = None

    def of_kind(self, kind: Kind, **arguments: Scalar) -> list[Sample]:
        """The samples of a kind whose arguments hold these."""
        return [
            sample
            for sample in self.samples
            if sample.kind == kind and all(sample.arguments.get(k) == v for k, v in arguments.items())
        ]


def read_profile(path: str | Path) -> Profile:
    """The profile in a file. Raises InputError, one line, that lists every fault with its path in the document."""
    path = Path(path)
    return parse_profile(read_text(path, EXPECTED), str(path))


def parse_profile(text: str, origin: str) -> Profile:
    """The profile that a text holds; ``origin`` names it in errors."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{origin}: is not JSON: {error.msg} in line {error.lineno}, column {error.colno}; name {EXPECTED}"
        ) from None
    except (RecursionError, ValueError):
        raise InputError(f"{origin}: is not JSON that can be read; name {EXPECTED}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f'{origin}: is not a profile (its "format" is not "{FORMAT}"); name {EXPECTED}')
    profile = check_table(Profile, data, origin)
    for place, sample in enumerate(profile.samples):
        if sample.by_device and len(sample.by_device) != len(profile.devices):
            raise InputError(
                f"{origin}: samples.{place}.by_device has {len(sample.by_device)} entries for "
                f"{len(profile.devices)} devices; give one for each"
            )
    return profile


def to_json(profile: Profile) -> str:
    """The document, one sample and one device to a line; what is at its default is left out."""
    data = profile.model_dump(exclude_defaults=True, mode="json")
    lines = []
    for name, value in data.items():
        if isinstance(value, list):
            rows = ",\n  ".join(json.dumps(row, allow_nan=False) for row in value)
            lines.append(f'"{name}": [\n  {rows}\n ]')
        else:
            lines.append(f'"{name}": {json.dumps(value, allow_nan=False)}')
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def write_profile(path: Path, profile: Profile) -> None:
    """Write the document whole or not at all."""
    try:
        write_atomically(path, to_json(profile).encode())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); name another file") from None


def merge(profiles: Sequence[Profile], names: Sequence[str]) -> Profile:
    """One profile of all devices; a sample's seconds are the median over the devices that have it.

    A device may be in several profiles, as where nodes were measured one by one and then their network together.
    ``names`` stand for the profiles in errors. A calibration is left behind: it was fitted to the one profile. Raises
    InputError where devices or ranks per node differ, or a device has the same sample twice.
    """
    first = profiles[0]
    for profile, name in zip(profiles[1:], names[1:], strict=True):
        if profile.device != first.device:
            raise InputError(
                f"{names[0]} is of '{first.device}' and {name} of '{profile.device}'; merge profiles of one device"
            )
        if profile.ranks_per_node != first.ranks_per_node:
            raise InputError(
                f"{names[0]} measured {first.ranks_per_node} devices of a node at a time and {name} "
                f"{profile.ranks_per_node}; measure all nodes alike"
            )
    devices: dict[str, Device] = {}
    for profile in profiles:
        for device in profile.devices:
            devices.setdefault(device.label, device)
    found: dict[str, list[tuple[Profile, Sample]]] = {}
    for profile in profiles:
        for sample in profile.samples:
            found.setdefault(sample.key, []).append((profile, sample))
    missing = {skipped.model_dump_json(): skipped for profile in profiles for skipped in profile.skipped}
    changes: dict[str, Any] = {
        "devices": list(devices.values()),
        "samples": [_merged(parts, list(devices)) for parts in found.values()],
        "skipped": list(missing.values()),
        "cluster": next((profile.cluster for profile in profiles if profile.cluster), ""),
        "calibration": None,
    }
    return first.model_copy(update=changes)


def _merged(parts: Sequence[tuple[Profile, Sample]], labels: Sequence[str]) -> Sample:
    """One sample of all devices in the order of ``labels``."""
    seconds: dict[str, float | None] = {}
    for profile, sample in parts:
        for device, own in zip(
            profile.devices, sample.by_device or [sample.median_s] * len(profile.devices), strict=True
        ):
            if device.label in seconds:
                raise InputError(f"{device.label} has '{sample.key}' in two of the profiles; give each node once")
            seconds[device.label] = own
    by_device = [seconds.get(label) for label in labels]
    return combined(parts[0][1], by_device, [sample.spread for _, sample in parts])


def combined(sample: Sample, by_device: Sequence[float | None], spreads: Sequence[float]) -> Sample:
    """The sample with each device's seconds, and their median as its own."""
    median = statistics.median([seconds for seconds in by_device if seconds is not None])
    spread = statistics.median(spreads)
    kept = list(by_device) if len(by_device) > 1 else []
    return sample.model_copy(update={"median_s": median, "spread": spread, "by_device": kept})
