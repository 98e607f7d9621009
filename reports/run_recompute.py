"""Recomputation as tables of runs write it: which kind, and of how many layers."""

import re
from fractions import Fraction

from flopcast.errors import InputError
from flopcast.reports.run_words import NO, SAYS_NO, YES
from flopcast.simulator.plan import Recompute

# The names of Megatron, NeMo, torchtitan and MaxText: for whole layers, and for parts of them.
WHOLE_LAYERS = re.compile(
    r"full|checkpoint|ckpt|remat|block|layer(?![-_ ]?norm)|uniform|whole|nothing|\ball\b|^(ac|gc|activations?)$"
    r"|^(activation[-_ ])?recomput(e|ed|ation)$"
)
PARTS = re.compile(
    r"select|minimal|partial|attn|attention|core|flash|mlp|ffn|moe|norm|act|sav(e|able)|dot|proj|offload|custom|^op\b"
    r"|\bsac\b"
)
# "10/80", "5 of 48 layers checkpointed".
OF_SO_MANY = re.compile(r"(?<![\d.])(\d+)\s*(?:/|(?:out )?of)\s*(?:the |all )?(\d+)(?![\d.])")
# "50 %" of the layers; InternEvo's checkpoint=0.4.
PERCENT = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)\s*(?:%|percent)")
SHARE = re.compile(r"^(?:[a-z_ ]*[=: ]\s*)?(0?\.\d+)$")
# torchtitan's selective_ac_option "2" computes every second layer again.
EVERY = re.compile(r"every (?:(other)|(\d+)\w*)|^select\w*[-_:=( ]+(?:every )?(\d+)\W*$")
# Megatron's and NeMo's --recompute-num-layers, of each model chunk: "block 4", "full (4 layers)", "num_layers=4", "4".
OF_EACH_CHUNK = re.compile(
    r"(?<![\d.])(\d+)\s*(?:[a-z]+ )?layers?\b|(?:block|full|layers?)[-_:=/,(\s]+(?:full[-_:=/,\s]+)?(\d+)|^(\d+)$"
)


def recompute_in(text: str) -> Recompute:
    """None, selective or full; a bare yes is full, as checkpointing is where nothing else is said."""
    if text in (*NO, "0", "0.0", "everything_saveable") or SAYS_NO.match(text):
        return "none"
    if "select" not in text and (text in (*YES, "1", "1.0") or WHOLE_LAYERS.search(text)):
        return "full"
    if PARTS.search(text):
        return "selective"
    raise InputError(f"recompute is '{text}'; write none, selective, full, or of how many layers: 10/80")


def layers_in(text: str, num_layers: int, pp: int = 1, virtual_pp: int = 1) -> Fraction | None:
    """Of a model chunk's layers those that a cell says are computed again; None where it says no number.

    What is counted of the model or of a stage is dealt out over its chunks. A bare number is Megatron's, of each chunk.
    "Uniform" computes all layers again, so many at once. Raises InputError for a number of what there is not.
    """
    chunk = Fraction(num_layers, pp * virtual_pp)
    if found := OF_SO_MANY.search(text):
        again, of = int(found[1]), int(found[2])
        if of not in (num_layers, -(-num_layers // pp), -(-chunk // 1)) or again > of:
            raise InputError(
                f"recompute is '{text}'; write how many of the model's {num_layers} layers, such as 10/{num_layers}"
            )
        return chunk * again / of
    if "uniform" in text:
        return None
    if found := PERCENT.search(text):
        return _checked(text, Fraction(found[1]) / 100 * chunk, chunk, num_layers)
    if found := SHARE.match(text):
        return Fraction(found[1]) * chunk
    if found := EVERY.search(text):
        return chunk / (2 if found[1] else max(int(found[2] or found[3]), 1))
    # Alone, "0" and "1" say no and yes.
    if text not in ("0", "1") and (found := OF_EACH_CHUNK.search(text)):
        return _checked(text, Fraction(found[1] or found[2] or found[3]), chunk, num_layers)
    return None


def _checked(text: str, layers: Fraction, chunk: Fraction, num_layers: int) -> Fraction:
    most = -(-chunk // 1)
    if layers == num_layers:
        return chunk
    if layers > most:
        raise InputError(
            f"recompute is '{text}'; a model chunk of a stage has {most} layer{'s' if most > 1 else ''}: write at most "
            f"as many, or of how many, such as 10/{num_layers}"
        )
    return layers
