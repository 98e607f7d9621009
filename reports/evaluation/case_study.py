"""What the PLaMo-13B report says in figures, beside what is forecast of it.

``python -m flopcast.reports.evaluation.case_study`` prints the tables as Markdown.
"""

from dataclasses import replace

import pandas as pd

from flopcast.reports.evaluation.tables import flop_efficiency, statements
from flopcast.reports.published_efficiency import PUBLISHED, Published, forecasts
from flopcast.simulator.catalogue import load_cluster, load_model
from flopcast.simulator.cost import Costs
from flopcast.simulator.forecast import Forecast, forecast
from flopcast.simulator.hardware import Hardware
from flopcast.simulator.operation import Collective
from flopcast.simulator.plan import Plan
from flopcast.simulator.traffic import layer_traffic

TOKENS_PER_GPU = 8192
# The report does not say whether activations are computed again; with it, the efficiency is nearest.
ASSUMED_PLAN = PUBLISHED[0].plan()


def efficiencies(convention: str = "causal") -> pd.DataFrame:
    """Table 3 of the report beside the forecast under each plan that its source leaves open.

    Columns: model, num_gpus, strategy, assumed, published, predicted (fractions), ratio (predicted over published).
    """
    table = flop_efficiency().set_index("model")["flop_efficiency"]

    def record(entry: Published) -> dict[str, object]:
        predicted = forecasts(entry)[convention].mfu
        published = float(table[entry.model])
        return {
            "model": entry.model,
            "num_gpus": entry.num_gpus,
            "strategy": entry.strategy,
            "assumed": entry.assumed,
            "published": published,
            "predicted": predicted,
            "ratio": predicted / published,
        }

    return pd.DataFrame.from_records([record(entry) for entry in PUBLISHED])


def figures() -> pd.DataFrame:
    """The report's statements in figures beside the forecast's.

    Columns: statement, published, predicted, unit, ratio (predicted over published).
    """
    table = statements().set_index("name")
    table["predicted"] = pd.Series(_predicted())
    table["ratio"] = table["predicted"] / table["published"]
    return table.reset_index(drop=True)[["statement", "published", "predicted", "unit", "ratio"]]


def _predicted() -> dict[str, float]:
    model = load_model("plamo-13b")
    tensor, in_node = (layer_traffic(model, name, tp, TOKENS_PER_GPU) for name, tp in (("tp8", 8), ("zero3-node", 1)))
    wide, narrow = _forecast(replace(ASSUMED_PLAN, strategy="zero3-node", gather_bits=16)), _forecast(ASSUMED_PLAN)
    (wide_bytes, wide_s), (narrow_bytes, narrow_s) = gathers(wide), gathers(narrow)
    eager = _forecast(replace(ASSUMED_PLAN, fused_kernels=False))
    mebi = 2**20
    return {
        "parameters": float(model.num_parameters),
        "layer_all_reduce_elements": tensor.elements / mebi,
        "layer_all_reduce_moved": tensor.moved_bytes / mebi,
        "layer_all_gather_elements": in_node.elements / mebi,
        "layer_all_gather_moved": in_node.moved_bytes / mebi,
        "quantised_gather_bytes": narrow_bytes / wide_bytes,
        "quantised_gather_seconds": narrow_s / wide_s,
        "kernels_seconds": 1 - float(narrow.step_s[0] / eager.step_s[0]),
    }


def _forecast(plan: Plan) -> Forecast:
    return forecast(load_model("plamo-13b"), load_cluster("abci-a"), plan)


def gathers(found: Forecast) -> tuple[float, float]:
    """Bytes and seconds of all parameter gathers of one plan's step, each by itself, one after the other."""
    costs = Costs(Hardware.of([found.cluster]), found.constants)
    moved = seconds = 0.0
    for operation in found.operations:
        if isinstance(operation.work, Collective) and operation.work.purpose == "gather":
            times = operation.times(found.plans.grad_accum)[0]
            moved += times * operation.work.tensor_bytes[0]
            seconds += times * costs.seconds(operation)[0]
    return float(moved), float(seconds)


def markdown(frame: pd.DataFrame) -> str:
    """A DataFrame as a Markdown table, figures to four digits."""
    lines = ["| " + " | ".join(frame.columns) + " |", "|" + "---|" * len(frame.columns)]
    for row in frame.itertuples(index=False):
        cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(figures()), markdown(efficiencies()), sep="\n\n")
