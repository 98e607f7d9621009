"""What each mechanism of the forecast is worth: the error on published runs when it is left out.

``python -m flopcast.reports.ablation`` refits all other constants without the mechanism, so that nothing hides behind
constants which the mechanism itself has set, and prints a table in Markdown.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from flopcast.reports.global_fit import RunSet, fit, leave_one_out, mean_of_medians
from flopcast.reports.runs import PUBLISHED_RUNS, Run, read_runs
from flopcast.simulator.plan import Plan


@dataclass(frozen=True)
class Ablation:
    """A mechanism left out: constants held where it does nothing, and plans changed as if nobody knew of it."""

    mechanism: str
    held: Mapping[str, float] = field(default_factory=dict)
    changed: Callable[[Plan], Plan] = lambda plan: plan


def _with(**fields: object) -> Callable[[Plan], Plan]:
    return lambda plan: replace(plan, **fields)  # type: ignore[arg-type]


ABLATIONS = (
    Ablation("none"),
    Ablation("recomputation", changed=_with(recompute="none")),
    Ablation("the attention kernel: all as FlashAttention-2", changed=_with(attention="flash2")),
    Ablation("attention slower over short sequences", {"attention_half_length": 0.0}),
    Ablation("memory-bound work of fused kernels", {"pointwise_scale": 1e-3}),
    Ablation("fused or eager norms, rotation and activation", changed=_with(fused_kernels=True, compiled=True)),
    Ablation("what the software's loss, copies and sums move", changed=_with(engine="fsdp2")),
    Ablation("losses of small matrix products", {"gemm_half_rows": 0.0, "gemm_half_depth": 0.0}),
    Ablation("host time per kernel", {"launch_s": 0.0}),
    Ablation("what a kernel takes beside its work", {"kernel_s": 0.0}),
    Ablation("host time per collective", {"collective_launch_s": 0.0}),
    Ablation("overlap of data-parallel communication", changed=_with(prefetch=0)),
    Ablation("what overlap costs the computation", {"nvlink_leak": 0.0, "network_leak": 0.0, "network_share": 1.0}),
    Ablation("slower collectives on more than four nodes", {"network_congestion": 0.0}),
    Ablation("updates that wait for the gather", changed=_with(overlap_update=True)),
    Ablation("updates slice by slice", changed=_with(sliced_update=False)),
    Ablation("tensor parallelism in chunks", changed=_with(overlap_tensor=False)),
    Ablation("fp8", changed=_with(precision="bf16")),
    Ablation("buckets", changed=_with(bucket_bytes=2**31)),
    Ablation("time per step", {"step_overhead_s": 0.0}),
)


@dataclass(frozen=True)
class Outcome:
    """Mean over sources of the median |error|: on the runs refitted to, and on those of a framework left out."""

    mechanism: str
    in_fit: float
    left_out: float


def without(ablation: Ablation, runs: list[Run]) -> Outcome:
    """Leave the mechanism out, refit the rest, and measure."""
    changed = [replace(run, plan=ablation.changed(run.plan)) for run in runs if run.plan is not None]
    kept = RunSet.of(changed)
    fitted = kept.log_errors(fit(kept, held=ablation.held))
    left_out = leave_one_out(kept, kept.frameworks, held=ablation.held)
    return Outcome(
        ablation.mechanism, mean_of_medians(kept.sources, fitted), mean_of_medians(kept.sources, np.asarray(left_out))
    )


def table(outcomes: list[Outcome]) -> list[str]:
    """Rows of Markdown, the whole forecast first, then what costs most to leave out."""
    whole, *rest = outcomes
    rows = ["| left out | error in the fit, % | framework left out, % |", "|---|---|---|"]
    for outcome in [whole, *sorted(rest, key=lambda o: -o.left_out)]:
        name = "nothing: the forecast" if outcome is whole else outcome.mechanism
        rows.append(f"| {name} | {100 * outcome.in_fit:.1f} | {100 * outcome.left_out:.1f} |")
    return rows


def main() -> None:
    """Print the table; with --runs, of another table of runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=PUBLISHED_RUNS)
    runs = read_runs(parser.parse_args().runs)
    print("\n".join(table([without(ablation, runs) for ablation in ABLATIONS])))


if __name__ == "__main__":
    main()
