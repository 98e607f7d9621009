"""What the columns of a table of measured collectives are called, and the unit of the numbers below.

``Latency (ms)``, ``time [µs]``, ``runtime_ms``, ``Bus bandwidth (GiB/s)``: a time or a bandwidth is a known word with
a known unit or none behind it, so that a column of another unit is named instead of taken for microseconds.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from flopcast.collectives.cells import gigabytes_per_s_of, is_missing, microseconds_of, numbers, text_of

# A column as the table writes it, and what its numbers are multiplied by where a cell has no unit of its own.
Scaled: TypeAlias = tuple[str, float]

# What may stand between words, and the words that may stand before a quantity's name.
_GAP = r"(?:[^\w%]|_)*"
_QUALIFIERS = rf"(?:(?:out{_GAP}of{_GAP}place|oop|average|avg|mean|median|measured){_GAP})*"
_QUANTITIES = {
    "time_us": rf"(?:run|wall|elapsed)?{_GAP}(?:time|latency|runtime|elapsed|duration)",
    "algbw_GBps": rf"alg(?:o|orithm)?{_GAP}(?:bw|bandwidth)",
    "busbw_GBps": rf"bus{_GAP}(?:bw|bandwidth)",
}
_RESULTS = {
    name: re.compile(rf"{_GAP}{_QUALIFIERS}{quantity}{_GAP}(?:in{_GAP})?(.*?){_GAP}", re.IGNORECASE)
    for name, quantity in _QUANTITIES.items()
}
_UNITS = {"time_us": microseconds_of, "algbw_GBps": gigabytes_per_s_of, "busbw_GBps": gigabytes_per_s_of}
_LOOKS_LIKE_ONE = re.compile(r"time(?!stamp|out)|latency|elapsed|duration|bandwidth|bw|throughput", re.IGNORECASE)
_SIZE_IN = re.compile(r"((?:data|message|msg|buffer)?size|payload|bytes)([kmgt])i?b")


def named(columns: Iterable[str]) -> dict[str, Scaled]:
    """Columns under every name looked for: lower case, letters and digits only; the first of a name counts.

    A size's unit, powers of 1024, is taken off its name; a qualified name, such as "average size", counts last.
    """
    exact: dict[str, Scaled] = {}
    other: dict[str, Scaled] = {}
    for written in reversed(list(columns)):
        name = re.sub("[^a-z0-9]", "", written.lower())
        short = re.sub(f"^{_QUALIFIERS}", "", name)
        exact[name] = other[short] = (written, 1.0)
        if size := _SIZE_IN.fullmatch(short):
            other[size.group(1)] = (written, 1024.0 ** ("kmgt".index(size.group(2)) + 1))
    return other | exact


def results(columns: Iterable[str]) -> dict[str, list[Scaled]]:
    """The columns of ``time_us``, ``algbw_GBps`` and ``busbw_GBps``, each with what brings its numbers to that unit.

    Those that name their unit stand before those that do not, which are in microseconds or GB/s.
    """
    found: dict[str, list[Scaled]] = {name: [] for name in _RESULTS}
    plain: dict[str, list[Scaled]] = {name: [] for name in _RESULTS}
    for written in columns:
        if len(written) > 1 and (scale := microseconds_of(written)):  # "seconds", but a column "s" may be of anything
            found["time_us"].append((written, scale))
        for name, pattern in _RESULTS.items():
            heading = pattern.fullmatch(written)
            unit = heading.group(1) if heading and written.lower() != "times" else ""
            if scale := _UNITS[name](unit):
                found[name].append((written, scale))
            elif heading and not unit:
                plain[name].append((written, 1.0))
    return {name: found[name] + plain[name] for name in found}


def why_untimed(table: Mapping[str, Iterable[Any]]) -> str:
    """Why a row of the table has no time: what its columns are called, or the first cell that is no number."""
    columns = [(name, written) for name, scaled in results(table).items() for written, _ in scaled]
    for name, written in columns:
        cells = np.array([text_of(cell) for cell in table[written]], dtype=object)
        wrong = [cell for cell, value in zip(cells, numbers(name, cells), strict=True) if not value > 0]
        if said := next((cell for cell in wrong if not is_missing(cell)), None):
            return f"{written} is '{said}'; write a number above 0 such as 8500.5, with a known unit or none"
    alike = [written for written in table if _LOOKS_LIKE_ONE.search(written)]
    if columns or not alike:
        return "neither a time nor a bandwidth is given"
    return f"column '{alike[0]}' is no time or bandwidth in a known unit; call it time_us, time_ms or busbw_GBps"
