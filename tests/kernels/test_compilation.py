import csv
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pytest

from flopcast.kernels import compilation
from flopcast.kernels.cross_entropy import variant as cross_entropy
from flopcast.kernels.nf4 import variant as nf4
from flopcast.kernels.rmsnorm import variant as rmsnorm
from flopcast.kernels.rope import variant as rope
from flopcast.kernels.swiglu import variant as swiglu


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


@needs_nvrtc
@pytest.mark.skipif(disassembler() is None, reason="nvidia-cuda-nvdisasm is not installed")
@pytest.mark.parametrize(
    ("variant", "instructions"),
    [
        (rmsnorm.forward("bfloat16", 5120), {"LDG.E.128": 4, "STG.E.128": 2}),
        (rmsnorm.forward("bfloat16", 5120, 2), {"LDG.E.128": 8, "STG.E.128": 4}),
        (rmsnorm.backward("bfloat16", 5120, True), {"LDGSTS.E.BYPASS.128": 4, "LDG.E.128": 3, "STG.E.128": 3}),
        (rope.rope("bfloat16", 40, 5, 128, 64, 8), {"LDG.E.128": 6, "STG.E.128": 2}),
        (swiglu.swiglu("swiglu_forward", "bfloat16", 8), {"LDG.E.128": 4, "STG.E.128": 2}),
        (swiglu.swiglu("swiglu_backward", "bfloat16", 8), {"LDG.E.128": 6, "STG.E.128": 4}),
        (cross_entropy.cross_entropy("cross_entropy_statistics", "bfloat16", 50432, 8), {"LDG.E.128": 4}),
        (
            cross_entropy.cross_entropy("cross_entropy_gradient", "bfloat16", 50432, 8),
            {"LDG.E.128": 4, "STG.E.128": 4},
        ),
        (nf4.quantise("bfloat16", True), {"LDG.E.128": 2}),
        (nf4.dequantise("bfloat16", True), {"STG.E.128": 8, "SHFL.IDX": 64}),
    ],
    ids=lambda value: value.kernel if hasattr(value, "kernel") else "",
)
def test_memory_is_accessed_sixteen_bytes_at_a_time(variant, instructions, tmp_path):
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compilation.compile_offline(variant, "sm_90").cubin)
    listing = subprocess.run([disassembler(), "-c", cubin], capture_output=True, text=True, check=True).stdout
    body = listing.split(f".text.{variant.kernel}:")[1].split("\n.text.")[0]
    for name, least in instructions.items():
        assert len(re.findall(rf"\b{re.escape(name)}\b", body)) >= least, name
    assert not re.findall(r"\b(LDL|STL)\b", body)
