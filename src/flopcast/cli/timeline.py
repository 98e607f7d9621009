"""The command that plays one step."""

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from flopcast.cli.app import Flag, app
from flopcast.cli.output import PICTURES, check_place, print_json, show
from flopcast.errors import InputError


@app.command
def timeline(
    model: str,
    /,
    *,
    cluster: str,
    gpus: int,
    strategy: str | None = None,
    fix: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    tokens_per_gpu: int | None = None,
    seq_len: int | None = None,
    micro_batch: int | None = None,
    recompute: str | None = None,
    recompute_layers: int | None = None,
    ep: int | None = None,
    pp: int | None = None,
    virtual_pp: int | None = None,
    schedule: str | None = None,
    trace: Path | None = None,
    slow_node: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    slow_link: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    jitter: float = 0.0,
    seed: int = 0,
    compare: Path | None = None,
    figure: Path | None = None,
    json: Flag = False,
) -> None:
    """One training step, event by event: where the time goes from peak to achieved, and a trace of it.

    Parameters
    ----------
    model
        A catalogue name (plamo-13b) or the path of a Hugging Face config.json.
    cluster
        A catalogue name (abci-a) or the path of a TOML file.
    gpus
        GPUs of the job: within one node, or whole nodes.
    strategy
        ddp, zero1, zero2, zero3, zero3-node, hsdp or tpN; +q4 on zero3, zero3-node, hsdp.
    fix
        Instead: FIELD=VALUE as of flopcast search (strategy=zero2 tp=2 pp=8), whose fastest such plan is played.
    tokens_per_gpu
        Tokens per GPU and optimizer step; by default about 4 Mi tokens over all GPUs.
    seq_len
        Tokens per sequence; by default those of the model's pre-training, for a config.json its longest.
    micro_batch
        Sequences per rank and pass; by default the number that runs fastest.
    recompute
        none, selective or full; by default what runs fastest.
    recompute_layers
        With full, only so many layers of each model chunk (Megatron's --recompute-num-layers, method block); 0 is all.
    ep
        Ranks that share out the experts of a mixture of experts; by default the number that runs fastest.
    pp
        Pipeline stages; by default 1.
    virtual_pp
        Model chunks per stage, which are interleaved; by default 1.
    schedule
        1f1b, gpipe, interleaved or zero-bubble; by default 1f1b, or interleaved where stages have several chunks.
    trace
        Write a Chrome trace (.json.gz or .json) for Perfetto and Holistic Trace Analysis, one file per class of ranks.
    slow_node
        NODE=SHARE: a node that computes at that share of its speed, e.g. 7=0.8.
    slow_link
        NODE=SHARE: a node whose NICs send at that share of their rate.
    jitter
        Standard deviation of the logarithm of every layer's time on every node.
    seed
        Of the jitter.
    compare
        A trace that torch.profiler exported, set beside the simulated step.
    figure
        Draw the step and the waterfall (.png, .svg, .pdf).
    json
        Print one JSON document and nothing else.

    """
    from flopcast.simulator.catalogue import load_cluster, load_model
    from flopcast.simulator.compare import compare as choose
    from flopcast.simulator.fixed import parse_fixed
    from flopcast.simulator.plan import Plan
    from flopcast.simulator.request import Request
    from flopcast.simulator.search import SearchRequest, search
    from flopcast.simulator.timeline import Disturbance, play
    from flopcast.simulator.timeline.fold import parse_shares

    if figure is not None:
        check_place("--figure", figure, PICTURES)
    found_model, found_cluster = load_model(model), load_cluster(cluster)
    of_plan: dict[str, Any] = {"micro_batch": micro_batch, "ep": ep, "pp": pp, "virtual_pp": virtual_pp}
    of_plan |= {"schedule": schedule, "recompute": recompute, "recompute_layers": recompute_layers}
    given = {name: value for name, value in of_plan.items() if value is not None}
    if fix:
        _refuse_beside_fix(given | ({} if strategy is None else {"strategy": strategy}))
        batch = None if tokens_per_gpu is None else tokens_per_gpu * gpus
        search_request = SearchRequest([gpus], global_batch_tokens=batch, seq_len=seq_len, fixed=parse_fixed(fix))
        plan = Plan(**search(found_model, found_cluster, search_request).winner[1].plan)
    elif strategy is None:
        raise InputError("timeline: say which plan, with --strategy (zero3, tp8, ...) or --fix (tp=2 pp=8, ...)")
    else:
        if virtual_pp is not None and virtual_pp > 1:
            given.setdefault("schedule", "interleaved")
        request = Request(gpus, tokens_per_gpu=tokens_per_gpu, seq_len=seq_len, strategies=[strategy], **given)
        plan = Plan(**choose(found_model, found_cluster, request).rows[0].plan)
    disturbance = Disturbance(
        parse_shares("--slow-node", slow_node or []), parse_shares("--slow-link", slow_link or []), jitter, seed
    )
    step = play(found_model, found_cluster, plan, disturbance)
    comparison = None
    if compare is not None:
        from flopcast.reports.trace_comparison import compare_with_trace

        comparison = compare_with_trace(step, compare)
    if trace is not None:
        from flopcast.reports.trace import write_traces

        written = write_traces(step, trace)
        rest = f" and {len(written) - 1} more, one for each class of ranks" if len(written) > 1 else ""
        print(f"flopcast: wrote {written[0]}{rest}", file=sys.stderr)
    if figure is not None:
        from flopcast.reports.figures.canvas import save
        from flopcast.reports.figures.timeline import draw

        save(draw(step), figure)
    if json:
        from flopcast.reports.timeline import as_json

        print_json(as_json(step, comparison))
    else:
        from flopcast.reports.timeline import render

        show(render(step, comparison))


def _refuse_beside_fix(given: dict[str, Any]) -> None:
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        raise InputError(f"timeline --fix takes {option} as FIELD=VALUE, e.g. --fix {name}={value}")
