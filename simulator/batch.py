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
from flopcast.simulator.operation import Collective, Operation
from flopcast.simulator.operations import step_operations
from flopcast.simulator.plan import Plan, Plans
from flopcast.simulator.step import StepTime, step_time


@dataclass(frozen=True)
class Case:
    """One plan of one model on one cluster."""

    model: Model
    cluster: Cluster
    plan: Plan


def by_model(cases: Sequence[Case]) -> dict[tuple[Model, int], list[int]]:
    """The cases of each model on nodes of one size, by their places: their operations are one list."""
    groups: dict[tuple[Model, int], list[int]] = {}
    for index, case in enumerate(cases):
        groups.setdefault((case.model, case.cluster.gpus_per_node), []).append(index)
    return groups


def memory_of(cases: Sequence[Case]) -> Memory:
    """Memory per GPU of cases of one model on nodes of one size, arrays over the cases."""
    model, plans = cases[0].model, Plans.of([case.plan for case in cases])
    operations = step_operations(model, plans, np.array([case.cluster.gpus_per_node for case in cases]))
    return memory(model, operations, plans, default_constants())


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
        """List the operations of each model's cases together, and lay the lists end to end.

        Raises InputError as :func:`forecast` does.
        """
        for case in cases:
            check(case.model, case.cluster, Plans.of([case.plan]), "causal")
        groups = by_model(cases)
        lists = [
            step_operations(model, Plans.of([cases[i].plan for i in group]), np.full(len(group), gpus_per_node))
            for (model, gpus_per_node), group in groups.items()
        ]
        places = np.argsort(np.concatenate([*groups.values()]))
        return cls(
            cases=tuple(cases),
            plans=Plans.of([case.plan for case in cases]),
            operations=tuple(_laid_end_to_end(lists, [len(group) for group in groups.values()], places)),
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


def _laid_end_to_end(
    lists: Sequence[Sequence[Operation]], sizes: Sequence[int], places: NDArray[np.int64]
) -> list[Operation]:
    """The union of the lists by name, phase and occasion; a case without an operation has it 0 times.

    ``sizes``: the cases of each list. ``places``: where each case of the result stands in the lists laid end to end.
    """
    columns: dict[tuple[str, str, str], dict[int, Operation]] = {}
    for index, operations in enumerate(lists):
        for operation in operations:
            key = (operation.name, operation.phase, operation.when)
            column = columns.setdefault(key, {})
            assert index not in column, f"operation {key} occurs twice in one list"
            column[index] = operation
    return [_joined([column.get(i) for i in range(len(lists))], sizes, places) for column in columns.values()]


def _joined(parts: Sequence[Operation | None], sizes: Sequence[int], places: NDArray[np.int64]) -> Operation:
    first = next(index for index, part in enumerate(parts) if part is not None)
    template = parts[first]
    assert template is not None
    idle = _idle(_join(template, [template], [sizes[first]], np.zeros(1, dtype=np.int64)))
    joined: Operation = _join(template, [idle if part is None else part for part in parts], sizes, places)
    present = np.repeat([part is not None for part in parts], sizes)[places]
    values = {field.name: getattr(joined, field.name) for field in fields(Operation)}
    return Operation(**{**values, "count": joined.count * present})


def _idle(operation: Operation) -> Operation:
    """What stands where an operation is absent: its collective is among groups that any machine holds."""
    if not isinstance(operation.work, Collective):
        return operation
    one = np.ones_like(np.asarray(operation.work.group.size))
    return replace(operation, work=replace(operation.work, group=Group(one, one, one)))


def _join(template: Any, parts: Sequence[Any], sizes: Sequence[int], places: NDArray[np.int64]) -> Any:
    """Dataclasses field by field, arrays one after the other and into their places, the rest as in the template."""
    if is_dataclass(template):
        names = [field.name for field in fields(template)]
        values = {n: _join(getattr(template, n), [getattr(p, n) for p in parts], sizes, places) for n in names}
        return type(template)(**values)  # type: ignore[misc]
    if not isinstance(template, str) and any(np.ndim(part) for part in parts):
        return np.concatenate([np.broadcast_to(part, size) for part, size in zip(parts, sizes, strict=True)])[places]
    return template
