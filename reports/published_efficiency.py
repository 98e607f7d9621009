"""The three published FLOP efficiencies of the PLaMo-13B report's table, beside the forecast under each convention.

``python -m flopcast.reports.published_efficiency`` prints the table of docs/published-efficiency.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from flopcast.reports.evaluation.tables import published_efficiency
from flopcast.simulator.catalogue import load_cluster, load_model
from flopcast.simulator.conventions import CONVENTIONS
from flopcast.simulator.forecast import Row, forecast
from flopcast.simulator.plan import Plan, placement


@dataclass(frozen=True)
class Published:
    """A training whose efficiency is published, and a plan that its source states or leaves open.

    ``assumed`` says what of the plan is not published.
    """

    model: str
    cluster: str
    num_gpus: int
    strategy: str
    assumed: str
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def efficiency(self) -> float:
        """As published: a share of 312 TFLOP/s."""
        return published_efficiency(self.model)

    def plan(self) -> Plan:
        """The plan, placed on the cluster's nodes."""
        per_node = load_cluster(self.cluster).gpus_per_node
        pp = self.fields.get("pp", 1)
        layout = placement(self.strategy, self.num_gpus, per_node, pp=pp)
        return Plan(**{**layout, **self.fields})


_PLAMO: dict[str, Any] = {"seq_len": 4096, "gradient_bits": 16}
_LLAMA: dict[str, Any] = {"seq_len": 2048, "gradient_bits": 16, "attention": "flash1"}
PUBLISHED = (
    Published(
        *("plamo-13b", "abci-a", 480, "zero3-node+q4"),
        assumed="full recompute, micro-batch 2, 8192 tokens per GPU",
        fields={**_PLAMO, "micro_batch": 2, "recompute": "full"},
    ),
    Published(
        *("plamo-13b", "abci-a", 480, "zero3-node+q4"),
        assumed="no recompute, micro-batch 1, two passes",
        fields={**_PLAMO, "micro_batch": 1, "grad_accum": 2},
    ),
    Published(
        *("gpt-neox-20b", "eleutherai-neox", 96, "tp2"),
        assumed="full recompute, fp16 gradients (tp 2, pp 4, micro-batch 4 x 32 are published)",
        fields={
            "seq_len": 2048,
            "pp": 4,
            "micro_batch": 4,
            "grad_accum": 32,
            "recompute": "full",
            "attention": "unfused",
            "gradient_bits": 16,
            "prefetch": 0,
            "bucket_bytes": 10**9,
        },
    ),
    Published(
        *("llama-65b", "dgx-a100-80gb", 2048, "tp8"),
        assumed="tensor and sequence parallel 8, selective recompute, micro-batch 2 x 4, 8 x 200 Gbit/s nodes",
        fields={**_LLAMA, "sequence_parallel": True, "micro_batch": 2, "grad_accum": 4, "recompute": "selective"},
    ),
    Published(
        *("llama-65b", "dgx-a100-80gb", 2048, "zero3"),
        assumed="ZeRO-3 over all, full recompute, one sequence, 8 x 200 Gbit/s nodes",
        fields={**_LLAMA, "recompute": "full"},
    ),
    Published(
        *("llama-65b", "dgx-a100-80gb", 2048, "zero3-node"),
        assumed="ZeRO-3 in the node, no recompute, one sequence, 8 x 200 Gbit/s nodes",
        fields=_LLAMA,
    ),
)


def forecasts(entry: Published) -> dict[str, Row]:
    """The plan's forecast under each FLOP convention."""
    model, cluster, plan = load_model(entry.model), load_cluster(entry.cluster), entry.plan()
    return {name: forecast(model, cluster, plan, name).rows()[0] for name in CONVENTIONS}


def table() -> Iterator[str]:
    """Lines of a Markdown table: model efficiency by convention, hardware efficiency, and the published figure."""
    headings = ("model, GPUs", "strategy", "plan assumed", "step, s")
    readings = ("MFU 6N", "MFU causal", "MFU full", "HFU causal", "published")
    yield "| " + " | ".join(headings + readings) + " |"
    yield "|" + "---|" * len(headings + readings)
    for entry in PUBLISHED:
        rows = forecasts(entry)
        any_row = rows["causal"]
        efficiencies = [rows[name].mfu for name in ("6n", "causal", "full")] + [any_row.hfu]
        yield (
            f"| {entry.model}, {entry.num_gpus} | {entry.strategy} | {entry.assumed} | {any_row.step_s:.2f} "
            f"({any_row.low_s:.2f}-{any_row.high_s:.2f}) | "
            + " | ".join(f"{100 * value:.1f}" for value in efficiencies)
            + f" | **{100 * entry.efficiency:.1f}** |"
        )


if __name__ == "__main__":
    print("\n".join(table()))
