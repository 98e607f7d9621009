"""Reads the JSON that nccl-tests writes with ``-J`` (NVIDIA/nccl-tests 2.19.6, src/util.cu, version 3 of the file)."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from flopcast.collectives.running.nccl_tests import Log, collective_of, number, time, version_of
from flopcast.collectives.running.nccl_tests_evidence import check_bandwidths, check_reduction
from flopcast.collectives.running.results import Row
from flopcast.errors import InputError


def read_json(path: Path, text: str, named: str | None) -> Log:
    """The log; InputError says the line of what is not as it should be."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: line {error.lineno}: {error.msg}; expected a whole JSON document of nccl-tests -J"
        ) from None
    except RecursionError:
        raise InputError(f"{path}: line 1: nests too deep; expected a JSON document of nccl-tests -J") from None
    if isinstance(document, list):
        raise InputError(f"{path}: line 1: is a list; expected one JSON document of nccl-tests -J, as in jq '.[0]'")
    if str(document.get("tool", "")).startswith("flopcast"):
        raise InputError(
            f"{path}: line 1: is flopcast's own benchmark, not nccl-tests -J; give the table that it prints without "
            "--json, or write --csv FILE for 'flopcast accuracy --collectives FILE'"
        )
    results = document.get("results")
    if not isinstance(results, list):
        raise InputError(f"{path}: line 1: has no list 'results'; expected a JSON document of nccl-tests -J")
    arguments = document.get("args")
    program = arguments[0] if isinstance(arguments, list) and arguments and isinstance(arguments[0], str) else ""
    collective, is_told = collective_of(program, f"{path}: line 1", named)
    devices = _devices(document)
    num_ranks = len(devices) // max(1, len({str(one.get("group")) for one in devices}))
    lines = _lines_of(text, '"size"')
    rows: list[Row] = []
    for place, result in enumerate(results):
        line = lines[place] if place < len(lines) else 1
        where = f"{path}: line {line}: results[{place}]"
        rows += _rows(result, collective, where)
        if not is_told:
            _check(result, collective, max(1, num_ranks), where)
    if not rows:
        raise InputError(f"{path}: line 1: 'results' is empty; expected rows of times")
    version = document.get("nccl_version")
    return Log(
        tuple(rows),
        tuple(str(one.get("hostname", "")) for one in devices),
        tuple(str(one.get("device_info", "")) for one in devices),
        version_of(version) if isinstance(version, int) else "",
        _gpus(arguments),
    )


def _devices(document: dict[str, Any]) -> list[dict[str, Any]]:
    config = document.get("config")
    listed = config.get("devices", []) if isinstance(config, dict) else []
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def _check(result: dict[str, Any], collective: str, num_ranks: int, where: str) -> None:
    """Raise InputError where what a row says is not of the collective that the user named."""
    if "redop" in result:
        check_reduction(collective, str(result["redop"]).strip(), where)
    for cell in (result.get("out_of_place"), result.get("in_place")):
        if cell:
            check_bandwidths(collective, num_ranks, str(cell["alg_bw"]), str(cell["bus_bw"]), where)


def _gpus(arguments: Any) -> int:
    """The number behind ``-g`` or ``--ngpus`` in a list of arguments, 1 where there is none."""
    words = [str(word) for word in arguments] if isinstance(arguments, list) else []
    told = (int(value) for flag, value in pairwise(words) if flag in ("-g", "--ngpus") and value.isdecimal())
    return next(told, 1)


def _rows(result: Any, collective: str, where: str) -> list[Row]:
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
                num_bytes=int(number(str(result.get("size")), "size", where)),
                count=int(number(str(result.get("count")), "count", where)),
                dtype=str(result.get("type", "")),
                reduction=str(result.get("redop", "none")),
                root=int(number(str(result.get("root", "-1")), "root", where)),
                in_place=in_place,
                time_s=time(str(time_us), 1e-6, where),
                algbw_bytes_per_s=number(str(cell.get("alg_bw")), "alg_bw", where) * 1e9,
                busbw_bytes_per_s=number(str(cell.get("bus_bw")), "bus_bw", where) * 1e9,
                num_wrong=None if wrong is None else int(number(str(wrong), "nwrong", where)),
            )
        )
    if not found:
        raise InputError(f"{where}: has neither out_of_place nor in_place; expected at least one")
    return found


def _lines_of(text: str, key: str) -> list[int]:
    """Line numbers at which ``key`` occurs."""
    return [place for place, line in enumerate(text.splitlines(), start=1) for _ in range(line.count(key))]
