"""What a model computes beyond its shapes: the constants that a forecast of its cost does not need."""

from dataclasses import dataclass
from typing import Literal

from flopcast.errors import InputError

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True)
class Numerics:
    """Rotary base, epsilon of the norms, and the activation: by default SiLU where the MLP is gated, else GELU.

    ``initial_std`` is the standard deviation of freshly drawn matrices; those that write to the residual stream are
    drawn with 1/sqrt(2 L) of it (Radford et al. 2019, GPT-2, section 2.3).
    """

    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    activation: Activation | None = None
    initial_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("rope_theta", "norm_eps", "initial_std"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise InputError(f"{name} is {value}; give a positive number")

    def activation_of(self, gated: bool) -> Activation:
        """The activation of an MLP."""
        return self.activation or ("silu" if gated else "gelu")
