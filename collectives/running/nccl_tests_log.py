"""Reads nccl-tests' own logs, its text output and its ``-J`` JSON, so that a site's old runs feed the calibration.

Formats: NVIDIA/nccl-tests 2.19.6, src/util.cu (``writeBenchmarkLinePreamble``, ``writeBenchmarkLineBody``, JSON file
version 3), and the older text tables without ``root`` or with ``error`` instead of ``#wrong``, those of 2019 in
milliseconds, and rccl-tests'. The columns of the text are taken from its own header; out of place may stand alone.
What launchers put before every line (mpirun --tag-output, srun --label, Kubernetes' and Ray's) is taken off. What this
benchmark prints is read back too.
"""

import json
import math
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from flopcast.collectives.running.results import Row
from flopcast.errors import InputError

MAX_BYTES = 100_000_000

# How the table of measurements calls what nccl-tests' programs are called, "_perf" taken off.
COLLECTIVES = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
    "all_to_all": "all_to_all",
    "broadcast": "broadcast",
    "reduce": "reduce",
    "sendrecv": "sendrecv",
}
_OWN = ("quantised_all_gather", "torus_all_reduce")
_DEVICE = re.compile(r"#\s+Rank\s+(\d+)\s+(?:Group\s+\d+\s+)?(?:Pid\s+\d+\s+)?on\s+(\S+)\s+(.*)")
_OLD_DEVICE = re.compile(r"device\s+\d+\s+\[[^\]]*\]\s*")
_STARTING = re.compile(r"#\s*Collective test starting:\s*(\S+)")
_CONCLUDED = re.compile(r"[#\s]*(Out of bounds values|Avg bus bandwidth|Collective test concluded)")
_ARGUMENTS = re.compile(r"#?\s*nThread\s+\d+\s+nGpus\s+(\d+)")
_LIBRARY = re.compile(r"[nr]ccl-library=(\d+)")
_ANNOUNCED = re.compile(r"[NR]CCL version\s*:?\s*(\d+\.\d+\.\d+)")
# "[1,0]<stdout>:" may stand inside a line too, where the output of a rank came in pieces.
_TAG = re.compile(r"\[\d+(?:,\d+)?\](?:<std(?:out|err)>:?)?(?=\s|$|#)")
_LABEL = re.compile(r"\s*(?:\d+:\s|\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d)\s|\([^()]*\bpid=\d+[^()]*\)\s)")
_NAMES = ("size", "count", "type", "redop", "root")
# The table of 2019, whose times are milliseconds.
_FIRST_NAMES = {"bytes": "size", "N": "count", "op": "redop", "res": "#wrong"}
_WRONG = ("#wrong", "error")
_PER_PLACE = ("time", "algbw", "busbw", "wrong")


@dataclass(frozen=True)
class Log:
    """Rows of one log and what it says of its machine: hosts and devices in rank order, the NCCL version or "".

    Ranks that the log leaves out of its list sit with the rank before them. ``gpus_per_process`` is what ``-g`` said.
    """

    rows: tuple[Row, ...]
    hosts: tuple[str, ...]
    devices: tuple[str, ...]
    nccl_version: str
    gpus_per_process: int = 1

    @property
    def num_nodes(self) -> int:
        """Different hosts, 1 where the log names none."""
        return max(1, len(set(self.hosts)))


def read_log(path: Path, collective: str | None = None) -> Log:
    """The rows of a text or JSON log of nccl-tests.

    ``collective`` is needed for logs that do not name it (text before 2.18, a renamed program); a name that the log
    gives itself counts. Raises InputError with the line number and what was expected there, for a file that is cut
    off, of another kind or empty.
    """
    if collective is not None and collective not in (*COLLECTIVES, *_OWN):
        raise InputError(f"collective '{collective}' is unknown; give one of {', '.join(COLLECTIVES)}")
    text = _read(path)
    if text.lstrip().startswith("{"):
        return _read_json(path, text, collective)
    return _read_text(path, text, collective)


def _read(path: Path) -> str:
    """The text of the file, refused by its size before it is read."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: has more than {MAX_BYTES // 10**6} MB; name a log of nccl-tests")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a log of nccl-tests") from None
    if b"\0" in data:
        raise InputError(f"{path}: is a binary file; name a log of nccl-tests, text or -J JSON")
    return data.decode("utf-8-sig", errors="replace")


def _read_text(path: Path, text: str, named: str | None) -> Log:
    rows: list[Row] = []
    hosts: dict[int, tuple[str, str]] = {}
    heading: list[str] = []
    collective, version = COLLECTIVES.get(named or "", named), ""
    number, concluded, listing, unit_s, together = 0, False, False, 1e-6, 1
    for number, written in enumerate(text.splitlines(), start=1):
        where = f"{path}: line {number}"
        line = _bare(written)
        words = line.split()
        names = words[1:] if words[:1] == ["#"] else words
        if device := _DEVICE.match(line):
            if not listing:
                hosts, listing = {}, True
            _enter(hosts, int(device.group(1)), device.group(2), device.group(3), where)
        elif starting := _STARTING.match(line):
            collective = _collective(starting.group(1), where, named)
        elif arguments := _ARGUMENTS.match(line):
            together = int(arguments.group(1))
        elif library := _LIBRARY.search(line):
            version = _version(int(library.group(1)))
        elif announced := _ANNOUNCED.match(line):
            version = version or announced.group(1)
        elif names[:2] in (["size", "count"], ["bytes", "N"]):
            unit_s = 1e-3 if names[0] == "bytes" else 1e-6
            heading, concluded = _places(names, where), False
        elif _CONCLUDED.match(line):
            concluded = True
        elif words and words[0].isdecimal() and heading:
            if collective is None:
                raise InputError(
                    f"{where}: the log does not say which collective this is (nccl-tests does from 2.18 on); name it, "
                    "as in --collective all_reduce"
                )
            rows += _row(words, heading, collective, unit_s, where)
            concluded = listing = False
    if not heading:
        raise InputError(
            f"{path}: line {number}: the file ends without a line '# size count type redop ...'; "
            "name a log of nccl-tests"
        )
    if not rows:
        raise InputError(f"{path}: line {number}: the file ends after the heading; expected rows of numbers")
    if not concluded:
        raise InputError(
            f"{path}: line {number}: the file is cut off; expected more rows or '# Avg bus bandwidth', "
            "rerun the benchmark or close the file with that line"
        )
    ordered = (
        [hosts[max(known for known in hosts if known <= rank)] for rank in range(min(hosts), max(hosts) + 1)]
        if (hosts)
        else []
    )
    return Log(tuple(rows), tuple(h for h, _ in ordered), tuple(d for _, d in ordered), version, together)


def _bare(line: str) -> str:
    """The line without what a launcher wrote before or into it."""
    line = _TAG.sub("", line)
    while label := _LABEL.match(line):
        line = line[label.end() :]
    return line.lstrip() if line.lstrip().startswith("#") else line


def _enter(hosts: dict[int, tuple[str, str]], rank: int, host: str, device: str, where: str) -> None:
    """Note where a rank sits; refuse one that two hosts claim."""
    if rank in hosts and hosts[rank][0] != host:
        raise InputError(
            f"{where}: rank {rank} is on {host} and on {hosts[rank][0]}; expected one run, these are several side by "
            "side: build nccl-tests with MPI=1"
        )
    hosts[rank] = (host, _OLD_DEVICE.sub("", device).strip())


def _places(names: list[str], where: str) -> list[str]:
    """The meaning of every column: ``names`` are the words of the heading, the columns of each placement in turn."""
    meaning: list[str] = []
    for name in (_FIRST_NAMES.get(word, word) for word in names):
        if name in _NAMES:
            meaning.append(name)
        elif name in ("time", "cputime"):
            meaning.append("time")
        elif name in ("algbw", "busbw"):
            meaning.append(name)
        elif name in _WRONG:
            meaning.append("wrong")
        elif name != "timestamp":
            meaning.append("other")
    counts = [meaning.count(name) for name in _PER_PLACE]
    if counts[0] not in (1, 2) or counts[1:3] != counts[:1] * 2 or counts[3] not in (0, counts[0]):
        raise InputError(f"{where}: expected time, algbw, busbw and #wrong twice, out of place and in place, or once")
    return meaning


def _row(words: list[str], heading: list[str], collective: str, unit_s: float, where: str) -> list[Row]:
    """One or two rows, out of place and in place, of a line of numbers."""
    last = max(place for place, name in enumerate(heading) if name in _PER_PLACE)
    # A collective without a reduction leaves the columns redop and root empty in the oldest tables.
    missing = len(heading) - len(words)
    if 0 < missing <= 2 and len(words) > last - missing:
        absent = ("redop",) if missing == 1 and "root" not in heading else ("redop", "root")[-missing:]
        heading = [name for name in heading if name not in absent]
        last -= missing
    if len(words) <= last:
        raise InputError(f"{where}: has {len(words)} columns; expected at least {last + 1}, as the heading names them")
    common = {name: words[place] for place, name in enumerate(heading) if name in _NAMES}
    split = [place for place, name in enumerate(heading) if name == "time"]
    found = []
    for in_place, first, end in zip((False, True), split, [*split[1:], len(heading)], strict=False):
        cells = {name: words[place] for place, name in enumerate(heading[first:end], start=first) if place <= last}
        if cells["time"] == "N/A":
            continue
        values = {name: _number(cells[name], name, where) for name in ("time", "algbw", "busbw")}
        wrong = None if cells.get("wrong", "N/A") == "N/A" else int(_number(cells["wrong"], "#wrong", where))
        found.append(
            Row(
                collective=collective,
                num_bytes=int(_number(common["size"], "size", where)),
                count=int(_number(common.get("count", "0"), "count", where)),
                dtype=common.get("type", ""),
                reduction=common.get("redop", "none"),
                root=int(_number(common.get("root", "-1"), "root", where)),
                in_place=in_place,
                time_s=values["time"] * unit_s,
                algbw_bytes_per_s=values["algbw"] * 1e9,
                busbw_bytes_per_s=values["busbw"] * 1e9,
                num_wrong=wrong,
            )
        )
    return found


def _number(text: str, name: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: {name} is '{text}'; expected a number")
    return value


def _read_json(path: Path, text: str, named: str | None) -> Log:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: line {error.lineno}: {error.msg}; expected a whole JSON document of nccl-tests -J"
        ) from None
    except RecursionError:
        raise InputError(f"{path}: line 1: nests too deep; expected a JSON document of nccl-tests -J") from None
    results = document.get("results") if isinstance(document, dict) else None
    if not isinstance(results, list):
        raise InputError(f"{path}: line 1: has no list 'results'; expected a JSON document of nccl-tests -J")
    arguments = document.get("args")
    program = arguments[0] if isinstance(arguments, list) and arguments and isinstance(arguments[0], str) else ""
    collective = _collective(program, f"{path}: line 1", named)
    lines = _lines_of(text, '"size"')
    rows: list[Row] = []
    for number, result in enumerate(results):
        line = lines[number] if number < len(lines) else 1
        rows += _json_rows(result, collective, f"{path}: line {line}: results[{number}]")
    if not rows:
        raise InputError(f"{path}: line 1: 'results' is empty; expected rows of times")
    config = document.get("config")
    listed = config.get("devices", []) if isinstance(config, dict) else []
    devices = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    version = document.get("nccl_version")
    return Log(
        tuple(rows),
        tuple(str(one.get("hostname", "")) for one in devices),
        tuple(str(one.get("device_info", "")) for one in devices),
        _version(version) if isinstance(version, int) else "",
        _gpus(arguments),
    )


def _gpus(arguments: Any) -> int:
    """The number behind ``-g`` or ``--ngpus`` in a list of arguments, 1 where there is none."""
    words = [str(word) for word in arguments] if isinstance(arguments, list) else []
    told = (int(value) for flag, value in pairwise(words) if flag in ("-g", "--ngpus") and value.isdecimal())
    return next(told, 1)


def _json_rows(result: Any, collective: str, where: str) -> list[Row]:
    if not isinstance(result, dict):
        raise InputError(f"{where}: is not an object; expected size, count and times")
    found = []
    for key, in_place in (("out_of_place", False), ("in_place", True)):
        cell = result.get(key)
        if cell is None:
            continue
        if not isinstance(cell, dict):
            raise InputError(f"{where}: {key} is not an object; expected time, alg_bw and bus_bw")
        wrong = cell.get("nwrong")
        time_us = cell.get("time", cell.get("cpu_time"))
        found.append(
            Row(
                collective=collective,
                num_bytes=int(_number(str(result.get("size")), "size", where)),
                count=int(_number(str(result.get("count")), "count", where)),
                dtype=str(result.get("type", "")),
                reduction=str(result.get("redop", "none")),
                root=int(_number(str(result.get("root", "-1")), "root", where)),
                in_place=in_place,
                time_s=_number(str(time_us), "time", where) * 1e-6,
                algbw_bytes_per_s=_number(str(cell.get("alg_bw")), "alg_bw", where) * 1e9,
                busbw_bytes_per_s=_number(str(cell.get("bus_bw")), "bus_bw", where) * 1e9,
                num_wrong=None if wrong is None else int(_number(str(wrong), "nwrong", where)),
            )
        )
    if not found:
        raise InputError(f"{where}: has neither out_of_place nor in_place; expected at least one")
    return found


def _collective(program: str, where: str, named: str | None) -> str:
    """``/opt/nccl-tests/build/alltoall_perf`` -> ``all_to_all``; ``named`` for a program of another name."""
    name = program.rsplit("/", 1)[-1].removesuffix(".exe").removesuffix("_mpi").removesuffix("_perf")
    if name in _OWN:
        return name
    if name not in COLLECTIVES and named is not None:
        return COLLECTIVES.get(named, named)
    if name not in COLLECTIVES:
        raise InputError(
            f"{where}: the program is '{program}'; expected one of nccl-tests', "
            "or name the collective, such as all_reduce"
        )
    return COLLECTIVES[name]


def _version(code: int) -> str:
    """22907 -> "2.29.7"; before 2.9 the code had a digit less."""
    return (
        f"{code // 1000}.{code // 100 % 10}.{code % 100}"
        if code < 10000
        else (f"{code // 10000}.{code // 100 % 100}.{code % 100}")
    )


def _lines_of(text: str, key: str) -> list[int]:
    """Line numbers at which ``key`` occurs."""
    return [number for number, line in enumerate(text.splitlines(), start=1) for _ in range(line.count(key))]
