"""What a model computes beyond its shapes: the constants that a forecast of its cost does not need."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from flopcast.errors import InputError

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True)
class RopeScaling:
    """How LLaMA 3 stretches RoPE over a longer context than ``original_context`` tokens: slow turns by ``factor``."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: float

    def __post_init__(self) -> None:
        if self.low_freq_factor >= self.high_freq_factor:
            raise InputError(
                f"rope_scaling: low_freq_factor is {self.low_freq_factor}, not below high_freq_factor "
                f"{self.high_freq_factor}; write 1 and 4 as LLaMA 3 has them"
            )

    def __call__(self, frequencies: torch.Tensor) -> torch.Tensor:
        """Angles per token [R] as they are used.

        f (s + (1 - s) / F), s = (C f / 2 pi - l) / (h - l) between 0 and 1. Source: transformers' "llama3" in
        modeling_rope_utils.py, after Meta's llama-models.
        """
        turns = self.original_context * frequencies / (2 * math.pi)
        kept = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)


@dataclass(frozen=True)
class Numerics:
    """Rotary base and scaling, epsilon of the norms, and the activation: by default SiLU in a gated MLP, else GELU."""

    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    activation: Activation | None = None
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        for name in ("rope_theta", "norm_eps"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise InputError(f"{name} is {value}; give a positive number")

    def activation_of(self, gated: bool) -> Activation:
        """The activation of an MLP."""
        return self.activation or ("silu" if gated else "gelu")
