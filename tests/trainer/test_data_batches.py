from pathlib import Path

import pytest
from training_runs import run_settings

from flopcast.errors import InputError
from flopcast.trainer.data.batches import Dataset
from flopcast.trainer.data.preparation import prepare
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
    trained = {row for micro in dataset.next_step(1, 2000, 0, 1) for row in map(bytes, micro.tokens.numpy())}
    assert not trained & alone


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
