"""The optimizer's settings."""

from dataclasses import dataclass

from flopcast.errors import InputError


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101). ``max_grad_norm`` 0 does not clip.

    Matrices decay, one-dimensional parameters do not.
    """

    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lr", "eps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"optimizer {name} is {getattr(self, name)}; give a positive number")
        for name in ("weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"optimizer {name} is {getattr(self, name)}; give 0 or a positive number")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"optimizer betas are {self.betas}; each is at least 0 and below 1")
