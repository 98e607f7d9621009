"""A training run's settings: one TOML file, any field of which a flag overrides."""

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from flopcast.errors import InputError
from flopcast.simulator.specification.document import Table, Text, check_table, parse_toml
from flopcast.simulator.textfile import read_text

Count = Annotated[int, Field(gt=0)]
CountOrNone = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


class ModelTable(Table):
    """``[model]``: ``name`` is a catalogue name, or the path of a config.json or of a model's TOML file.

    ``weights``: a Hugging Face folder, of that model, whose weights a fresh run starts from; left out, they are drawn
    from the seed. ``qk_norm`` overrides whether queries and keys are normalised per head; left out, it is the model's
    own. ``rope_theta`` (base of RoPE) and ``norm_eps`` (of the norms) likewise, where no weights bring theirs.
    """

    name: Text = Field(examples=['"plamo-13b"'])
    weights: Text | None = None
    qk_norm: bool | None = None
    rope_theta: Positive | None = None
    norm_eps: Positive | None = None


class PlanTable(Table):
    """``[plan]``: how the ranks share the work.

    ``strategy``: as the planner names it (zero3-node, hsdp+q4, tp8, ...). ``gpus_per_node``: ranks of a node; by
    default as many as torchrun starts on one. ``seq_len``: tokens per sequence. ``micro_batch``: sequences per rank
    and pass. ``global_batch``: sequences per optimizer step over all ranks. ``pp``: pipeline stages.
    ``tp``: ranks that share every layer, under a strategy other than tpN too. ``sequence_parallel``: they share the
    activations between their exchanges as well.
    ``recompute_layers``: of full recomputation, the first layers of every stage that are computed again; 0: all.
    ``fused_kernels``: RMSNorm, RoPE, SwiGLU and the loss in hand-written kernels on a GPU, else op by op.
    ``compiled``: every layer, and the loss, go through torch.compile. ``dtype``: what matrices are multiplied in;
    master weights, gradients' sums and optimizer state are fp32.
    """

    strategy: Text = "zero3"
    gpus_per_node: Count | None = None
    seq_len: Count = Field(examples=["4096"])
    micro_batch: Count = 1
    global_batch: Count = Field(examples=["256"])
    tp: Count = 1
    pp: Count = 1
    sequence_parallel: bool = False
    recompute: Literal["none", "selective", "full"] = "none"
    recompute_layers: CountOrNone = 0
    fused_kernels: bool = True
    compiled: bool = False
    dtype: Literal["bf16", "fp32"] = "bf16"


class OptimizerTable(Table):
    """``[optimizer]``: AdamW, clipping by the global norm, a warm-up, a cosine down to ``final_share`` of the peak."""

    num_steps: Count = Field(examples=["1000"])
    learning_rate: Positive = 3e-4
    final_share: Share = 0.1
    warmup_steps: CountOrNone = 0
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    eps: Positive = 1e-8
    weight_decay: PositiveOrZero = 0.1
    max_gradient_norm: Positive = 1.0
    z_loss: PositiveOrZero = 0.0


class SourceTable(Table):
    """``[[data.sources]]``: text under ``path`` (a file or a folder) or in an installed ``package``, and its weight.

    ``field`` holds the text in .jsonl and .parquet. ``weight`` is a share of the sequences trained on.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)] = Field(examples=['"english"'])
    weight: Positive = Field(examples=["0.877"])
    path: Text | None = None
    package: Text | None = None
    field: Text = "text"


class DataTable(Table):
    """``[data]``: ``folder`` receives the tokenizer and the token files, made once and used again.

    ``tokenizer``: a SentencePiece model to use; left out, one of ``vocab_size`` pieces is trained on the sources.
    ``validation_sequences``: kept out of training, from the end of each source. ``verify``: check every token file
    against its checksum at the start, which reads all of it once.
    """

    folder: Text = Field(examples=['"data"'])
    sources: list[SourceTable] = Field(min_length=1)
    tokenizer: Text | None = None
    vocab_size: Count = 32000
    validation_sequences: CountOrNone = 0
    verify: bool = True


class CheckpointTable(Table):
    """``[checkpoint]``: one every ``every`` steps (0: only at the end and on SIGTERM); the last ``keep`` stay.

    ``export``: a folder that receives the weights as a Hugging Face checkpoint once the last step is done.
    """

    every: CountOrNone = 0
    keep: Count = 2
    export: Text | None = None


class EvaluationTable(Table):
    """``[evaluation]``: the loss on the validation sequences every ``every`` steps (0: never) and after the last."""

    every: CountOrNone = 0


class LogTable(Table):
    """``[log]``: ``gpu`` is the catalogue's GPU whose dense 16-bit peak MFU is a share of; left out, the one found.

    ``convention``: what MFU counts. ``tensorboard``: events beside the log. ``profile``: steps to trace.
    """

    gpu: Text | None = None
    convention: Literal["6n", "causal", "full"] = "causal"
    tensorboard: bool = False
    profile: list[Count] = Field(default_factory=list)


class Settings(Table):
    """The whole file. ``output`` receives log, checkpoints and traces.

    ``timeout_s``: how long a rank waits for the others in a step before it gives them up.
    """

    output: Text = Field(examples=['"runs/first"'])
    seed: CountOrNone = 0
    timeout_s: Positive = 600.0
    model: ModelTable
    plan: PlanTable
    optimizer: OptimizerTable
    data: DataTable
    checkpoint: CheckpointTable = CheckpointTable()
    evaluation: EvaluationTable = EvaluationTable()
    log: LogTable = LogTable()


def read_settings(path: Path, flags: list[str] | None = None) -> Settings:
    """The settings of a TOML file, fields overridden by flags such as ``--optimizer.num_steps 100``.

    Raises InputError, one line, that lists every fault with its path.
    """
    data = parse_toml(read_text(path, "a training run's settings (TOML)"), str(path))
    for name, value in parse_flags(flags or []):
        set_field(data, name, value)
    return settings(data, str(path))


def settings(data: dict[str, Any], origin: str) -> Settings:
    """The settings of a table; ``origin`` names it in errors."""
    checked = check_table(Settings, data, origin)
    names = [source.name for source in checked.data.sources]
    for source in checked.data.sources:
        if (source.path is None) == (source.package is None):
            raise InputError(f"{origin}: data.sources '{source.name}' needs a path or a package, and not both")
        if names.count(source.name) > 1:
            raise InputError(f"{origin}: two data.sources are named '{source.name}'; give each a name of its own")
    if checked.model.weights and not checked.data.tokenizer:
        raise InputError(f"{origin}: model.weights needs data.tokenizer; name the tokenizer they were trained with")
    for constant in ("rope_theta", "norm_eps"):
        if checked.model.weights and getattr(checked.model, constant) is not None:
            raise InputError(f"{origin}: model.{constant} is what model.weights say it is; leave it out")
    if checked.evaluation.every and not checked.data.validation_sequences:
        raise InputError(f"{origin}: evaluation.every needs data.validation_sequences; set it, such as 64")
    return checked


def parse_flags(flags: list[str]) -> list[tuple[str, Any]]:
    """``["--plan.strategy", "ddp", "--seed=1"]`` -> ``[("plan.strategy", "ddp"), ("seed", 1)]``.

    A value is read as TOML (1e-3, true, [5, 6]); what is not TOML is text. Dashes and underscores are alike.
    """
    parsed = []
    rest = iter(flags)
    for flag in rest:
        if not flag.startswith("--") or len(flag) < 3:
            raise InputError(f"'{flag}' is not a flag; write --section.field value, such as --plan.strategy ddp")
        name, equals, text = flag[2:].partition("=")
        if not equals:
            following = next(rest, None)
            if following is None:
                raise InputError(f"{flag} has no value; write {flag} value")
            text = following
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except ValueError:
            value = text
        parsed.append((name.replace("-", "_"), value))
    return parsed


def set_field(data: dict[str, Any], name: str, value: Any) -> None:
    """Put a value into nested tables under its dotted name. Raises InputError where a table's place is taken."""
    *sections, field = name.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise InputError(f"--{name}: '{section}' is not a table; write the field in the file instead")
    data[field] = value


def to_toml(table: dict[str, Any]) -> str:
    """A table as a TOML document, a line per key, tables in it inline; None is left out."""
    return "".join(f"{name} = {_inline(value)}\n" for name, value in table.items() if value is not None)


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_inline(item)}" for name, item in value.items() if item is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    # JSON's text and truth values are TOML's; Python writes numbers as TOML does.
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else repr(value)
