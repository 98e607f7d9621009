"""What tables of runs write in their cells: words for a plan's choices, flags, and numbers as people type them."""

import re
from typing import Any

from flopcast.errors import InputError
from flopcast.simulator.plan import CHOICES, Precision, Recompute

YES = ("yes", "y", "true", "t", "on", "enabled")
NO = ("no", "n", "false", "f", "off", "none", "disabled")
# Kernels by other names; an unversioned "flash" is the software's own version, or the second.
ATTENTION_NAMES = {
    **{"sdpa": "flash2", "eager": "unfused", "none": "unfused", "standard": "unfused", "naive": "unfused"},
    **{"xformers": "flash1", "te": "cudnn", "fused": "cudnn"},
}
# ZB-H2 leaves no bubble at the price of memory; it is forecast as ZB-H1 (arXiv:2401.10241), of which it has a third.
ZERO_BUBBLE = re.compile(r"^(zero-?bubble|zb)")
ONE_FORWARD_ONE_BACKWARD = re.compile(r"^$|1f1b|interleav|virtual|pipedream|dapple")
NUMBER = re.compile(r"([+-]?[\d.]+(?:e[+-]?\d+)?)\s*([km]?)")


def number_in(cell: Any, thousand: int = 2**10) -> float:
    """The number that a cell states: "8,192", "8k" (``thousand`` each) and "1e6"; ValueError for other words."""
    text = str(cell).strip().lower()
    match = NUMBER.fullmatch(text.replace(",", "").replace("_", ""))
    if not match:
        return float(text)
    return float(match[1]) * {"": 1, "k": thousand, "m": thousand**2}[match[2]]


def flag_in(cell: Any) -> bool:
    """Whether a cell says yes: a number that is not 0, or a word; the name of a compiler means that it ran."""
    text = str(cell).strip().lower()
    try:
        return bool(float(text))
    except ValueError:
        return text not in NO


def recompute_in(text: str) -> Recompute:
    """None, selective or full; a bare yes is full, as checkpointing is where nothing else is said."""
    if text in (*NO, "0"):
        return "none"
    whole = text in (*YES, "1") or any(word in text for word in ("full", "checkpoint", "block", "layer", "uniform"))
    return "full" if whole and "select" not in text else "selective"


def attention_in(text: str, unversioned: str) -> str | None:
    """The kernel that a cell names: "FlashAttention-2", "fa3"; ``unversioned`` is a bare "flash"; None if unknown."""
    flash = re.match(r"^(?:flash[-_ ]?(?:attention|attn)?|fa)[-_ ]?v?(\d)?", text)
    if flash and text not in CHOICES["attention"]:
        text = f"flash{flash[1]}" if flash[1] else unversioned
    return ATTENTION_NAMES.get(text, text if text in CHOICES["attention"] else None)


def precision_in(text: str) -> Precision:
    """The width of matrix products: bf16 stands for every 16-bit type; InputError for those that are not forecast."""
    if "fp4" in text:
        raise InputError(f"precision is '{text}'; 4-bit products are not forecast")
    if text in ("fp32", "float32", "tf32", "fp64"):
        raise InputError(f"precision is '{text}'; products of 32 bits are not forecast")
    return "fp8" if re.search(r"fp8|float8|e4m3|8-?bit", text) else "bf16"


def dispatcher_in(text: str) -> str | None:
    """How tokens get to their experts; None for a name that is not known."""
    if re.search(r"deep-?ep|hybrid-?ep|flex", text):
        return "deepep"
    return "alltoall" if re.fullmatch(r"all-?to-?all|a2a", text) else None


def schedule_in(text: str, virtual: int) -> str | None:
    """The pipeline's schedule, with several chunks per stage the interleaved one; None for a name that is not known."""
    if virtual > 1:
        return "interleaved"
    if ZERO_BUBBLE.match(text):
        return "zero-bubble"
    if "gpipe" in text:
        return "gpipe"
    return "1f1b" if ONE_FORWARD_ONE_BACKWARD.search(text) else None
