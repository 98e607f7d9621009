"""The command that writes a capacity plan for people who never ran the tool."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from flopcast.cli.app import Flag, app
from flopcast.cli.output import print_json


@app.command
def report(
    model: str,
    /,
    *,
    cluster: str,
    gpus: int,
    output: Annotated[Path | None, Parameter(name=["-o", "--output"])] = None,
    format: Literal["html", "markdown"] = "html",
    figures: Path | None = None,
    tokens: float | None = None,
    tokens_per_gpu: int | None = None,
    seq_len: int | None = None,
    micro_batch: int | None = None,
    ep: int | None = None,
    recompute: str | None = None,
    gradient_bits: int = 32,
    attention: str | None = None,
    compiled: bool = False,
    strategies: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    convention: Literal["6n", "causal", "full"] = "causal",
    json: Flag = False,
) -> None:
    """Write a report: what to run, what it costs, how sure that is, and why.

    Parameters
    ----------
    model
        A catalogue name (plamo-13b) or the path of a Hugging Face config.json.
    cluster
        A catalogue name (abci-a) or the path of a TOML file; its [operation] table gives price, power, node_mtbf_hours.
    gpus
        GPUs of the job: within one node, or whole nodes.
    output
        The file to write; without it the document is printed.
    format
        html, one page that needs nothing else, or markdown.
    figures
        Also write every figure as SVG and PNG into this folder; Markdown links to them.
    tokens
        Token budget of the whole training; by default 20 per parameter.
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
    strategies
        ddp, zero1, zero2, zero3, zero3-node, hsdp, tp8 (any tpN); +q4 on zero3, zero3-node, hsdp: a 4-bit gather.
    convention
        What MFU and HFU count: 6n (no attention), causal (half the scores) or full.
    json
        Print the recommendation and every table as one JSON document; files are written all the same.

    """
    from flopcast.reports.document.study import study
    from flopcast.reports.document.write import Report, links_from, write_text
    from flopcast.simulator.catalogue import load_cluster, load_model
    from flopcast.simulator.compare import Request

    def say(words: str) -> None:
        print(f"flopcast: {words}", file=sys.stderr)

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
        strategies=[part for name in strategies for part in name.split(",") if part] if strategies else None,
        convention=convention,
    )
    typed = sys.argv[1:]
    command = f"flopcast {shlex.join(typed)}" if typed[:1] == ["report"] else ""
    found = Report(study(load_model(model), load_cluster(cluster), request, tokens, say), command)
    drawn = found.write_figures(figures) if figures else []
    if drawn:
        say(f"wrote {len(drawn)} figures to {figures}")
    document = None
    if output or not json:
        document = found.as_html() if format == "html" else found.as_markdown(links_from(output, drawn))
    if output and document:
        write_text(document, output, say)
    if json:
        print_json(found.as_json())
    elif output:
        print(found.recommendation.sentence)
    else:
        print(document, end="")
