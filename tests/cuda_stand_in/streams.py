"""``torch.cuda`` over the stand-in: two small GPUs whose streams do everything at once, as it is asked for."""

import time
from collections import Counter
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from cuda_stand_in.device import index_of, native
from cuda_stand_in.waiting import wait

# An H100 but for the multiprocessors and the cache, which decide how much a CPU has to work.
PROPERTIES = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=2,
    total_memory=85_029_158_912,
    L2_cache_size=2**14,
    shared_memory_per_block=48 * 1024,
    shared_memory_per_block_optin=227 * 1024,
    uuid="00000000-0000-0000-0000-000000000000",
)


class Stream:
    """A number, and a context in which it is the current one."""

    made = 0

    def __init__(self, device: Any = None, priority: int = 0, **options: Any) -> None:
        self.device, self.priority = torch.device("cuda", index_of(device)), priority
        self.cuda_stream = 4096 * Stream.made
        Stream.made += 1

    def wait_stream(self, other: "Stream") -> None:
        pass

    def wait_event(self, event: "Event") -> None:
        pass

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        wait("a stream")


class StreamContext:
    """``with torch.cuda.stream(...)``; None leaves the current stream."""

    current: ClassVar[list[Stream]] = [Stream()]

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream or self.current[-1]

    def __enter__(self) -> None:
        self.current.append(self.stream)

    def __exit__(self, *error: object) -> None:
        self.current.pop()


DEFAULT = StreamContext.current[0]


class Event:
    """The time at which it was recorded."""

    def __init__(self, enable_timing: bool = False, **options: Any) -> None:
        self.enable_timing, self.recorded_s = enable_timing, 0.0

    def record(self, stream: Stream | None = None) -> None:
        self.recorded_s = time.perf_counter()

    def synchronize(self) -> None:
        wait("an event")

    def query(self) -> bool:
        return False

    def elapsed_time(self, other: "Event") -> float:
        assert self.enable_timing, "made without enable_timing"
        assert self.recorded_s <= other.recorded_s > 0, "not recorded"
        return (other.recorded_s - self.recorded_s) * 1e3


class Device:
    """``with torch.cuda.device(...)``."""

    def __init__(self, device: Any) -> None:
        self.index = index_of(device)

    def __enter__(self) -> None:
        self.before = native.exchange_device(self.index)

    def __exit__(self, *error: object) -> None:
        native.exchange_device(self.before)


def _exchange(index: int) -> int:
    return int(native.exchange_device(index))


for _name, _value in {
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "is_bf16_supported": lambda *_: True,
    "is_current_stream_capturing": lambda: False,
    "_lazy_init": lambda: None,
    "_is_in_bad_fork": lambda: False,
    "device_count": lambda: 2,
    "device": Device,
    "current_device": lambda: index_of(None),
    "set_device": lambda device: _exchange(index_of(device)),
    "_exchange_device": _exchange,
    "_maybe_exchange_device": _exchange,
    "synchronize": lambda device=None: wait("the device"),
    "Stream": Stream,
    "StreamContext": StreamContext,
    "stream": StreamContext,
    "Event": Event,
    "current_stream": lambda device=None: StreamContext.current[-1],
    "default_stream": lambda device=None: DEFAULT,
    "get_device_properties": lambda device=None: PROPERTIES,
    "get_device_name": lambda device=None: PROPERTIES.name,
    "get_device_capability": lambda device=None: (PROPERTIES.major, PROPERTIES.minor),
    "empty_cache": lambda: None,
    "max_memory_allocated": lambda device=None: 2**20,
    "reset_peak_memory_stats": lambda device=None: None,
    "mem_get_info": lambda device=None: (2**33, PROPERTIES.total_memory),
    "memory_stats": lambda device=None: Counter(),
    "_sleep": lambda cycles: None,
    "manual_seed_all": lambda seed: None,
    "get_rng_state": lambda device="cuda": torch.get_rng_state(),
    "set_rng_state": lambda state, device="cuda": torch.set_rng_state(state),
}.items():
    setattr(torch.cuda, _name, _value)
torch.version.cuda = "13.0"
for _name, _value in {
    "_cuda_getCurrentRawStream": lambda index: StreamContext.current[-1].cuda_stream,
    "_cuda_getDevice": lambda: index_of(None),
    "_cuda_setDevice": _exchange,
    "_cuda_exchangeDevice": _exchange,
    "_cuda_maybeExchangeDevice": _exchange,
}.items():
    setattr(torch._C, _name, _value)
