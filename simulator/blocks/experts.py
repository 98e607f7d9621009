"""Mixture of experts: a router sends every token to a few of many MLPs; shared experts see them all."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flopcast.errors import InputError
from flopcast.simulator.blocks import experts_pass
from flopcast.simulator.blocks.computation import Computation, Workload
from flopcast.simulator.blocks.transformer import Mlp
from flopcast.simulator.model import ParameterTensor


@dataclass(frozen=True)
class Experts:
    """``num_experts`` gated MLPs of ``intermediate`` features each, ``experts_per_token`` of which work on a token.

    No token is dropped, whatever the router chooses (dropless). ``shared_intermediate``: features of the experts that
    every token passes through besides, all of them together (DeepSeekMoE, Qwen2-MoE); ``shared_gate``: their result
    is weighted by a sigmoid of the token (Qwen2-MoE).
    """

    num_experts: int
    experts_per_token: int
    intermediate: int
    shared_intermediate: int = 0
    shared_gate: bool = False

    def __post_init__(self) -> None:
        if self.num_experts < 2 or self.intermediate <= 0:
            raise InputError(
                f"{self.num_experts} experts of intermediate size {self.intermediate}; give at least 2 experts "
                "and a positive size"
            )
        if not 0 < self.experts_per_token <= self.num_experts:
            raise InputError(
                f"experts_per_token is {self.experts_per_token} of {self.num_experts} experts; choose 1 to all of them"
            )
        if self.shared_gate and not self.shared_intermediate:
            raise InputError("shared_gate weights shared experts, but shared_intermediate is 0; give it or no gate")

    @property
    def kind(self) -> str:
        """Its word in the name of a layer."""
        return "expert"

    @property
    def shared(self) -> Mlp | None:
        """The shared experts as the one MLP that they are."""
        return Mlp(self.shared_intermediate) if self.shared_intermediate else None

    def check_tensor_parallel(self, tp: int) -> None:
        """Raise InputError unless every expert's intermediate features divide over ``tp`` ranks."""
        if self.intermediate % tp:
            raise InputError(
                f"tp={tp} does not divide the experts' intermediate={self.intermediate}; choose a tp that does"
            )
        if self.shared:
            self.shared.check_tensor_parallel(tp)

    def exchanges_all_tokens(self, load: Workload) -> NDArray[np.bool_]:
        """Where no expert parallelism sends tokens on their own way, or shared experts see them all."""
        return np.asarray((load.plans.ep == 1) | (self.shared_intermediate > 0))

    def computations(self, load: Workload, own_input: bool) -> list[Computation]:
        """What it does on one micro-batch; ``own_input`` says whether it keeps its input."""
        return experts_pass.computations(self, load, own_input)

    def tensors(self, hidden: int) -> tuple[ParameterTensor, ...]:
        """The router; every expert's three matrices stacked, as a grouped product takes them; the shared experts."""
        n, k, size = self.num_experts, self.experts_per_token, self.intermediate

        def stacked(name: str, num_out: int, num_in: int, split: "experts_pass.ExpertSplit") -> ParameterTensor:
            return ParameterTensor(f"experts.{name}", (n * num_out, num_in), split, n, k)

        # Each tensor-parallel rank weighs its own part of the experts' results, hence a share of the router's gradient.
        tensors = [
            ParameterTensor("router", (n, hidden), "shared"),
            stacked("gate", size, hidden, "rows"),
            stacked("up", size, hidden, "rows"),
            stacked("down", hidden, size, "columns"),
        ]
        if self.shared:
            tensors += self.shared.tensors(hidden, "shared.")
        if self.shared_gate:
            tensors.append(ParameterTensor("shared_gate", (1, hidden), "shared"))
        return tuple(tensors)
