"""How long playing a step takes: CPU seconds, the engine's events and how they grow with the operations.

Run ``python reports/benchmarks/timeline.py``; it writes ``timeline.json`` beside itself.
"""

import statistics
import time
from typing import Any

import simpy

from flopcast.reports.benchmarks.result import write_result
from flopcast.simulator.catalogue import load_cluster, load_model
from flopcast.simulator.plan import Plan, placement
from flopcast.simulator.timeline import Disturbance, events, play, waterfall

REPEATS = 3


def plan(strategy: str, num_gpus: int, pp: int = 1, **fields: Any) -> Plan:
    """A plan on nodes of 8 GPUs."""
    return Plan(**{**placement(strategy, num_gpus, 8, pp=pp), **fields})


def measure(model: str, cluster: str, p: Plan, disturbance: Disturbance | None = None) -> dict[str, Any]:
    """Median seconds to play the step and sum it up, and to lay its events out as a DataFrame besides."""
    found_model, found_cluster = load_model(model), load_cluster(cluster)
    played, framed = [], []
    for _ in range(REPEATS):
        start = time.process_time()
        timeline = play(found_model, found_cluster, p, disturbance)
        waterfall(timeline)
        played.append(time.process_time() - start)
        frame = events(timeline)
        framed.append(time.process_time() - start)
    return {
        "model": model,
        "cluster": cluster,
        "strategy": p.strategy,
        "num_gpus": p.num_gpus,
        "pp": p.pp,
        "micro_batches": p.grad_accum,
        "rank_classes": len(timeline.ranks),
        "step_s": timeline.step_s,
        "closed_form_s": timeline.closed_form_s,
        "seconds": round(statistics.median(played), 4),
        "seconds_least": round(min(played), 4),
        "seconds_with_events": round(statistics.median(framed), 4),
        "engine_events": timeline.num_steps,
        "engine_events_per_s": round(timeline.num_steps / statistics.median(played)),
        "trace_events": len(frame),
    }


def main() -> None:
    """Measure the three cases and the growth, and write the result."""
    plamo = plan("zero3-node", 480, seq_len=4096, micro_batch=1, grad_accum=2)
    llama = {"seq_len": 8192, "micro_batch": 1, "attention": "cudnn", "sequence_parallel": True}
    cases = {
        "PLaMo-13B on 480 GPUs, all nodes alike (target 0.5 s)": measure("plamo-13b", "abci-a", plamo),
        "PLaMo-13B on 480 GPUs, 60 distinct nodes (target 5 s)": measure(
            "plamo-13b", "abci-a", plamo, Disturbance(jitter=0.02, seed=1)
        ),
        "LLaMA-3.1-405B on 16,384 GPUs, tp 8 x pp 16 x dp 128 (target 30 s)": measure(
            "llama-3.1-405b", "dgx-h100", plan("tp8", 16384, pp=16, grad_accum=16, **llama)
        ),
        "the same with one slow node": measure(
            "llama-3.1-405b", "dgx-h100", plan("tp8", 16384, pp=16, grad_accum=16, **llama), Disturbance({7: 0.8})
        ),
    }
    growth = [
        measure("llama-3.1-405b", "dgx-h100", plan("tp8", 16384, pp=16, grad_accum=m, **llama)) for m in (16, 64, 256)
    ]
    per_event = [row["seconds_with_events"] / row["trace_events"] for row in growth]
    result = {
        "what": "CPU seconds of one process on one core, median and least of the repeats",
        "repeats": REPEATS,
        "cases": cases,
        "growth with micro-batches": growth,
        "seconds per trace event, most over least": round(max(per_event) / min(per_event), 3),
    }
    write_result(__file__, result, simpy)


if __name__ == "__main__":
    main()
