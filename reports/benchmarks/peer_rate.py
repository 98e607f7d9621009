"""How many plans per second another planner costs, timed in its own environment: prints one JSON document.

Run by ``search_rate.py`` with that environment's interpreter: ``python peer_rate.py calculon|llm-analysis SECONDS``.
Each is given LLaMA-65B's sizes on 2048 A100-80GB and plans drawn from its own space, and no logger to write to.
"""

import json
import logging
import random
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

NUM_GPUS, SEQUENCES, SEQ_LEN = 2048, 2048, 2048


def calculon(root: str) -> Callable[[], tuple[int, int]]:
    """The search of calculon over a random share of its space; returns (executions tried, executions legal)."""
    sys.path.insert(0, root)
    import calculon as package  # type: ignore[import-not-found]
    from calculon.llm import Llm  # type: ignore[import-not-found]
    from calculon.llm.optimal_execution import OptimalExecution  # type: ignore[import-not-found]
    from calculon.system import System  # type: ignore[import-not-found]

    # calculon's MLP has two matrices: feedforward is chosen so that they hold what LLaMA's three do.
    app = Llm.Application(
        {"name": "llama-65b", "seq_size": SEQ_LEN, "hidden": 8192, "feedforward": 33024, "attn_heads": 64,
         "attn_size": 128, "num_blocks": 80}
    )  # fmt: skip
    system = System(package.io.read_json_file(f"{root}/systems/a100_80g.json"))
    tasks = []
    for tp in Llm.get_all_tensor_parallelisms(NUM_GPUS, app.hidden, app.attn_heads):
        for pp in Llm.get_all_pipeline_parallelisms(NUM_GPUS, tp, app.num_blocks):
            dp = Llm.get_data_parallelism(NUM_GPUS, tp, pp)
            batch = OptimalExecution.get_batch_size(dp, SEQUENCES)
            for interleaving in Llm.get_valid_pipeline_interleavings(app.num_blocks, pp):
                kinds = product(("full", "attn_only", "none"), ("ar", "p2p_rs_ag", "rs_ag"))
                tasks += [(tp, pp, dp, interleaving, batch, recompute, dp > 1, kind) for recompute, kind in kinds]
    draw = random.Random(0)  # noqa: S311

    def run() -> tuple[int, int]:
        tp, pp, dp, interleaving, batch, recompute, sharded, kind = draw.choice(tasks)
        _, tried, legal, *_ = OptimalExecution.search(
            False, 1, False, NUM_GPUS, SEQUENCES, "float16", app, system, tp, pp, dp, interleaving, batch, recompute,
            sharded, kind, [True], False, True, True,
        )  # fmt: skip
        return tried, legal

    return run


def llm_analysis(_: str) -> Callable[[], tuple[int, int]]:
    """One call of llm-analysis' training analysis at a random plan."""
    from llm_analysis.analysis import (  # type: ignore[import-not-found]
        ActivationRecomputation,
        DSZeRO,
        LLMAnalysis,
        ParallelismConfig,
    )
    from llm_analysis.config import (  # type: ignore[import-not-found]
        ModelConfig,
        get_dtype_config_by_name,
        get_gpu_config_by_name,
    )

    model = ModelConfig(
        name="llama-65b", num_layers=80, n_head=64, hidden_dim=8192, vocab_size=32000, max_seq_len=SEQ_LEN,
        expansion_ratio=22016 / 8192 * 1.5,
    )  # fmt: skip
    gpu, dtype = get_gpu_config_by_name("a100-sxm-80gb"), get_dtype_config_by_name("w16a16e16")
    plans = list(_plans())
    draw = random.Random(0)  # noqa: S311
    recomputations, stages = list(ActivationRecomputation), list(DSZeRO)

    def run() -> tuple[int, int]:
        tp, pp, dp, micro_batch = draw.choice(plans)
        analysis = LLMAnalysis(model, gpu, dtype, ParallelismConfig(tp_size=tp, pp_size=pp, dp_size=dp), 180.0)
        try:
            analysis.training(
                batch_size_per_gpu=micro_batch,
                gradient_accumulation_steps=SEQUENCES // (dp * micro_batch),
                seq_len=SEQ_LEN,
                activation_recomputation=draw.choice(recomputations),
                ds_zero=draw.choice(stages),
            )
        except AssertionError:
            return 1, 0
        return 1, 1

    return run


def _plans() -> Iterator[tuple[int, int, int, int]]:
    for tp in (1, 2, 4, 8):
        for pp in (1, 2, 4, 8, 16):
            dp = NUM_GPUS // (tp * pp)
            for micro_batch in (1, 2, 4):
                if SEQUENCES % (dp * micro_batch) == 0:
                    yield tp, pp, dp, micro_batch


def main(peer: str, seconds: float, root: str) -> None:
    """Run the peer for that many CPU seconds, after a warm-up, and print what it did."""
    logging.disable(logging.CRITICAL)
    run = {"calculon": calculon, "llm-analysis": llm_analysis}[peer](root)
    run()
    tried = legal = 0
    started = time.process_time()
    while time.process_time() - started < seconds:
        one, good = run()
        tried, legal = tried + one, legal + good
    spent = time.process_time() - started
    result: dict[str, Any] = {
        "peer": peer,
        "tried": tried,
        "legal": legal,
        "cpu_s": spent,
        "plans_per_s": tried / spent,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")
