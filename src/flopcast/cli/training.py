"""Commands that run PyTorch: train a model, and hold the forecast against the engine that would train it."""

import sys
from typing import Annotated

from cyclopts import Parameter

from flopcast.cli.app import Flag, app
from flopcast.cli.output import print_json


@app.command
def verify(
    model: str,
    /,
    *,
    gpus: int,
    strategy: str,
    gpus_per_node: int = 8,
    micro_batches: int = 1,
    seq_len: int | None = None,
    tp: int = 1,
    pp: int = 1,
    recompute_layers: int = 0,
    sequence_parallel: Annotated[bool, Parameter(negative="")] = False,
    json: Flag = False,
) -> None:
    """One optimizer step of PyTorch's own engine on fake ranks beside the forecast: every byte, and peak memory.

    Needs PyTorch (pip install '.[train]') and no GPU. Exit code 1 where a byte differs or memory is off by more
    than 5 %.

    Parameters
    ----------
    model
        A catalogue name (plamo-13b) or the path of a Hugging Face config.json.
    gpus
        Fake ranks: within one node, or whole nodes.
    strategy
        ddp, zero1, zero2, zero3, zero3-node, hsdp, tp8 (any tpN); +q4 on zero3, zero3-node, hsdp: a 4-bit gather.
    gpus_per_node
        Ranks that share a node.
    micro_batches
        Micro-batches of one sequence per optimizer step.
    seq_len
        Tokens per sequence; by default the model's context.
    tp
        Tensor-parallel ranks under a strategy other than tpN.
    pp
        Stages of a 1F1B pipeline, under ddp, zero1 or tpN; its first, second and last stage are traced.
    recompute_layers
        The first layers of every stage that are computed again in backward; 0 is all.
    sequence_parallel
        Split the activations between tensor-parallel exchanges over those ranks.
    json
        Print one JSON document and nothing else.

    """
    from flopcast.simulator.catalogue import load_model
    from flopcast.trainer.installed import require_torch

    require_torch()
    from flopcast.trainer.verify import verify as run

    found = run(
        load_model(model),
        gpus,
        strategy,
        gpus_per_node=gpus_per_node,
        micro_batches=micro_batches,
        seq_len=seq_len,
        tp=tp,
        sequence_parallel=sequence_parallel,
        pp=pp,
        recompute_layers=recompute_layers,
    )
    if json:
        print_json(found.as_json())
    else:
        print(found.as_text())
    if not found.agrees:
        sys.exit(1)


@app.command
def train(config: str, /, *settings: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """Train a model as a TOML file says; under torchrun, on many ranks.

    torchrun --nproc-per-node 8 -m flopcast.trainer CONFIG.toml does the same.

    Parameters
    ----------
    config
        The settings: see docs/train.md for every field.
    settings
        Fields to change, by name: --optimizer.num_steps 2000.

    """
    from flopcast.trainer.installed import require_torch

    require_torch()
    from flopcast.trainer.__main__ import main as run

    sys.exit(run([config, *settings]))
