"""Commands of the planner: what to run, and what it will cost."""

from typing import Annotated, Literal

from cyclopts import Parameter

from flopcast.cli.app import Flag, app
from flopcast.cli.output import console, print_json
from flopcast.errors import InputError


@app.command
def compare(
    model: str,
    /,
    *,
    cluster: str,
    gpus: int,
    tokens_per_gpu: int | None = None,
    seq_len: int | None = None,
    micro_batch: int | None = None,
    ep: int | None = None,
    recompute: str | None = None,
    gradient_bits: int = 32,
    attention: str | None = None,
    compiled: bool = False,
    fused_kernels: bool = True,
    strategies: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    convention: Literal["6n", "causal", "full"] = "causal",
    tokens: float | None = None,
    json: Flag = False,
) -> None:
    """Sharding strategies side by side for one model on one cluster: time, efficiency, memory, traffic.

    What is left out is chosen for each strategy so that it fits and runs fastest, and the table says what was chosen.

    Parameters
    ----------
    model
        A catalogue name (plamo-13b) or the path of a Hugging Face config.json.
    cluster
        A catalogue name (abci-a) or the path of a TOML file.
    gpus
        GPUs of the job: within one node, or whole nodes.
    tokens_per_gpu
        Tokens per GPU and optimizer step; by default about 4 Mi tokens over all GPUs.
    seq_len
        Tokens per sequence; by default those of the model's pre-training, for a config.json its longest.
    micro_batch
        Sequences per rank and pass.
    ep
        Ranks that share out the experts of a mixture of experts; by default the number that runs fastest.
    recompute
        none, selective or full.
    gradient_bits
        Width at which gradients are reduced: 16 or 32.
    attention
        unfused, triton, flash1, flash2, flash3, flash4 or cudnn; by default what PyTorch runs on that GPU.
    compiled
        torch.compile fuses all pointwise work.
    fused_kernels
        Hand-written RoPE and RMSNorm kernels; --no-fused-kernels for eager PyTorch.
    strategies
        ddp, zero1, zero2, zero3, zero3-node, hsdp, tp8 (any tpN); +q4 on zero3, zero3-node, hsdp: a 4-bit gather.
    convention
        What MFU and HFU count: 6n (no attention), causal (half the scores) or full.
    tokens
        Token budget of the whole training, for the days; by default 20 per parameter.
    json
        Print one JSON document and nothing else.

    """
    from flopcast.simulator.catalogue import load_cluster, load_model
    from flopcast.simulator.compare import Request
    from flopcast.simulator.compare import compare as run

    if tokens is not None and not 0 < tokens < float("inf"):
        raise InputError(f"--tokens is {tokens}; it must be positive, e.g. 1.4e12")
    request = Request(
        num_gpus=gpus,
        tokens_per_gpu=tokens_per_gpu,
        seq_len=seq_len,
        micro_batch=micro_batch,
        ep=ep,
        recompute=recompute,  # type: ignore[arg-type]
        gradient_bits=gradient_bits,
        attention=attention,  # type: ignore[arg-type]
        compiled=compiled,
        fused_kernels=fused_kernels,
        strategies=_split(strategies),
        convention=convention,
    )
    comparison = run(load_model(model), load_cluster(cluster), request)
    if json:
        from flopcast.reports.comparison import as_json

        print_json(as_json(comparison))
    else:
        from flopcast.reports.comparison import print_to

        print_to(console(), comparison, tokens)


def _split(names: list[str] | None) -> list[str] | None:
    """``--strategies ddp,zero3`` and ``--strategies ddp zero3`` alike."""
    return [part for name in names for part in name.split(",") if part] if names else None
