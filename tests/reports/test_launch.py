"""What programs are told to run a plan: read back, it is the plan."""

import json
import math
import re
import shlex
from dataclasses import replace
from typing import Any

import pytest
from builders import H100, cluster, small_model

from flopcast import InputError, load_model
from flopcast.reports.launch import Launch, launches, sharding
from flopcast.simulator.model import Model
from flopcast.simulator.placement import layers_of_chunks
from flopcast.simulator.plan import Plan, placement
from flopcast.trainer.engine.check import check_plan
from flopcast.trainer.settings import parse_flags, set_field, settings
from flopcast.trainer.workload import make_plan

MODEL = small_model(hidden=1024, num_heads=16, num_kv_heads=16, num_layers=16)
MACHINE = cluster(H100)
DATA = {"folder": "data", "sources": [{"name": "text", "weight": 1.0, "path": "text"}]}


def plan(strategy: str, num_gpus: int = 64, **fields: Any) -> Plan:
    where = placement(strategy, num_gpus, 8, fields.get("tp", 1), fields.get("pp", 1))
    return Plan(**{**where, "seq_len": 2048, "micro_batch": 2, "grad_accum": 8, **fields})  # type: ignore[arg-type]


PLANS = [
    *(plan(name) for name in ("ddp", "zero1", "zero2", "zero3", "zero3+q4", "zero3-node", "zero3-node+q4", "hsdp32")),
    plan("tp8", sequence_parallel=True, recompute="full"),
    plan("zero3", tp=4, sequence_parallel=True, recompute="selective"),
    plan("zero3-node", tp=2),
    plan("zero3", tp=2, compiled=True),
    plan("zero1", tp=2, pp=4),
    plan("zero1", pp=4, schedule="gpipe"),
    plan("zero1", tp=2, pp=4, virtual_pp=2, schedule="interleaved", sequence_parallel=True, overlap_tensor=True),
    plan("zero1", pp=4, schedule="zero-bubble"),
    plan("zero3", pp=2),
    plan("zero3", cp=4, gradient_bits=16),
    plan("zero1", precision="fp8", overlap_update=False),
    plan("hsdp", num_gpus=8, compiled=True),
    plan("zero3", recompute="full", recompute_layers=5),
]


def told(software: str, asked: Plan) -> Launch:
    (found,) = [launch for launch in launches(MODEL, MACHINE, asked) if launch.software == software]
    assert found.options or found.note.startswith("lacks ")
    return found


@pytest.mark.parametrize("asked", PLANS, ids=str)
def test_the_trainer_reads_its_flags_as_the_plan_or_refuses_it(asked: Plan) -> None:
    options = told("flopcast's trainer", asked).options
    if not options:
        # what the engine could run and the trainer's settings have no field for
        if asked.gradient_bits == 32 and asked.schedule != "gpipe":
            with pytest.raises(InputError):
                check_plan(MODEL, asked, asked.num_gpus)
        return
    launcher, words = options.split(" run.toml ")
    data: dict[str, Any] = {"output": "x", "data": DATA, "optimizer": {"num_steps": 1}, "model": {"name": "small"}}
    for field, value in parse_flags(shlex.split(words)):
        set_field(data, field, value)
    read = make_plan(settings(data, "flags").plan, asked.num_gpus, 8)
    check_plan(MODEL, read, asked.num_gpus)
    assert read == asked
    assert "--nproc-per-node 8" in launcher
    assert ("--nnodes 8 " in launcher) == (asked.num_gpus == 64)


@pytest.mark.parametrize("asked", PLANS, ids=str)
def test_megatron_is_told_every_degree_and_the_batch(asked: Plan) -> None:
    options = told("Megatron-LM", asked).options
    if not options:
        assert asked.gather_bits == 4 or asked.pp > 1
        return
    words = dict(re.findall(r"--([a-z0-9-]+)(?: (?!--)(\S+))?", options))
    degrees = [int(words.get(f"{name}-parallel-size", 1)) for name in ("tensor-model", "context", "pipeline-model")]
    assert degrees == [asked.tp, asked.cp, asked.pp]
    # Megatron's micro-batches per step: global batch / (micro-batch x data parallel)
    data_parallel = asked.num_gpus // math.prod(degrees)
    passes = int(words["global-batch-size"]) // (int(words["micro-batch-size"]) * data_parallel)
    assert passes == asked.grad_accum
    assert int(words.get("num-virtual-stages-per-pipeline-rank", 1)) == asked.virtual_pp
    assert ("sequence-parallel" in words) == asked.sequence_parallel
    assert ("fp8-format" in words) == (asked.precision == "fp8")
    assert ("grad-reduce-in-bf16" in words) == (asked.gradient_bits == 16)
    assert words.get("recompute-granularity", "none") == asked.recompute
    assert (words.get("recompute-method") == "block") == (asked.recompute_layers > 0)
    assert int(words.get("recompute-num-layers", 0)) == (asked.recompute_layers or int(asked.recompute == "full"))
    assert ("use-distributed-optimizer" in words) == (sharding(asked) == "zero1")
    # one group of tensor-parallel ranks and one of FSDP want different queues (arguments.py asserts the first)
    alone = max(asked.tp, asked.cp) > 1 and "use-megatron-fsdp" not in words
    assert options.startswith("CUDA_DEVICE_MAX_CONNECTIONS=1") == alone


def chunks_of_layout(layout: str) -> list[str]:
    """Megatron's pipeline_parallel_layer_layout.py: what is in parentheses is repeated, then single letters."""
    for pattern in (r"\(([^)]+)\)\*(\d+)", r"(.)\*(\d+)"):
        layout = re.sub(pattern, lambda found: found[1] * int(found[2]), layout)
    return layout.split("|")


@pytest.mark.parametrize(
    ("num_layers", "pp", "virtual_pp", "words"),
    [
        (16, 4, 2, "--pipeline-model-parallel-size 4 --num-virtual-stages-per-pipeline-rank 2 "),
        (126, 16, 1, "--account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split --"),
        (126, 16, 8, "--account-for-loss-in-pipeline-split --num-virtual-stages-per-pipeline-rank 8 "),
        (61, 16, 1, "'Et*4|(t*4|)*12(t*3|)*2t*3L'"),
        (61, 8, 4, ""),
        (14, 8, 1, "--account-for"),
        (22, 4, 4, ""),
    ],
)
def test_stages_are_told_to_megatron_and_torchtitan_as_they_are_forecast(
    num_layers: int, pp: int, virtual_pp: int, words: str
) -> None:
    model, schedule = small_model(num_layers=num_layers), "interleaved" if virtual_pp > 1 else "1f1b"
    asked = plan("ddp", num_gpus=8 * pp, pp=pp, virtual_pp=virtual_pp, schedule=schedule, grad_accum=pp)
    _, megatron, _, torchtitan = (launch.options for launch in launches(model, MACHINE, asked))
    chunks = [len(layers) for layers in layers_of_chunks(num_layers, pp, virtual_pp, counts_ends=True)]
    assert words in megatron
    if (layout := re.search(r"-layout '([^']+)'", megatron)) is not None:
        first, *between, last = chunks_of_layout(layout[1])
        assert (first[0], last[-1]) == ("E", "L")
        assert [len(chunk) for chunk in (first[1:], *between, last[:-1])] == chunks
        assert "--num-virtual" not in megatron
    # torchtitan's _generate_llm_fqn_per_model_part, with the weights and chunks it is told, or by default.
    weight = 0 if "_less_layers=0" in torchtitan else 1
    per_stage = re.search(r"layers_per_stage=(\d+)", torchtitan)
    number = -(-(num_layers + 2 * weight) // int(per_stage[1])) if per_stage else pp
    each, more = divmod(num_layers + 2 * weight, number)
    dealt = [each + (stage < more) for stage in range(number)]
    dealt[0], dealt[-1] = dealt[0] - weight, dealt[-1] - weight
    if torchtitan:
        assert dealt == chunks


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ("zero2", "--data-parallel-sharding-strategy optim_grads "),
        ("zero3", "--data-parallel-sharding-strategy optim_grads_params "),
        ("hsdp32", "--num-distributed-optimizer-instances 2 --overlap"),
        ("zero3-node", "--num-distributed-optimizer-instances 8 --outer-dp-sharding-strategy optim "),
    ],
)
def test_megatrons_fsdp_shards_what_the_strategy_does(strategy: str, words: str) -> None:
    assert words in told("Megatron-LM", plan(strategy)).options


def test_a_mixtures_exchange_is_told_to_megatron() -> None:
    model = load_model("mixtral-8x7b")
    asked = plan("zero1", tp=2, ep=8, whole_experts=True, sequence_parallel=True, dispatcher="deepep")
    trainer, megatron, deepspeed, torchtitan = launches(model, MACHINE, asked)
    assert trainer.note == "lacks layers of that kind"
    assert "--expert-model-parallel-size 8 --expert-tensor-parallel-size 1 --moe-token-dispatcher-type flex" in (
        megatron.options
    )
    assert "more than data parallelism" in deepspeed.note
    assert "an optimizer sharded alone" in torchtitan.note
    overlapped = replace(asked, dispatcher="alltoall", overlap_expert=True)
    words = launches(model, MACHINE, overlapped)[1].options
    assert "--moe-token-dispatcher-type alltoall --overlap-moe-expert-parallel-comm" in words


def test_cuda_graphs_are_told_to_whom_has_them() -> None:
    """Of the versions read: Megatron-LM captures layers or all passes, torchtitan all unless it is told not to."""

    def of(graphs: Any, model: Model = MODEL, strategy: str = "ddp", **fields: Any) -> dict[str, Launch]:
        asked = plan(strategy, cuda_graphs=graphs, **fields)
        return {launch.software: launch for launch in launches(model, MACHINE, asked)}

    none, partial, full = (of(graphs) for graphs in ("none", "partial", "full"))
    assert "cuda-graph" not in none["Megatron-LM"].options
    assert "--cuda-graph-impl transformer_engine --cuda-graph-modules attn mlp" in partial["Megatron-LM"].options
    assert "--cuda-graph-impl full_iteration --no-check-for-nan-in-loss-and-grad" in full["Megatron-LM"].options
    for name, modules in (
        ("mixtral-8x7b", "attn moe_router moe_preprocess"),
        ("deepseek-v3", "attn mlp moe_router moe_preprocess"),
        ("plamo-2-1b", "attn mamba mlp"),
    ):
        options = of("partial", load_model(name))["Megatron-LM"].options
        assert options.endswith(f"--cuda-graph-modules {modules}"), name
    replayed = of("full", load_model("mixtral-8x7b"), ep=8, dispatcher="deepep")["Megatron-LM"].options
    assert "--moe-flex-dispatcher-backend hybridep" in replayed
    assert "--moe-expert-rank-capacity-factor 1.5 --moe-paged-stash" in replayed
    assert "CUDA graphs of its FSDP" in of("full", strategy="zero3")["Megatron-LM"].note
    assert "disable_cuda_graphs=True" in none["torchtitan"].options
    assert "disable_cuda_graphs" not in full["torchtitan"].options
    assert partial["torchtitan"].note == "lacks CUDA graphs of single layers"
    for software in ("flopcast's trainer", "DeepSpeed"):
        assert none[software].options
        assert "CUDA graphs" in full[software].note


@pytest.mark.parametrize("asked", PLANS, ids=str)
def test_deepspeeds_three_batch_sizes_agree(asked: Plan) -> None:
    options = told("DeepSpeed", asked).options
    if not options:
        assert max(asked.tp, asked.cp, asked.pp) > 1 or asked.gather_bits == 4 or asked.precision == "fp8"
        return
    found = json.loads(options)
    once = found["train_micro_batch_size_per_gpu"] * found["gradient_accumulation_steps"]
    assert found["train_batch_size"] == once * asked.num_gpus
    zero = {"ddp": 0, "zero1": 1, "zero2": 2}.get(asked.strategy, 3)
    assert found["zero_optimization"]["stage"] == zero
    groups = {"zero3-node": {"zero_hpz_partition_size": 8}, "hsdp": {"mics_shard_size": asked.parameter_shard}}
    assert {**found["zero_optimization"], "stage": 3} == {"stage": 3, **groups.get(sharding(asked), {})}


@pytest.mark.parametrize("asked", PLANS, ids=str)
def test_torchtitans_degrees_fill_the_job(asked: Plan) -> None:
    options = told("torchtitan", asked).options
    if not options:
        assert (
            sharding(asked) in ("zero1", "zero3-node")
            or asked.recompute_layers
            or 16 in (asked.gradient_bits, asked.gather_bits * 4)
        )
        return
    degrees = [int(number) for number in re.findall(r"_degree=(\d+)", options)]
    assert math.prod(degrees) == asked.num_gpus
    assert f"num_tokens_per_train_step={asked.global_batch_sequences * asked.seq_len}" in options
    assert ("FullAC" in options, "SelectiveAC" in options) == (
        asked.recompute == "full",
        asked.recompute == "selective",
    )


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "hsdp2", "hsdp4", "hsdp16"])
@pytest.mark.parametrize("cp", [1, 2, 4, 8])
def test_torchtitans_shards_count_the_ranks_of_a_sequence_as_well(strategy: str, cp: int) -> None:
    asked = plan(strategy, cp=cp)
    found = told("torchtitan", asked)
    if asked.optimizer_shard < cp:
        assert found.note == "lacks parameters that are not sharded over a sequence's ranks"
        return
    degrees = {name: int(n) for name, n in re.findall(r"(\w+)_degree=(\d+)", found.options)}
    assert math.prod(degrees.values()) == 64
    assert degrees["data_parallel_shard"] * cp == asked.optimizer_shard


def test_whatever_it_is_called_the_shards_say_what_it_is() -> None:
    assert sharding(plan("hsdp64")) == "zero3"
    assert sharding(plan("zero3", num_gpus=1)) == "ddp"
    assert sharding(plan("zero3-node", num_gpus=8)) == "zero3"
    assert sharding(replace(plan("zero1"), optimizer_shard=8)) == "other"
