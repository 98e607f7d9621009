import dataclasses
import gzip
import hashlib
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import run_settings, write_config

from flopcast.errors import InputError
from flopcast.simulator.blocks.transformer import TransformerBlock
from flopcast.simulator.conventions import model_flop_per_token
from flopcast.simulator.model import Model
from flopcast.trainer.__main__ import main
from flopcast.trainer.checkpoint import complete_steps
from flopcast.trainer.data.__main__ import main as prepare_data
from flopcast.trainer.data.batches import Dataset
from flopcast.trainer.data.tokenizer import train as train_tokenizer
from flopcast.trainer.engine import Engine
from flopcast.trainer.files import locked
from flopcast.trainer.launch import Ranks
from flopcast.trainer.log import records, steps
from flopcast.trainer.loop import Run, train
from flopcast.trainer.processes import TrainingStoppedError, process_group
from flopcast.trainer.settings import ModelTable
from flopcast.trainer.workload import make_model

TIMEOUT_S = 120.0


def losses(folder: Path) -> dict[int, float]:
    return {number: record["loss"] for number, record in steps(folder / "run").items()}


def at_step(number: int, action: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something in the middle of that step of every run, while its batch is read."""
    original, count = Dataset.next_step, [0]

    def next_step(self: Dataset, *arguments: Any) -> Any:
        count[0] += 1
        if count[0] == number:
            action()
        return original(self, *arguments)

    monkeypatch.setattr(Dataset, "next_step", next_step)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps on one rank, undisturbed, with everything that can be asked for."""
    folder = tmp_path_factory.mktemp("whole")
    extras = {"checkpoint__every": 2, "evaluation__every": 4, "data__validation_sequences": 6, "log__profile": [2]}
    assert train(run_settings(folder, log__gpu="a100-40gb", log__convention="full", **extras)) == 6
    return folder


def start_like(whole: Path, folder: Path) -> Path:
    """A folder with the same prepared data, so that only training remains."""
    shutil.copytree(whole / "data", folder / "data")
    for path in (folder / "data").glob("*/index.json"):
        index = json.loads(path.read_text())
        index["origin"]["path"] = index["origin"]["path"].replace(str(whole), str(folder))
        path.write_text(json.dumps(index))
    return folder


def test_the_log_says_what_each_step_took(whole: Path) -> None:
    found = steps(whole / "run")
    assert list(found) == [1, 2, 3, 4, 5, 6]
    settings = run_settings(whole)
    flop = model_flop_per_token(make_model(settings.model), 32, "full").total * 4 * 32
    for record in found.values():
        assert record["tokens_per_s"] == pytest.approx(4 * 32 / record["step_s"], rel=1e-3)
        assert record["mfu"] == pytest.approx(flop / record["step_s"] / 312e12, rel=1e-3)
        assert record["memory_bytes"] > 50e6
        assert record["gradient_norm"] > 0
    assert found[1]["learning_rate"] == 2.5e-3
    assert found[1]["loss"] == pytest.approx(math.log(512), abs=0.15)  # a fresh model knows nothing of 512 tokens
    assert found[6]["loss"] < found[1]["loss"] - 0.3
    start = next(record for record in records(whole / "run") if record.get("event") == "start")
    assert (start["convention"], start["ranks"], start["plan"]["strategy"]) == ("full", 1, "zero3")
    assert (start["dtype"], start["settings"]["seed"], start["settings"]["optimizer"]["beta2"]) == ("fp32", 0, 0.95)
    assert [source["name"] for source in start["settings"]["data"]["sources"]] == ["english", "japanese"]
    tokenizer = hashlib.sha256((whole / "data" / "tokenizer.model").read_bytes()).hexdigest()
    assert start["data"]["tokenizer"] == tokenizer
    assert list(start["data"]["tokens"]) == ["english", "japanese"]


def test_validation_comes_when_due_and_at_the_end(whole: Path) -> None:
    found = {r["step"]: r["loss"] for r in records(whole / "run") if r.get("event") == "validation"}
    assert list(found) == [4, 6]
    assert found[6] < found[4] < math.log(512)


# 6 validation sequences: less than a micro-batch, a last pass in which a rank has none, and a pipeline.
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (1, {"plan__micro_batch": 8}),
    "ranks": (2, {"plan__micro_batch": 2}),
    "pipeline": (2, {"plan__micro_batch": 4, "plan__strategy": "ddp", "plan__pp": 2}),
}
OF_LAYOUTS = {
    "data__validation_sequences": 6,
    "evaluation__every": 2,
    "optimizer__num_steps": 2,
    "plan__global_batch": 8,
}


@pytest.fixture(scope="module")
def layouts(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of one run under each of the layouts."""
    folder = start_like(whole, tmp_path_factory.mktemp("layouts"))
    for name, (num_ranks, layout) in LAYOUTS.items():
        write_config(folder / f"{name}.toml", folder, **OF_LAYOUTS, **layout, output=str(folder / name / "run"))
        with Ranks([str(folder / f"{name}.toml")], num_ranks, folder / name / "errors") as ranks:
            assert set(ranks.wait(TIMEOUT_S)) == {0}, ranks.error_text(0)
    return folder


def test_every_validation_sequence_counts_under_every_layout(layouts: Path) -> None:
    settings = run_settings(layouts, **OF_LAYOUTS, **LAYOUTS["alone"][1], output=str(layouts / "alone" / "run"))
    with process_group() as device, Run(settings, device) as run:
        assert run.step == 2
        each = []
        with torch.no_grad():
            for micro in run.data.validation(1, 0, 1):
                logits = run.engine.module(micro.tokens, None, micro.positions)[0]
                each.append(torch.nn.functional.cross_entropy(logits, micro.targets[0], reduction="none"))
    losses = torch.cat(each)
    expected = float(losses.sum() / losses.count_nonzero())
    for name in LAYOUTS:
        found = [r["loss"] for r in records(layouts / name / "run") if r.get("event") == "validation"]
        assert found == pytest.approx([expected], abs=1e-5), name


def test_a_step_is_the_mean_over_its_counted_tokens_under_every_layout(layouts: Path) -> None:
    # The whole batch in one pass is that mean; micro-batches do not all hold as many tokens that count.
    expected = steps(layouts / "alone" / "run")
    settings = run_settings(layouts, **OF_LAYOUTS, **LAYOUTS["ranks"][1])
    weights = [micro.weight for rank in range(2) for micro in Dataset(settings.data, 32, 0).next_step(2, 2, rank, 2)]
    assert sum(weights) == pytest.approx(4)
    assert max(weights) > min(weights) + 0.01
    for name in LAYOUTS:
        for number, record in steps(layouts / name / "run").items():
            assert record["loss"] == pytest.approx(expected[number]["loss"], abs=3e-6), name
            assert record["gradient_norm"] == pytest.approx(expected[number]["gradient_norm"], rel=1e-5), name


def test_checkpoints_come_when_due_and_the_last_are_kept(whole: Path) -> None:
    assert complete_steps(whole / "run" / "checkpoints") == [4, 6]
    assert [r["of_step"] for r in records(whole / "run") if r.get("event") == "checkpoint"] == [2, 4, 6]


def test_a_chosen_step_is_traced(whole: Path) -> None:
    (trace,) = (whole / "run" / "traces").iterdir()
    assert trace.name == "step-2-rank-0.json.gz"
    names = {event.get("name", "") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert "aten::mm" in names


def test_sigterm_saves_and_stops_and_going_on_is_bit_exact(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_like(whole, tmp_path)
    settings = run_settings(tmp_path, data__validation_sequences=6)
    with monkeypatch.context() as patch:
        at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        assert train(settings) == 3
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert complete_steps(tmp_path / "run" / "checkpoints") == [3]
    assert list(records(tmp_path / "run"))[-1]["event"] == "stopped"
    assert train(settings) == 6
    assert losses(tmp_path) == losses(whole)


def test_sigterm_in_the_last_step_finds_the_run_done(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_like(whole, tmp_path)
    write_config(tmp_path / "run.toml", tmp_path, checkpoint__export=str(tmp_path / "exported"), optimizer__num_steps=2)
    original, count = Engine.step, [0]

    def step(self: Engine, rate: float) -> torch.Tensor:
        count[0] += 1
        if count[0] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, rate)

    monkeypatch.setattr(Engine, "step", step)
    assert main([str(tmp_path / "run.toml")]) == 0
    events = [record["event"] for record in records(tmp_path / "run") if "event" in record]
    assert events[-2:] == ["exported", "done"]
    assert "stopped" not in events
    assert (tmp_path / "exported" / "config.json").exists()


@pytest.mark.usefixtures("forked_ranks")
def test_two_ranks_go_on_as_one_under_another_strategy(whole: Path, tmp_path: Path) -> None:
    start_like(whole, tmp_path)
    write_config(tmp_path / "run.toml", tmp_path, checkpoint__every=3, data__validation_sequences=6)
    with Ranks([str(tmp_path / "run.toml")], 2, tmp_path / "errors") as ranks:
        assert ranks.wait(TIMEOUT_S) == [0, 0], ranks.error_text(0)
    expected = losses(whole)
    assert losses(tmp_path) == pytest.approx(expected, abs=1e-5)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000000006")
    assert train(run_settings(tmp_path, data__validation_sequences=6, plan__strategy="ddp")) == 6
    assert [r["step"] for r in records(tmp_path / "run") if r.get("event") == "start"] == [0, 3]
    assert losses(tmp_path) == pytest.approx(expected, abs=1e-5)


@pytest.mark.usefixtures("forked_ranks")
def test_a_dead_rank_stops_the_others_with_a_sentence(whole: Path, tmp_path: Path) -> None:
    start_like(whole, tmp_path)
    fields = {"data__validation_sequences": 6, "plan__micro_batch": 1, "optimizer__num_steps": 100_000}
    write_config(tmp_path / "run.toml", tmp_path, checkpoint__every=2, **fields)
    with Ranks([str(tmp_path / "run.toml")], 2, tmp_path / "errors") as ranks:
        deadline = time.monotonic() + TIMEOUT_S
        while not complete_steps(tmp_path / "run" / "checkpoints") and time.monotonic() < deadline and ranks.running:
            time.sleep(0.05)
        ranks.processes[1].kill()
        assert ranks.processes[0].wait(TIMEOUT_S) == 1, ranks.error_text(0)
        last = ranks.error_text(0).strip().splitlines()[-1]
    assert last.startswith("flopcast: rank 0 lost another rank (")
    assert "start again to go on from the last whole checkpoint in" in last
    assert complete_steps(tmp_path / "run" / "checkpoints")


def test_a_loss_that_is_not_finite_stops_with_its_samples(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_like(whole, tmp_path)
    settings = run_settings(tmp_path, data__validation_sequences=6, checkpoint__every=1)
    original, count = Engine.accumulate, [0]

    def accumulate(self: Engine, *arguments: Any, **keywords: Any) -> torch.Tensor:
        count[0] += 1
        loss = original(self, *arguments, **keywords)
        return loss * float("nan") if count[0] == 6 else loss  # the second micro-batch of step 3

    monkeypatch.setattr(Engine, "accumulate", accumulate)
    with pytest.raises(TrainingStoppedError, match=r"step 3: the loss is not finite .*; samples \w+:\d+, \w+:\d+; the"):
        train(settings)
    event = list(records(tmp_path / "run"))[-1]
    again = Dataset(settings.data, 32, settings.seed)
    assert event["samples"] == [*[again.next_step(2, 2, 0, 1) for _ in range(3)][2][1].samples]
    assert (event["event"], event["in_step"]) == ("not finite", 3)
    assert complete_steps(tmp_path / "run" / "checkpoints") == [1, 2]


def test_a_gradient_that_is_not_finite_stops_with_the_whole_batch(whole: Path, tmp_path: Path) -> None:
    start_like(whole, tmp_path)
    settings = run_settings(tmp_path, data__validation_sequences=6, optimizer__learning_rate=1e30)
    with pytest.raises(TrainingStoppedError, match=r"step 2: the gradient norm is not finite \(norm nan\); samples"):
        train(settings)
    event = list(records(tmp_path / "run"))[-1]
    again = Dataset(settings.data, 32, settings.seed)
    assert event["samples"] == [s for m in [again.next_step(2, 2, 0, 1) for _ in range(2)][1] for s in m.samples]
    assert not complete_steps(tmp_path / "run" / "checkpoints")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"plan__global_batch": 3}, "does not divide over 1 data-parallel ranks"),
        ({"model__name": "no-such-model"}, "unknown model 'no-such-model'"),
        ({"log__gpu": "abacus"}, "abacus"),
        ({"plan__seq_len": 100_000}, "give it more text or shorten"),
        ({"seed": 1}, "seed is 1, but the checkpoint was made with 0"),
        ({"model__qk_norm": True}, "model is .* parameters .* in the checkpoint and .* in this run"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    whole: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    start_like(whole, tmp_path)
    shutil.copytree(whole / "run" / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(InputError, match=message):
        train(run_settings(tmp_path, data__validation_sequences=6, **fields))
    assert complete_steps(tmp_path / "run" / "checkpoints") == [4, 6]


@pytest.mark.parametrize(
    ("fields", "of_attention", "words"),
    [
        ({"positions": "none"}, {}, "architecture.positions is 'rotary' in the checkpoint and 'none' in this run"),
        (
            {},
            {"num_heads": 2, "num_kv_heads": 1, "head_dim": 32},
            "layers.0.attention.num_heads is 4 in the checkpoint",
        ),
        ({}, {"window": 16}, "architecture.layers.0.attention.window is none in the checkpoint and 16 in this run"),
        ({}, {"kv_layout": "grouped"}, "layers.0.attention.kv_layout is 'tiled' in the checkpoint and 'grouped' in"),
    ],
)
def test_another_model_of_the_same_tensors_is_refused(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    of_attention: dict[str, Any],
    words: str,
) -> None:
    def make_another(settings: ModelTable) -> Model:
        model = make_model(settings)
        layer = model.layers[0]
        assert isinstance(layer, TransformerBlock)
        layer = dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, **of_attention))
        return dataclasses.replace(model, layers=(layer,) * model.num_layers, **fields)

    start_like(whole, tmp_path)
    shutil.copytree(whole / "run" / "checkpoints", tmp_path / "run" / "checkpoints")
    settings = run_settings(tmp_path, data__validation_sequences=6)
    with monkeypatch.context() as patch:
        patch.setattr("flopcast.trainer.loop.make_model", make_another)
        with pytest.raises(InputError, match=f"{words}.*; go on with the same architecture"):
            train(settings)


def test_the_same_model_goes_on_from_a_manifest_that_says_less_of_it(whole: Path, tmp_path: Path) -> None:
    start_like(whole, tmp_path)
    shutil.copytree(whole / "run" / "checkpoints", tmp_path / "run" / "checkpoints")
    path = tmp_path / "run" / "checkpoints" / "step-000000006" / "manifest.json"
    settings = run_settings(tmp_path, data__validation_sequences=6)
    assert train(settings) == 6
    manifest = json.loads(path.read_text())
    del manifest["architecture"]["positions"]
    path.write_text(json.dumps(manifest))
    assert train(settings) == 6
    del manifest["architecture"]
    del manifest["constants"]
    path.write_text(json.dumps(manifest))
    assert train(settings) == 6


def test_a_trace_that_cannot_be_written_is_one_sentence(whole: Path, tmp_path: Path) -> None:
    start_like(whole, tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "traces").write_text("a file")
    fields = {"data__validation_sequences": 6, "optimizer__num_steps": 1, "log__profile": [1]}
    with pytest.raises(InputError, match=r"traces/step-1-rank-0\.json\.gz: cannot be written \(File exists\)"):
        train(run_settings(tmp_path, **fields))


def test_the_command_trains_and_says_what_is_wrong_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.toml"
    write_config(config, tmp_path, optimizer__num_steps=1)
    assert prepare_data([str(config)]) == 0
    assert main([str(config), "--plan.strategy", "ddp"]) == 0
    assert main([str(config), "--optimizer.num_steps=2", "--optimizer.learning_rate=1e30"]) == 0
    assert main([str(config), "--optimizer.num_steps=3"]) == 1
    capsys.readouterr()
    for arguments in ([], ["--seed=1"], [str(tmp_path / "none.toml")], [str(config), "--data.vocab_size=401"]):
        assert main(arguments) == 2
        assert prepare_data(arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 2
        assert all(line.startswith("flopcast: ") for line in lines)


def test_a_run_stopped_by_a_signal_has_an_exit_code_of_its_own(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_like(whole, tmp_path)
    write_config(tmp_path / "run.toml", tmp_path, data__validation_sequences=6)
    with monkeypatch.context() as patch:
        at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        assert main([str(tmp_path / "run.toml")]) == 75
    assert main([str(tmp_path / "run.toml")]) == 0


@pytest.mark.usefixtures("forked_ranks")
def test_a_rank_that_hangs_is_given_up(whole: Path, tmp_path: Path) -> None:
    """In the middle of a checkpoint, whose thread waits for it for much longer: in a step, or for that thread."""
    start_like(whole, tmp_path)
    checkpoints = tmp_path / "run" / "checkpoints"
    fields = {"data__validation_sequences": 6, "plan__micro_batch": 1, "optimizer__num_steps": 100_000}
    write_config(tmp_path / "run.toml", tmp_path, checkpoint__every=2, timeout_s=2.0, **fields)
    with Ranks([str(tmp_path / "run.toml")], 2, tmp_path / "errors") as ranks:
        deadline = time.monotonic() + TIMEOUT_S
        while not (complete_steps(checkpoints) and [*checkpoints.glob(".step-*")]):
            assert time.monotonic() < deadline, ranks.error_text(0)
            assert ranks.running, ranks.error_text(0)
            time.sleep(0.001)
        ranks.processes[1].send_signal(signal.SIGSTOP)
        assert ranks.processes[0].wait(TIMEOUT_S) == 1, ranks.error_text(0)
        last = ranks.error_text(0).strip().splitlines()[-1]
    assert last.startswith("flopcast: rank 0 lost another rank (")
    assert "2000ms" in last.replace(" ", "")


def test_two_jobs_do_not_write_into_one_folder(whole: Path, tmp_path: Path) -> None:
    start_like(whole, tmp_path)
    settings = run_settings(tmp_path, data__validation_sequences=6, optimizer__num_steps=1)
    with locked(tmp_path / "run", "wait"):
        with pytest.raises(
            InputError, match=r"run: another job writes into it \(process \d+ on .*\); wait for it or name"
        ):
            train(settings)
        assert not (tmp_path / "run" / "checkpoints").exists()
    assert train(settings) == 1


def test_a_run_says_what_may_not_be_meant(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start_like(whole, tmp_path)
    fields = {"data__validation_sequences": 2, "optimizer__num_steps": 1, "optimizer__warmup_steps": 100}
    assert train(run_settings(tmp_path, plan__seq_len=300, log__profile=[1, 99], **fields)) == 1
    words = [record["words"] for record in records(tmp_path / "run") if record.get("event") == "warning"]
    assert words[0].startswith("plan.seq_len = 300 is beyond the ")
    assert words[1].startswith("optimizer.warmup_steps = 100 is more than num_steps = 1: the learning rate")
    assert words[2] == "log.profile = [1, 99] has steps beyond num_steps = 1: 99 will not be traced"
    said = capsys.readouterr().err
    assert all(f"flopcast: {each}" in said for each in words)
    assert not any(record.get("event") == "warning" for record in records(whole / "run"))


@pytest.mark.parametrize("place", ["run.txt", "/proc/run"])
def test_an_output_that_cannot_be_is_one_sentence(whole: Path, tmp_path: Path, place: str) -> None:
    start_like(whole, tmp_path)
    (tmp_path / "run.txt").write_text("a file")
    with pytest.raises(InputError, match=f"{place}: cannot be written"):
        train(run_settings(tmp_path, data__validation_sequences=6, output=str(tmp_path / place)))


def test_a_checkpoint_without_the_order_of_the_data_is_refused(whole: Path, tmp_path: Path) -> None:
    start_like(whole, tmp_path)
    shutil.copytree(whole / "run" / "checkpoints", tmp_path / "run" / "checkpoints")
    path = tmp_path / "run" / "checkpoints" / "step-000000006" / "manifest.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "order"}))
    with pytest.raises(InputError, match=r"manifest\.json: does not say where the order of the data stands; remove"):
        train(run_settings(tmp_path, data__validation_sequences=6))


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    settings = run_settings(tmp_path)
    Path(str(settings.data.sources[1].path)).write_text("")
    with pytest.raises(InputError, match=r"^source 'japanese' is empty"):
        train(settings)


def test_a_tokenizer_that_does_not_match_is_refused(whole: Path, tmp_path: Path) -> None:
    start_like(whole, tmp_path)
    settings = run_settings(tmp_path, data__validation_sequences=6)
    path = Path(str(settings.data.sources[0].path))
    train_tokenizer([path.read_text()], tmp_path / "other.model", 330)
    with pytest.raises(InputError, match="was made with another tokenizer"):
        train(run_settings(tmp_path, data__validation_sequences=6, data__tokenizer=str(tmp_path / "other.model")))
    shutil.rmtree(tmp_path / "data")
    shutil.copytree(whole / "run" / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(InputError, match="go on with the same tokenizer"):
        train(run_settings(tmp_path, data__validation_sequences=6, data__tokenizer=str(tmp_path / "other.model")))


def test_ctrl_c_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flopcast.trainer.loop.train", interrupted)
    monkeypatch.setattr("flopcast.trainer.settings.read_settings", lambda path, changes: None)
    assert main(["run.toml"]) == 130
    assert capsys.readouterr().err.count("\n") == 1
