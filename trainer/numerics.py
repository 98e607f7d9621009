"""What a model computes beyond its shapes: the constants that a forecast of its cost does not need."""

from dataclasses import dataclass
from typing import Literal

from flopcast.errors import InputError

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True)
class Numerics:
    """Rotary base, epsilon of the norms, and the activation: by default SiLU where the MLP is gated, else GELU."""

    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    activation: Activation | None = None

    def __post_init__(self) -> None:
        for name in ("rope_theta", "norm_eps"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise InputError(f"{name} is {value}; give a positive number")

    def activation_of(self, gated: bool) -> Activation:
        """The activation of an MLP."""
        return self.activation or ("silu" if gated else "gelu")
