import csv
import re
import subprocess
from collections import deque
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest

from flopcast.kernels import compilation
from flopcast.kernels.cross_entropy import variant as cross_entropy
from flopcast.kernels.nf4 import variant as nf4
from flopcast.kernels.rmsnorm import variant as rmsnorm
from flopcast.kernels.rope import variant as rope
from flopcast.kernels.swiglu import variant as swiglu
from flopcast.kernels.variant import Variant


def nvrtc() -> str | None:
    try:
        version("cuda-core"), version("cuda-bindings")
        return version("nvidia-cuda-nvrtc")
    except PackageNotFoundError:
        return None


needs_nvrtc = pytest.mark.skipif(nvrtc() is None, reason="cuda-core and nvidia-cuda-nvrtc are not installed")


def table() -> list[compilation.Resources]:
    with compilation.TABLE.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == compilation.Resources._fields
    return [compilation.Resources(*row[:3], *map(int, row[3:7]), row[7]) for row in rows]


def test_the_table_holds_every_variant_for_every_architecture():
    expected = [
        (variant.kernel, " ".join(variant.defines).replace("-D", ""), architecture)
        for variant in compilation.tabulated()
        for architecture in compilation.ARCHITECTURES
    ]
    assert [row[:3] for row in table()] == expected


def test_every_row_of_the_table_fits_a_multiprocessor():
    for row in table():
        blocks = int((re.findall(r"MIN_BLOCKS=(\d+)", row.constants) or ["1"])[0])
        shared = row.static_shared_bytes + row.dynamic_shared_bytes + 1024
        if "weight_gradient" in row.kernel:
            blocks = 1
        assert row.threads <= 1024
        assert row.threads * blocks * row.registers <= 65536
        assert shared * blocks <= 164 * 1024


@needs_nvrtc
@pytest.mark.parametrize("architecture", compilation.ARCHITECTURES)
def test_every_kernel_compiles_without_a_spill_into_what_the_table_says(architecture):
    wanted = [row for row in table() if row.architecture == architecture]
    found = [compilation.resources(variant, architecture) for variant in compilation.tabulated()]
    if nvrtc() == wanted[0].nvrtc:
        assert found == wanted


@needs_nvrtc
def test_a_spill_is_refused():
    variant = rmsnorm.backward("bfloat16", 2048, True)
    # 32 registers a thread.
    constants = tuple((name, 8 if name == "MIN_BLOCKS" else value) for name, value in variant.constants)
    crowded = type(variant)(variant.source, variant.kernel, constants, variant.threads)
    with pytest.raises(RuntimeError, match="spills"):
        compilation.resources(crowded, "sm_90")


def disassembler() -> Path | None:
    spec = find_spec("nvidia")
    folders = (spec.submodule_search_locations if spec else None) or []
    return next((program for folder in folders for program in Path(folder).glob("*/bin/nvdisasm")), None)


@cache
def machine_code(variant: Variant) -> str:
    """The instructions of a kernel on an H100."""
    with NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compilation.compile_offline(variant, "sm_90").cubin)
        cubin.flush()
        command = [str(disassembler()), "-c", cubin.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return listing.split(f".text.{variant.kernel}:")[1].split("\n.text.")[0]


@needs_nvrtc
@pytest.mark.skipif(disassembler() is None, reason="nvidia-cuda-nvdisasm is not installed")
@pytest.mark.parametrize(
    ("variant", "instructions"),
    [
        (rmsnorm.forward("bfloat16", 5120), {"LDG.E.128": 4, "STG.E.128": 2}),
        (rmsnorm.forward("bfloat16", 5120, 2), {"LDG.E.128": 8, "STG.E.128": 4}),
        (rmsnorm.backward("bfloat16", 5120, True), {"LDGSTS.E.BYPASS.128": 4, "LDG.E.128": 2, "STG.E.128": 3}),
        (rope.rope("bfloat16", 40, 5, 128, 64, 8), {"LDG.E.128": 6, "STG.E.128": 2}),
        (swiglu.swiglu("swiglu_forward", "bfloat16", 8), {"LDG.E.128": 4, "STG.E.128": 2}),
        (swiglu.swiglu("swiglu_backward", "bfloat16", 8), {"LDG.E.128": 6, "STG.E.128": 4}),
        (cross_entropy.cross_entropy("cross_entropy_statistics", "bfloat16", 50432, 8), {"LDG.E.128": 4}),
        (
            cross_entropy.cross_entropy("cross_entropy_gradient", "bfloat16", 50432, 8),
            {"LDG.E.128": 4, "STG.E.128": 4},
        ),
        (nf4.quantise("bfloat16", True), {"LDG.E.128": 8}),
        (nf4.dequantise("bfloat16", True), {"STG.E.128": 8, "SHFL.IDX": 64}),
    ],
    ids=lambda value: value.kernel if hasattr(value, "kernel") else "",
)
def test_memory_is_accessed_sixteen_bytes_at_a_time(variant, instructions):
    body = machine_code(variant)
    for name, least in instructions.items():
        assert len(re.findall(rf"\b{re.escape(name)}\b", body)) >= least, name
    assert not re.findall(r"\b(LDL|STL)\b", body)


@needs_nvrtc
@pytest.mark.skipif(disassembler() is None, reason="nvidia-cuda-nvdisasm is not installed")
@pytest.mark.parametrize(
    ("variant", "bytes_per_thread"),
    [
        (rmsnorm.forward("bfloat16", 5120), 64),
        (rmsnorm.forward("bfloat16", 5120, 2), 160),
        (rope.rope("bfloat16", 40, 5, 128, 64, 8), 64),
        (swiglu.swiglu("swiglu_forward", "bfloat16", 8), 96),
        (swiglu.swiglu("swiglu_backward", "bfloat16", 8), 160),
        (cross_entropy.cross_entropy("cross_entropy_gradient", "bfloat16", 50432, 8), 128),
        (nf4.dequantise("bfloat16", True), 64 * 2.516),
    ],
    ids=lambda value: value.kernel if hasattr(value, "kernel") else "",
)
def test_memory_not_arithmetic_is_what_a_kernel_waits_for(variant, bytes_per_thread):
    body = machine_code(variant)
    # A division or an exponential to the last bit calls a subroutine, behind a branch for each element.
    assert not re.findall(r"\bCALL\b", body)
    assert_memory_takes_longer(len(instructions(body)), bytes_per_thread)


@needs_nvrtc
@pytest.mark.skipif(disassembler() is None, reason="nvidia-cuda-nvdisasm is not installed")
@pytest.mark.parametrize("hidden", [4096, 5120, 8192, 12288])
@pytest.mark.parametrize("residual_gradient", [False, True])
def test_memory_is_what_a_row_of_rms_norm_backward_waits_for(hidden, residual_gradient):
    variant = rmsnorm.backward("bfloat16", hidden, residual_gradient)
    body = loop(machine_code(variant))
    packs = hidden // 8 // variant["LANES"]
    assert sum("STG.E.128" in instruction for instruction in body) == packs
    # One pack of the weight stays in a register; of several each is read again by both passes, from L1.
    loads = packs * residual_gradient + (2 * packs if packs > 1 else 0)
    assert sum("LDG.E.128" in instruction for instruction in body) == loads
    assert_memory_takes_longer(len(body), packs * 16 * (3 + residual_gradient))


def assert_memory_takes_longer(num_instructions: float, bytes_per_thread: float) -> None:
    """Four instructions of a warp per cycle at 1.7 GHz, and 25 bytes of an H100's memory per nanosecond, to each
    multiprocessor: half of the former must be enough for the latter."""
    assert num_instructions / (0.5 * 4 * 1.7) < 32 * bytes_per_thread / 25


_BRANCH = re.compile(r"BRA.*`\((\.L_\w+)\)")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/ +(?!NOP)(.*?) *;")


def instructions(body: str) -> list[str]:
    return [found[1] for line in body.splitlines() if (found := _INSTRUCTION.match(line))]


def with_labels(body: str) -> tuple[list[str], dict[str, int]]:
    """Instructions and labels, and where each label is among them."""
    lines = [line for line in body.splitlines() if line.startswith(".L_") or _INSTRUCTION.match(line)]
    return lines, {line.split(":")[0]: number for number, line in enumerate(lines) if line.startswith(".L_")}


def loop(body: str) -> list[str]:
    """The instructions of the longest loop, from its label to the branch back."""
    lines, labels = with_labels(body)
    ends = [(labels[found[1]], end) for end, line in enumerate(lines) if (found := _BRANCH.search(line))]
    begin, end = max(ends, key=lambda ends: ends[1] - ends[0])
    return instructions("\n".join(lines[begin : end + 1]))


def shortest_way(body: str) -> list[str]:
    """The fewest instructions that lead from the first to an exit."""
    lines, labels = with_labels(body)
    reached: dict[int, list[str]] = {}
    ahead = deque([(0, list[str]())])
    while ahead:
        number, way = ahead.popleft()
        if number in reached:
            continue
        reached[number] = way
        found = _INSTRUCTION.match(lines[number])
        if not found:
            ahead.appendleft((number + 1, way))
            continue
        guard, operation = re.match(r"(@!?U?P\w+ +)?(\S+)", found[1]).groups()
        way = [*way, found[1]]
        if operation == "EXIT":
            return way
        target = re.search(r"`\((\.L_\w+)\)", found[1]) if operation.startswith("BRA") else None
        if target:
            ahead.append((labels[target[1]], way))
        if not target or guard or re.search(r"BRA\S* +(!?U?P\d|UR)", found[1]):
            ahead.append((number + 1, way))
    raise AssertionError("no exit")


@needs_nvrtc
@pytest.mark.skipif(disassembler() is None, reason="nvidia-cuda-nvdisasm is not installed")
def test_quantising_an_ordinary_group_waits_for_memory():
    # Branches skip what an ordinary group does not need (a cut end, NaN, a scale out of all proportion), and what one
    # warp of eight does for all: the tenth on top is for that.
    way = shortest_way(machine_code(nf4.quantise("bfloat16", True)))
    assert sum("LDG.E.128" in instruction for instruction in way) == 8
    assert sum("STG.E " in instruction for instruction in way) == 8
    assert not [instruction for instruction in way if "CALL" in instruction]
    # CuPy compiles with -ftz=true, and no emulator shows what that flushes.
    assert not [instruction for instruction in way if re.search(r"\bF(ADD|MUL|FMA|MNMX)\.FTZ", instruction)]
    assert_memory_takes_longer(1.1 * len(way), 64 * 2.516)
