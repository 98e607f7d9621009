"""What tables of runs write in their cells: words for a plan's choices, flags, and numbers as people type them."""

import re
from typing import Any

from flopcast.errors import InputError
from flopcast.simulator.plan import CHOICES, Precision

YES = ("yes", "y", "true", "t", "on", "enabled", "x")
NO = ("no", "n", "false", "f", "off", "none", "disabled")
# "no checkpointing", "none (default)" and "yes, in full" say the same as their first word.
SAYS_NO = re.compile(r"^(no|none|not|without|w/o|off|false|disabled)\b")
SAYS_YES = re.compile(r"^(yes|true|on|enabled|with)\b")
# Kernels by other names; an unversioned "flash" is the software's own version, or the second.
ATTENTION_NAMES = {
    **{"sdpa": "flash2", "eager": "unfused", "none": "unfused", "standard": "unfused", "naive": "unfused"},
    **{"xformers": "flash1", "te": "cudnn", "fused": "cudnn", "cudnn_flash_te": "cudnn"},
    **{"ck": "flash2", "aotriton": "triton", "flex": "triton", "flexattention": "triton"},
}
# A compiler's name, or a mode of it, in place of a yes; and those of ways to split sequences.
RAN = re.compile(r"compile|inductor|thunder|nvfuser|dynamo|xla|jit|cuda-?graph|autotune|overhead|ulysses|megatron|ring")
# Tensor-parallel communication in chunks beside its products: torchtitan's asynchronous TP, Megatron's
# --tp-comm-overlap and NeMo's user buffers (ub_tp_comm_overlap), Megatron-Kwai's --overlap-sp-ag and -rs.
TENSOR_OVERLAP = re.compile(
    r"(?<!no )(?<!not )(?<!without )(async(hronous)?[-_ ]?(tp|tensor)|(tp|tensor)[-_ ]?(comm(unication)?[-_ ]?)?overlap"
    r"|overlap[-_ ](sp|tp)\b|user[-_ ]?buffers?|\bub_tp)"
)
COMPILED = re.compile(r"(?<!no )(?<!not )(?<!non-)(?<!without )\b(torch\.?_?)?compiled?\b(?!\w)")
# Norms and rotary positions in kernels of their own, such as flash-attention's and Apex's.
FUSED = re.compile(r"(?<!no )(?<!not )(?<!without )fused[-_ ](kernel|norm|rms|layer[-_ ]?norm|rot|rope)")
WIDTHS = {
    "fp4": re.compile(r"(fp?|float|int|nf)[-_ ]?4|\b4[-_ ]?bit"),
    "fp8": re.compile(r"(fp?|float)[-_ ]?8|e4m3|e5m2|8[-_ ]?bit"),
    "bf16": re.compile(r"(?<!\d)16(?!\d)|bfloat|half|amp|mixed|^o[12]$"),
    "fp32": re.compile(r"(?<!\d)(32|64)(?!\d)|full|single|double"),
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


def flag_in(cell: Any) -> bool | None:
    """Whether a cell says yes: a number that is not 0, or a word; what ran is a yes. None for a word not known."""
    text = str(cell).strip().lower()
    try:
        return bool(float(text))
    except ValueError:
        known = text in (*YES, *NO) or SAYS_NO.match(text) or SAYS_YES.match(text) or RAN.search(text)
        return not (text in NO or SAYS_NO.match(text)) if known else None


def attention_in(text: str, unversioned: str) -> str | None:
    """The kernel that a cell names: "FlashAttention-2", "fa3"; ``unversioned`` is a bare "flash"; None if unknown."""
    flash = re.match(r"^(?:flash[-_ ]?(?:attention|attn)?|fa)[-_ ]?v?(\d)?", text)
    if flash and text not in CHOICES["attention"]:
        text = f"flash{flash[1]}" if flash[1] else unversioned
    return ATTENTION_NAMES.get(text, text if text in CHOICES["attention"] else None)


def precision_in(text: str) -> Precision:
    """The width of matrix products: bf16 stands for every 16-bit type; InputError for those that are not forecast."""
    width = width_in(text)
    if width == "fp4":
        raise InputError(f"precision is '{text}'; 4-bit products are not forecast")
    if width == "fp32":
        raise InputError(f"precision is '{text}'; products of 32 bits are not forecast")
    if width is None:
        raise InputError(f"precision is '{text}'; write bf16, fp16 or fp8")
    return "fp8" if width == "fp8" else "bf16"


def width_in(text: str) -> str | None:
    """The narrowest of WIDTHS that a cell names; None for a word that is none."""
    return next((name for name, words in WIDTHS.items() if words.search(text)), None)


def dispatcher_in(text: str) -> str | None:
    """How tokens get to their experts; None for a name that is not known."""
    if re.search(r"deep-?ep|hybrid-?ep|flex", text):
        return "deepep"
    return "alltoall" if re.fullmatch(r"all-?to-?all|a2a", text) else None


def cuda_graphs_in(text: str) -> str | None:
    """What is replayed by CUDA graphs; Megatron Core's words for it too. None for a word that is not known."""
    if text in (*NO, "0") or SAYS_NO.match(text):
        return "none"
    if re.search(r"full", text):
        return "full"
    layers = r"partial|piece|scoped|local|transformer[-_ ]engine|attn|attention|router|layer|mlp|moe|mamba"
    return "partial" if re.search(layers, text) else None


def schedule_in(text: str, virtual: int) -> str | None:
    """The pipeline's schedule, with several chunks per stage the interleaved one; None for a name that is not known."""
    if virtual > 1:
        return "interleaved"
    if ZERO_BUBBLE.match(text):
        return "zero-bubble"
    if "gpipe" in text:
        return "gpipe"
    return "1f1b" if ONE_FORWARD_ONE_BACKWARD.search(text) else None
