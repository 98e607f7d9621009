import json
import multiprocessing
import shutil
from pathlib import Path

import pytest
from training_runs import run_settings, write_config

from flopcast.errors import InputError
from flopcast.trainer.data.__main__ import main
from flopcast.trainer.data.batches import Dataset
from flopcast.trainer.data.preparation import prepare
from flopcast.trainer.data.tokenizer import train
from flopcast.trainer.settings import DataTable


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataTable:
    table = run_settings(tmp_path_factory.mktemp("run"), data__validation_sequences=6).data
    prepare(table)
    return table


def step_samples(data: DataTable, ranks: int, micro_batch: int, grad_accum: int) -> list[str]:
    datasets = [Dataset(data, 32, seed=5) for _ in range(ranks)]
    rows = [d.next_step(micro_batch, grad_accum, rank, ranks) for rank, d in enumerate(datasets)]
    return [s for m in range(grad_accum) for rank in range(ranks) for s in rows[rank][m].samples]


def test_a_step_reads_the_same_samples_on_any_number_of_ranks(data: DataTable) -> None:
    alone = step_samples(data, 1, 2, 12)
    assert len(set(alone)) == 24
    assert step_samples(data, 4, 2, 3) == alone
    assert step_samples(data, 3, 4, 2) == alone


def test_rows_are_the_sequences_named(data: DataTable) -> None:
    dataset = Dataset(data, 32, seed=5)
    batch = dataset.next_step(3, 1, 0, 1)[0]
    assert batch.tokens.shape == batch.targets.shape == batch.positions.shape == (3, 32)
    again = Dataset(data, 32, seed=5).next_step(1, 3, 0, 1)
    assert [micro.samples[0] for micro in again] == list(batch.samples)
    for row, micro in enumerate(again):
        assert batch.tokens[row].tolist() == micro.tokens[0].tolist()
    # What is predicted is the next token, but for the first token of a document.
    counted = batch.targets[:, :-1] >= 0
    assert (batch.targets[:, :-1] == batch.tokens[:, 1:])[counted].all()
    assert counted.float().mean() > 0.9


def test_validation_is_not_trained_on_and_the_same_on_any_number_of_ranks(data: DataTable) -> None:
    dataset = Dataset(data, 32, seed=5)
    alone = {row for micro in dataset.validation(1, 0, 1) for row in map(bytes, micro.tokens.numpy())}
    assert len(alone) == 6
    for rank in range(3):
        assert {row for micro in dataset.validation(1, rank, 3) for row in map(bytes, micro.tokens.numpy())} < alone
    for micro_batch, ranks in ((4, 1), (4, 2), (16, 3)):
        each = [list(dataset.validation(micro_batch, rank, ranks)) for rank in range(ranks)]
        assert len({len(micros) for micros in each}) == 1
        every = [micro for micros in each for micro in micros]
        assert all(micro.tokens.shape == (micro_batch, 32) for micro in every)
        assert len({s for micro in every for s in micro.samples}) == sum(len(micro.samples) for micro in every) == 6
        assert sum(micro.num_counted for micro in every) == sum(m.num_counted for m in dataset.validation(1, 0, 1))
    trained = {row for micro in dataset.next_step(1, 2000, 0, 1) for row in map(bytes, micro.tokens.numpy())}
    assert not trained & alone


def test_going_on_with_other_weights_keeps_the_split(data: DataTable) -> None:
    first = Dataset(data, 32, seed=5)
    first.next_step(2, 5, 0, 1)
    weights = [source.model_copy(update={"weight": 1.0}) for source in data.sources]
    second = Dataset(data.model_copy(update={"sources": weights}), 32, seed=5)
    kept = [{s for micro in d.validation(1, 0, 1) for s in micro.samples} for d in (first, second)]
    assert kept[0] != kept[1]
    second.restore(json.loads(json.dumps(first.state())))
    assert {s for micro in second.validation(1, 0, 1) for s in micro.samples} == kept[0]
    names = [micro.samples[0].split(":")[0] for micro in second.next_step(1, 100, 0, 1)]
    assert names.count("english") == 50
    for changed, message in (({"validation_sequences": 8}, "validation_sequences"), ({"sources": weights[:1]}, "same")):
        with pytest.raises(InputError, match=message):
            Dataset(data.model_copy(update=changed), 32, seed=5).restore(first.state())


def test_tokens_of_another_text_are_not_gone_on_with(data: DataTable) -> None:
    state = Dataset(data, 32, seed=5).state()
    state["tokens"] = {**state["tokens"], "japanese": "0" * 64}
    with pytest.raises(InputError, match=r"the tokens of source 'japanese' in .* are others than the checkpoint was"):
        Dataset(data, 32, seed=5).restore(state)
    del state["tokens"], state["validation"]  # as earlier versions wrote it
    Dataset(data, 32, seed=5).restore(state)


def test_text_that_has_changed_since_is_refused_and_one_that_is_gone_is_not_missed(tmp_path: Path) -> None:
    table = run_settings(tmp_path).data
    prepare(table)
    text = Path(str(table.sources[0].path))
    whole = text.read_bytes()
    text.write_bytes(whole)  # a time of change is no change
    prepare(table)
    text.write_bytes(whole + whole[: whole.index(b"\n") + 1])
    with pytest.raises(InputError, match=r"english: the text of .* has changed since its tokens were made; remove the"):
        prepare(table)
    text.unlink()
    prepare(table)
    index = tmp_path / "data" / "english" / "index.json"
    index.write_text(json.dumps({k: v for k, v in json.loads(index.read_text()).items() if k != "fingerprint"}))
    text.write_bytes(whole[:1000])
    prepare(table)  # token files of earlier versions do not say


def test_files_that_are_passed_over_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = run_settings(tmp_path).data
    text = Path(str(table.sources[0].path))
    folder = tmp_path / "english texts"
    (folder / "more").mkdir(parents=True)
    text.rename(folder / text.name)
    source = table.sources[0].model_copy(update={"path": str(folder)})
    table = table.model_copy(update={"sources": [source, *table.sources[1:]]})
    for name in ("a.jsonl.zst", "more/b.json"):
        (folder / name).write_text("{}")
    prepare(table)
    said = capsys.readouterr().err
    assert said.startswith(
        "flopcast: source 'english': passes over 2 files of other kinds (a.jsonl.zst, more/b.json); "
    )
    assert said.count("\n") == 1
    prepare(table)
    assert capsys.readouterr().err == ""


def test_what_a_killed_job_left_of_its_tokens_is_removed(tmp_path: Path) -> None:
    table = run_settings(tmp_path).data
    for name in (".english.4321.partial", ".elsewhere.4321.partial"):
        (tmp_path / "data" / name).mkdir(parents=True)
    prepare(table)
    assert [path.name for path in (tmp_path / "data").glob(".*.partial")] == [".elsewhere.4321.partial"]


def test_two_that_prepare_at_once_make_the_data_once(tmp_path: Path) -> None:
    table = run_settings(tmp_path).data
    both = [multiprocessing.get_context("fork").Process(target=prepare, args=(table,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert Dataset(table, 32, seed=5).vocab_size == 400


def test_the_command_says_that_the_data_is_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "run.toml"
    write_config(config, tmp_path)
    ready = f"flopcast: the tokens of english, japanese are ready in {tmp_path / 'data'}\n"
    for _ in range(2):
        assert main([str(config)]) == 0
        assert capsys.readouterr() == ("", ready)
    shutil.rmtree(tmp_path / "data")
    shutil.rmtree(tmp_path / "text")
    assert main([str(config)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_what_leaves_nothing_to_train_on_says_which_setting(data: DataTable) -> None:
    with pytest.raises(InputError, match=r"data\.validation_sequences = 1000000 keeps \d+ of the \d+ sequences of"):
        Dataset(data.model_copy(update={"validation_sequences": 1000000}), 32, seed=5)
    with pytest.raises(InputError, match=r"give it more text or shorten plan\.seq_len"):
        Dataset(data, 2_000_000, seed=5)


def test_preparing_again_changes_nothing_and_other_sources_are_refused(data: DataTable, tmp_path: Path) -> None:
    folder = Path(data.folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    prepare(data)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    changed = data.sources[0].model_copy(update={"path": str(tmp_path)})
    with pytest.raises(InputError, match="was not made from the source 'english'"):
        prepare(data.model_copy(update={"sources": [changed, data.sources[1]]}))
    with pytest.raises(InputError, match=r"has 400 pieces, not data\.vocab_size = 401"):
        prepare(data.model_copy(update={"vocab_size": 401}))
    other = tmp_path / "other.model"
    train(Path(str(data.sources[0].path)).read_text().splitlines(), other, 330)
    with pytest.raises(InputError, match="english: was made with another tokenizer"):
        prepare(data.model_copy(update={"tokenizer": str(other)}))
