"""Forecasting plans of many models on many clusters in one call: their operation lists laid end to end."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flopcast.collectives.group import Group
from flopcast.simulator.cluster import Cluster
from flopcast.simulator.constants import Constants, default_constants
from flopcast.simulator.forecast import check
from flopcast.simulator.hardware import Hardware
from flopcast.simulator.memory import Memory, memory
from flopcast.simulator.model import Model
from flopcast.simulator.operation import Array, Collective, Operation
from flopcast.simulator.operations import step_operations
from flopcast.simulator.plan import Plan, Plans
from flopcast.simulator.step import StepTime, step_time


@dataclass(frozen=True)
class Case:
    """One plan of one model on one cluster."""

    model: Model
    cluster: Cluster
    plan: Plan

    def memory(self, constants: Constants | None = None) -> Memory:
        """Memory per GPU, arrays of one plan."""
        plans = Plans.of([self.plan])
        operations = step_operations(self.model, plans, np.array([self.cluster.gpus_per_node]))
        return memory(self.model, operations, plans, constants or default_constants())


@dataclass(frozen=True)
class Batch:
    """The operations of many cases, built once: only :meth:`step_time` depends on the constants."""

    cases: tuple[Case, ...]
    plans: Plans
    operations: tuple[Operation, ...]
    num_layers: NDArray[np.int64]
    hardware: Hardware

    @classmethod
    def of(cls, cases: Sequence[Case]) -> "Batch":
        """Lay the cases' operations end to end; raises InputError as :func:`forecast` does."""
        lists = []
        for case in cases:
            plans = Plans.of([case.plan])
            check(case.model, case.cluster, plans, "causal")
            lists.append(step_operations(case.model, plans, np.array([case.cluster.gpus_per_node])))
        return cls(
            cases=tuple(cases),
            plans=Plans.of([case.plan for case in cases]),
            operations=tuple(_laid_end_to_end(lists)),
            num_layers=np.array([case.model.num_layers for case in cases]),
            hardware=Hardware.of([case.cluster for case in cases]),
        )

    def on(self, cluster: Cluster) -> "Batch":
        """The same plans on one machine, such as their own with other measurements; its nodes hold as many GPUs."""
        cases = tuple(replace(case, cluster=cluster) for case in self.cases)
        return replace(self, cases=cases, hardware=Hardware.of([cluster] * len(cases)))

    def step_time(self, constants: Constants | None = None) -> StepTime:
        """Seconds of one step of every case."""
        constants = constants or default_constants()
        return step_time(self.operations, self.plans, self.num_layers, self.hardware, constants)

    def memory_bytes(self, constants: Constants | None = None) -> Array:
        """Peak memory per GPU of every case."""
        return np.array([case.memory(constants).total[0] for case in self.cases])


def _laid_end_to_end(lists: Sequence[Sequence[Operation]]) -> list[Operation]:
    """The union of the lists by name, phase and occasion; a case without an operation has it 0 times."""
    columns: dict[tuple[str, str, str], dict[int, Operation]] = {}
    for index, operations in enumerate(lists):
        for operation in operations:
            key = (operation.name, operation.phase, operation.when)
            column = columns.setdefault(key, {})
            assert index not in column, f"operation {key} occurs twice in one list"
            column[index] = operation
    return [_joined([column.get(i) for i in range(len(lists))]) for column in columns.values()]


def _joined(parts: Sequence[Operation | None]) -> Operation:
    template = next(part for part in parts if part is not None)
    idle = _idle(template)
    joined: Operation = _join(template, [idle if part is None else part for part in parts])
    present = np.array([part is not None for part in parts], dtype=np.float64)
    values = {field.name: getattr(joined, field.name) for field in fields(Operation)}
    return Operation(**{**values, "count": joined.count * present})


def _idle(operation: Operation) -> Operation:
    """What stands where an operation is absent: its collective is among groups that any machine holds."""
    if not isinstance(operation.work, Collective):
        return operation
    one = np.ones_like(np.asarray(operation.work.group.size))
    return replace(operation, work=replace(operation.work, group=Group(one, one, one)))


def _join(template: Any, parts: Sequence[Any]) -> Any:
    """Dataclasses field by field, arrays of length 1 one after the other, everything else as it is in the template."""
    if is_dataclass(template):
        values = {
            field.name: _join(getattr(template, field.name), [getattr(part, field.name) for part in parts])
            for field in fields(template)
        }
        return type(template)(**values)  # type: ignore[misc]
    if isinstance(template, np.ndarray):
        return np.concatenate([np.atleast_1d(part) for part in parts])
    if any(np.ndim(part) for part in parts) and not isinstance(template, str):
        return np.concatenate([np.atleast_1d(part) for part in parts])
    return template
