"""The command line. Each command imports what it needs when it runs, so that ``--help`` loads nothing heavy."""

import json
import sys
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from flopcast.errors import InputError

# Columns of a table written to a file or a pipe.
PIPE_WIDTH = 120

app = App(
    name="flopcast",
    help="Forecasts what a language-model training run costs on a GPU cluster, explains the forecast, and proves it.",
    version_flags=["--version"],
)


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
    recompute: str | None = None,
    gradient_bits: int = 32,
    attention: str | None = None,
    compiled: bool = False,
    fused_kernels: bool = True,
    strategies: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    convention: Literal["6n", "causal", "full"] = "causal",
    tokens: float | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
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
        Tokens per sequence; by default the model's context.
    micro_batch
        Sequences per rank and pass.
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

        _print_json(as_json(comparison))
    else:
        from flopcast.reports.comparison import print_to

        print_to(_console(), comparison, tokens)


@app.command
def accuracy(
    *,
    runs: str | None = None,
    collectives: str | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """The forecast against measured training steps, or collectives: the error of every source, beside a null model's.

    Parameters
    ----------
    runs
        A CSV with the columns of reports/measurements/training_runs.md; by default the published runs we hold.
    collectives
        Instead: a CSV with the columns of reports/measurements/collectives.md, or "published" for the rows we hold.
    json
        Print one JSON document and nothing else: every row, the sources, the whole.

    """
    from pathlib import Path

    if collectives:
        from flopcast.reports import collective_accuracy as by_size

        path = by_size.PUBLISHED_COLLECTIVES if collectives == "published" else Path(collectives)
        found = by_size.collective_accuracy(path)
        if json:
            _print_json(found.as_json())
        else:
            _console().print(by_size.render(found))
        return
    from flopcast.reports.accuracy import PUBLISHED_RUNS
    from flopcast.reports.accuracy import accuracy as measure

    result = measure(Path(runs) if runs else PUBLISHED_RUNS)
    if json:
        _print_json(result.as_json())
        return
    from flopcast.reports.accuracy_table import render

    console = _console()
    for part in render(result):
        console.print(part)


@app.command
def calibrate(
    *,
    global_: Annotated[bool, Parameter(name="--global", negative="")] = False,
    write: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Fit the forecast's constants again to all published runs, and say how good the fit is on runs it has not seen.

    Parameters
    ----------
    global_
        Fit the constants of simulator/constants.toml to the published runs together.
    write
        Store the constants, and the band from the runs left out.

    """
    if not global_:
        raise InputError("calibrate: say --global to fit the constants to the published runs")
    from flopcast.reports.accuracy import PUBLISHED_RUNS
    from flopcast.reports.accuracy_table import render_constants
    from flopcast.reports.global_fit import calibrate as fit_all

    result = fit_all(PUBLISHED_RUNS)
    console = _console()
    console.print(render_constants(result.before, result.after))
    console.print(
        f"mean over sources of the median |error|: {result.in_sample:.1%} on the runs fitted to, "
        f"{result.left_out:.1%} on runs of a framework left out"
    )
    if write:
        result.write()
        console.print("written: simulator/constants.toml, simulator/residuals.toml")


def _split(names: list[str] | None) -> list[str] | None:
    """``--strategies ddp,zero3`` and ``--strategies ddp zero3`` alike."""
    return [part for name in names for part in name.split(",") if part] if names else None


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=2, allow_nan=False))


def _console() -> Any:
    """A terminal at its own width; a file or a pipe at one that holds every table."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exit 0 done, 1 a check fell short, 2 bad input with one line on stderr."""
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except InputError as error:
        _fail(str(error))
    except CycloptsError as error:
        _fail(str(error))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except KeyboardInterrupt:
        print("flopcast: interrupted", file=sys.stderr)
        sys.exit(130)


def _fail(message: str) -> None:
    print("flopcast: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
