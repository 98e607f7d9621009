"""FLOP conventions: the one place that says what an efficiency counts."""

from dataclasses import dataclass
from typing import Literal

from flopcast.simulator.model import Model

Convention = Literal["6n", "causal", "full"]
# "6n" is counted by most reports of training cost, "causal" by Megatron-Bridge, "full" by PaLM, Megatron-LM,
# llm-foundry and torchtitan.
CONVENTIONS: dict[str, str] = {
    "6n": "6 FLOPs per parameter and token, no attention scores",
    "causal": "6N plus causal attention, 6 L D S per token",
    "full": "6N plus full attention, 12 L D S per token",
}


@dataclass(frozen=True)
class FlopPerToken:
    """Model FLOPs of forward and backward per token, and the forward's share that full recompute does again."""

    total: float
    layers_forward: float


def model_flop_per_token(model: Model, seq_len: int, convention: str = "causal") -> FlopPerToken:
    """FLOPs per token: 6 N_matrix [+ 6 or 12 sum over layers of Hq Dh min(S, window)].

    N counts every parameter that a token is multiplied with: not those of experts it is not sent to, nor embedding and
    positions tables, which multiply nothing (a tied embedding is the head and counts once). The attention term is
    (4 forward + 8 backward) Hq Dh S per layer, halved when causal; a state space's is its recurrence.
    """
    tables = sum(
        t.num_parameters
        for t in model.root_tensors()
        if t.name == "positions" or (t.name == "embedding" and not model.tied_embeddings)
    )
    multiplied = model.num_active_parameters - tables
    scores = 0.0
    for block, number in model.kinds.items():
        scores += number * block.score_flop_per_token(seq_len, causal=convention == "causal")
    scores = 0.0 if convention == "6n" else scores
    head = model.num_root_parameters - tables
    layers = multiplied - head
    return FlopPerToken(total=6.0 * multiplied + 3.0 * scores, layers_forward=2.0 * layers + scores)
