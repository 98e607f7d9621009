"""Reads the tables that nccl-tests prints, as launchers and forks of it write them.

Formats: NVIDIA/nccl-tests 2.19.6, src/util.cu (``writeBenchmarkLinePreamble``, ``writeBenchmarkLineBody``), the older
tables without ``root`` or with ``error`` instead of ``#wrong``, those of 2019 in milliseconds, and rccl-tests'. The
columns are taken from the table's own header; out of place may stand alone. What launchers put before every line
(torchrun --tee, mpirun --tag-output and --timestamp-output, srun --label, pdsh, clush, Kubernetes' and Ray's) is taken
off, and colours too. What this benchmark prints is read back.
"""

import re
from pathlib import Path

from flopcast.collectives.running.nccl_tests import Log, collective_of, number, time, version_of
from flopcast.collectives.running.nccl_tests_evidence import check_bandwidths, check_reduction
from flopcast.collectives.running.results import Row
from flopcast.errors import InputError

_DEVICE = re.compile(r"#\s+Rank\s+(\d+)\s+(?:Group\s+(\d+)\s+)?(?:Pid\s+\d+\s+)?on\s+(\S+)\s+(.*)")
_OLD_DEVICE = re.compile(r"device\s+\d+\s+\[[^\]]*\]\s*")
_STARTING = re.compile(r"#\s*Collective test starting:\s*(\S+)")
_CONCLUDED = re.compile(r"[#\s]*(Out of bounds values|Avg bus bandwidth|Collective test concluded)")
_ARGUMENTS = re.compile(r"#?\s*nThread\s+\d+\s+nGpus\s+(\d+)")
_LIBRARY = re.compile(r"[nr]ccl-library=(\d+)")
_ANNOUNCED = re.compile(r"[NR]CCL version\s*:?\s*(\d+\.\d+\.\d+)")
# mpirun's "[1,0]<stdout>:", or "[prterun-host-123@1,0]<stdout>:", with ctime's words before it or in place of the rank.
# It may stand inside a line too, where the output of a rank came in pieces.
_CLOCK = r"[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}"
_RANK = r"\[(?:[\w.-]+@)?\d+(?:,\d+)?\]"
_STREAM = "<std(?:out|err)>:?"
_TAG = re.compile(rf"(?:(?:{_CLOCK})?{_RANK}(?:{_STREAM})?|{_CLOCK}{_STREAM})(?=\s|$|#)")
_TIME = r"\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d)\s(?:std(?:out|err) [FP]\s)?"
# srun's, Kubernetes' with or without its stream, Ray's, and the mark of a quotation.
_LABEL = re.compile(rf"\s*(?:\d+:\s|{_TIME}|\([^()]*\bpid=\d+[^()]*\)\s|>\s)")
# What pdsh, clush and torchrun write before a line: "gpu001: ", "[gpu001] ", "[default0]:".
_HOST = re.compile(r"\s*([A-Za-z][\w.-]*:|\[[A-Za-z][\w.-]*\]:?)(?=\s|$|#)")
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_NAMES = ("size", "count", "type", "redop", "root")
_MEANINGS = {
    **{name: name for name in (*_NAMES, "time", "algbw", "busbw")},
    **{"cputime": "time", "#wrong": "wrong", "error": "wrong"},
    # The table of 2019, whose times are milliseconds.
    **{"bytes": "size", "N": "count", "op": "redop", "res": "wrong"},
}
_PER_PLACE = ("time", "algbw", "busbw", "wrong")


def read_text(path: Path, text: str, named: str | None) -> Log:
    """The log; InputError says the line of what is not as it should be."""
    if not text.strip():
        raise InputError(f"{path}: is empty; name a log of nccl-tests")
    reader = _Reader(named)
    labels: set[str] = set()
    last = 0
    for last, written in enumerate(text.splitlines(), start=1):
        reader.take(_bare(written, labels), f"{path}: line {last}")
    return reader.log(f"{path}: line {last}")


class _Reader:
    """What the lines so far have said; ``listing``: they are within a list of ranks or behind it, before any row."""

    def __init__(self, named: str | None) -> None:
        self.named = self.collective = named
        self.is_told = False  # the log says itself what it is of
        self.rows: list[Row] = []
        self.hosts: dict[int, tuple[str, str]] = {}
        self.before, self.began = self.hosts, ""  # the list of ranks before this one, and where this one begins
        self.groups: set[str] = set()
        self.heading: list[str] = []
        self.behind = ""  # the words before a heading that is not read for them
        self.unit_s, self.version, self.gpus_per_process = 1e-6, "", 1
        self.concluded = self.listing = False

    def take(self, line: str, where: str) -> None:
        """One line."""
        words = line.split()
        names = words[1:] if words[:1] == ["#"] else words
        if device := _DEVICE.match(line):
            rank, group, host, rest = device.groups()
            if not self.listing:
                self.before, self.hosts, self.listing, self.began = self.hosts, {}, True, where
                self.groups = set()
            self._enter(int(rank), host, rest, where)
            self.groups.add(group or "")
        elif starting := _STARTING.match(line):
            self.collective, self.is_told = collective_of(starting.group(1), where, self.named)
        elif arguments := _ARGUMENTS.match(line):
            self.gpus_per_process = int(arguments.group(1))
        elif library := _LIBRARY.search(line):
            self.version = version_of(int(library.group(1)))
        elif announced := _ANNOUNCED.match(line):
            self.version = self.version or announced.group(1)
        elif names[:2] in (["size", "count"], ["bytes", "N"]):
            self.unit_s = 1e-3 if names[0] == "bytes" else 1e-6
            self.heading, self.concluded = _places(names, where), False
        elif concluded := _CONCLUDED.match(line):
            self.concluded = True
            if concluded.group(1) == "Collective test concluded":  # what follows may be of a program that is not told
                self.collective, self.is_told = self.named, False
        elif words and words[0].isdecimal() and self.heading and not self.concluded:
            if self.collective is None:
                raise InputError(
                    f"{where}: the log does not say which collective this is (nccl-tests does from 2.18 on); name it, "
                    "as in --collective all_reduce"
                )
            if self.before and _places_of(self.before) != _places_of(self.hosts):
                raise InputError(f"{self.began}: a second run on other ranks begins here; split the file before it")
            named_ranks = None if self.is_told else max(1, len(self.hosts) // max(1, len(self.groups)))
            self.rows += _row(words, self.heading, self.collective, self.unit_s, where, named_ranks)
            self.listing = False
        elif not self.heading and not self.behind and (prefix := _before_heading(line)):
            self.behind = f"{where}: a heading stands behind '{prefix}'; cut that off every line"

    def _enter(self, rank: int, host: str, device: str, where: str) -> None:
        """Note where a rank sits; refuse one that two hosts claim."""
        if rank in self.hosts and self.hosts[rank][0] != host:
            raise InputError(
                f"{where}: rank {rank} is on {host} and on {self.hosts[rank][0]}; expected one run, these are several "
                "side by side: build nccl-tests with MPI=1"
            )
        self.hosts[rank] = (host, _OLD_DEVICE.sub("", device).strip())

    def log(self, where: str) -> Log:
        """All of it; InputError where the file ends too early."""
        if not self.heading:
            raise InputError(
                self.behind
                or f"{where}: the file ends without a line '# size count type redop ...'; name a log of nccl-tests"
            )
        if not self.rows:
            raise InputError(f"{where}: the file ends after the heading; expected rows of numbers")
        if not self.concluded:
            raise InputError(
                f"{where}: the file is cut off; expected more rows or '# Avg bus bandwidth', "
                "rerun the benchmark or close the file with that line"
            )
        # A list without rows behind it is of a run that came to nothing.
        listed = self.before if self.before and self.listing else self.hosts
        known = sorted(listed)
        # A rank that the list leaves out sits with the one before it.
        ranks = range(known[0], known[-1] + 1) if known else ()
        hosts, devices = [], []
        for rank in ranks:
            host, device = listed[max(other for other in known if other <= rank)]
            hosts.append(host)
            devices.append(device)
        return Log(tuple(self.rows), tuple(hosts), tuple(devices), self.version, self.gpus_per_process)


def _bare(line: str, labels: set[str]) -> str:
    """The line without colours and without what a launcher wrote before or into it.

    ``labels`` are the hosts' names found before lines of nccl-tests' own so far: any word may end in a colon.
    """
    line = _unlabelled(_TAG.sub("", _COLOUR.sub("", line)))
    while host := _HOST.match(line):
        rest = _unlabelled(line[host.end() :])
        if host.group(1) not in labels and not rest.lstrip().startswith("#"):
            break
        labels.add(host.group(1))
        line = rest
    return line.lstrip() if line.lstrip().startswith("#") else line


def _before_heading(line: str) -> str:
    """What stands before the names of a table's columns, "" where nothing does or there are no such names."""
    if not ("algbw" in line and "busbw" in line):
        return ""
    begins = [place for place in (line.find("size"), line.find("bytes"), line.find("algbw")) if place >= 0]
    return line[: min(begins)].rstrip().removesuffix("#").strip()


def _unlabelled(line: str) -> str:
    while label := _LABEL.match(line):
        line = line[label.end() :]
    return line


def _places_of(ranks: dict[int, tuple[str, str]]) -> dict[int, str]:
    return {rank: host for rank, (host, _) in ranks.items()}


def _places(names: list[str], where: str) -> list[str]:
    """The meaning of every column: ``names`` are the words of the heading, the columns of each placement in turn."""
    meaning = [_MEANINGS.get(name, "other") for name in names if name != "timestamp"]
    counts = [meaning.count(name) for name in _PER_PLACE]
    if counts[0] not in (1, 2) or counts[1:3] != counts[:1] * 2 or counts[3] not in (0, counts[0]):
        raise InputError(f"{where}: expected time, algbw, busbw and #wrong twice, out of place and in place, or once")
    return meaning


def _row(
    words: list[str], heading: list[str], collective: str, unit_s: float, where: str, named_ranks: int | None
) -> list[Row]:
    """One or two rows, out of place and in place, of a line of numbers.

    ``named_ranks``: the ranks of a run whose ``collective`` the user named, which is held against what the line says.
    """
    last = max(place for place, name in enumerate(heading) if name in _PER_PLACE)
    has_reduction = "redop" in heading
    # A collective without a reduction leaves the columns redop and root empty in the oldest tables.
    missing = len(heading) - len(words)
    if 0 < missing <= 2 and len(words) > last - missing:
        root_stands = "root" not in heading or words[heading.index("redop")].lstrip("-").isdecimal()
        absent = ("redop",) if missing == 1 and root_stands else ("redop", "root")[-missing:]
        heading = [name for name in heading if name not in absent]
        last -= missing
    if len(words) <= last:
        raise InputError(f"{where}: has {len(words)} columns; expected at least {last + 1}, as the heading names them")
    common = {name: words[place] for place, name in enumerate(heading) if name in _NAMES}
    if named_ranks is not None and has_reduction:
        check_reduction(collective, common.get("redop", ""), where)
    split = [place for place, name in enumerate(heading) if name == "time"]
    found = []
    for in_place, first, end in zip((False, True), split, [*split[1:], len(heading)], strict=False):
        cells = {name: words[place] for place, name in enumerate(heading[first:end], start=first) if place <= last}
        if cells["time"] == "N/A":
            continue
        values = {name: number(cells[name], name, where) for name in ("algbw", "busbw")}
        if named_ranks is not None:
            check_bandwidths(collective, named_ranks, cells["algbw"], cells["busbw"], where)
        wrong = None if cells.get("wrong", "N/A") == "N/A" else int(number(cells["wrong"], "#wrong", where))
        found.append(
            Row(
                collective=collective,
                num_bytes=int(number(common["size"], "size", where)),
                count=int(number(common.get("count", "0"), "count", where)),
                dtype=common.get("type", ""),
                reduction=common.get("redop", "none"),
                root=int(number(common.get("root", "-1"), "root", where)),
                in_place=in_place,
                time_s=time(cells["time"], unit_s, where),
                algbw_bytes_per_s=values["algbw"] * 1e9,
                busbw_bytes_per_s=values["busbw"] * 1e9,
                num_wrong=wrong,
            )
        )
    return found
