"""Mixture of experts: a router sends every token to a few of many MLPs; shared experts see them all."""

from dataclasses import dataclass
from math import comb
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flopcast.errors import InputError
from flopcast.simulator.blocks import experts_pass
from flopcast.simulator.blocks.computation import Computation, Workload
from flopcast.simulator.blocks.transformer import Mlp, linear
from flopcast.simulator.model import ParameterTensor, Split


@dataclass(frozen=True)
class Experts:
    """``num_experts`` gated MLPs of ``intermediate`` features each, ``experts_per_token`` of which work on a token.

    No token is dropped, whatever the router chooses (dropless). ``shared_intermediate``: features of the experts that
    every token passes through besides, all of them together (DeepSeekMoE, Qwen2-MoE); ``shared_gate``: their result
    is weighted by a sigmoid of the token (Qwen2-MoE). ``num_groups``, ``groups_per_token``: a token's experts are all
    in so many of these groups of neighbours (DeepSeek's node-limited routing, arXiv:2412.19437, section 2.1.2).
    ``bias``: router and experts have biases, and what enters the activation is clamped (gpt-oss).
    """

    num_experts: int
    experts_per_token: int
    intermediate: int
    shared_intermediate: int = 0
    shared_gate: bool = False
    num_groups: int = 1
    groups_per_token: int = 1
    bias: bool = False

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
        if self.num_experts % self.num_groups or not 0 < self.groups_per_token <= self.num_groups:
            raise InputError(
                f"groups_per_token is {self.groups_per_token} of num_groups {self.num_groups} over {self.num_experts} "
                "experts; choose a divisor of the experts, and 1 to all of the groups"
            )
        if self.groups_per_token * (self.num_experts // self.num_groups) < self.experts_per_token:
            raise InputError(
                f"groups_per_token={self.groups_per_token} have fewer experts than experts_per_token="
                f"{self.experts_per_token}; raise it"
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

    def expected_places(self, num_places: int) -> float:
        """Of so many nodes, or ranks, which share out the experts in their order: how many a token's experts lie on.

        N (1 - P), where P is the chance that none of a token's experts lies on one place, its groups and its experts
        among theirs being equally likely.
        """
        held, size = self.num_experts // num_places, self.num_experts // self.num_groups
        chosen, k = self.groups_per_token, self.experts_per_token
        every = comb(chosen * size, k)
        if held % size and size % held:
            return num_places * (1 - comb(self.num_experts - held, k) / comb(self.num_experts, k))
        if held < size:
            missed = 1 - chosen / self.num_groups * (1 - comb(chosen * size - held, k) / every)
        else:
            here, others = held // size, self.num_groups - held // size
            missed = sum(
                comb(here, j) * comb(others, chosen - j) * comb((chosen - j) * size, k)
                for j in range(min(here, chosen) + 1)
            ) / (comb(self.num_groups, chosen) * every)
        return num_places * (1 - missed)

    def tensors(self, hidden: int) -> tuple[ParameterTensor, ...]:
        """The router; every expert's three matrices stacked, as a grouped product takes them; the shared experts."""
        n, k, size = self.num_experts, self.experts_per_token, self.intermediate

        def stacked(name: str, num_out: int, num_in: int, split: Literal["rows", "columns"]) -> list[ParameterTensor]:
            weight = ParameterTensor(f"experts.{name}", (n * num_out, num_in), split, n, k)
            of_bias: Split = "whole" if split == "columns" else split
            bias = ParameterTensor(f"experts.{name}.bias", (n * num_out,), of_bias, n, k)
            return [weight, bias] if self.bias else [weight]

        # Each tensor-parallel rank weighs its own part of the experts' results, hence a share of the router's gradient.
        tensors = [
            *linear("router", n, hidden, "shared", self.bias),
            *stacked("gate", size, hidden, "rows"),
            *stacked("up", size, hidden, "rows"),
            *stacked("down", hidden, size, "columns"),
        ]
        if self.shared:
            tensors += self.shared.tensors(hidden, "shared.")
        if self.shared_gate:
            tensors.append(ParameterTensor("shared_gate", (1, hidden), "shared"))
        return tuple(tensors)
