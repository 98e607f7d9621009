"""Cells as people type them: numbers, flags, and the names of kernels, precisions and schedules."""

import pytest

from flopcast import InputError
from flopcast.reports.run_words import (
    attention_in,
    flag_in,
    number_in,
    precision_in,
    schedule_in,
)


@pytest.mark.parametrize(
    ("cell", "number"), [(8192, 8192), ("8,192", 8192), ("8k", 8192), ("1M", 2**20), ("4_096", 4096), ("1e3", 1000)]
)
def test_numbers(cell: object, number: float) -> None:
    assert number_in(cell) == number


def test_thousands_of_what_is_measured_are_not_those_of_sizes() -> None:
    assert number_in("10.5k", thousand=1000) == 10_500


@pytest.mark.parametrize("cell", ["many", "8 GPUs", "1 (8)", ""])
def test_words_are_no_numbers(cell: str) -> None:
    with pytest.raises(ValueError, match="could not convert"):
        number_in(cell)


@pytest.mark.parametrize(
    ("cell", "flag"),
    [
        (1, True),
        (0.0, False),
        ("True", True),
        ("no", False),
        ("inductor", True),
        ("None", False),
        ("flase", None),
        ("no (default)", False),
        ("yes, layers", True),
    ],
)
def test_flags(cell: object, flag: bool | None) -> None:
    assert flag_in(cell) is flag


@pytest.mark.parametrize(
    ("text", "kernel"),
    [
        *(
            ("flashattention-2", "flash2"),
            ("flash_attention_3", "flash3"),
            ("fa2", "flash2"),
            ("flash attn v1", "flash1"),
        ),
        *(("flash", "flash1"), ("flashattention", "flash1"), ("flash3", "flash3"), ("cudnn", "cudnn"), ("te", "cudnn")),
        *(("eager", "unfused"), ("none", "unfused"), ("sdpa", "flash2"), ("xformers", "flash1"), ("other", None)),
    ],
)
def test_attention_kernels(text: str, kernel: str | None) -> None:
    assert attention_in(text, unversioned="flash1") == kernel


def test_precisions() -> None:
    assert precision_in("bf16-mixed") == precision_in("fp16") == "bf16"
    assert precision_in("fp8-cs") == precision_in("mxfp8") == precision_in("e4m3") == "fp8"
    assert (
        precision_in("half")
        == precision_in("16-mixed")
        == precision_in("amp o2")
        == precision_in("bf16/fp32")
        == "bf16"
    )
    assert precision_in("fp8 with bf16 gradients") == precision_in("float-8") == "fp8"
    for refused in ("nvfp4", "fp32", "tf32", "bf17", "int8"):
        with pytest.raises(InputError, match=refused):
            precision_in(refused)


def test_schedules() -> None:
    assert [schedule_in(name, 1) for name in ("", "1f1b", "GPipe".lower(), "zb-h1", "zero-bubble")] == [
        *("1f1b", "1f1b", "gpipe", "zero-bubble", "zero-bubble")
    ]
    assert schedule_in("1f1b", 4) == schedule_in("zb-v", 2) == "interleaved"
    assert schedule_in("dualpipe", 1) is None
