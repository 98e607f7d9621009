"""A run that starts from a folder of transformers and leaves one: losses and logits are those of transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_runs import MODEL, run_settings, write_config

from flopcast.errors import InputError
from flopcast.trainer.data.batches import Dataset, MicroBatch
from flopcast.trainer.data.preparation import prepare
from flopcast.trainer.launch import Ranks
from flopcast.trainer.log import records, steps
from flopcast.trainer.loop import Run, train
from flopcast.trainer.numerics import Numerics
from flopcast.trainer.pretrained import make_numerics
from flopcast.trainer.processes import process_group
from flopcast.trainer.workload import make_model

TIMEOUT_S = 120.0
TOKENS = torch.arange(64).view(2, 32) * 7 % 400
NUMERICS = Numerics(rope_theta=50000.0, norm_eps=1e-3, activation="silu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, and in ``llama`` a model of transformers whose constants are not the usual ones."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("pretrained")
    prepare(run_settings(folder).data)
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=144,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=NUMERICS.norm_eps,
        rope_theta=NUMERICS.rope_theta,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "llama")
    return folder


def fields(folder: Path, output: Path, **more: Any) -> dict[str, Any]:
    """Of a run of two steps from the model of transformers."""
    llama, tokenizer = str(folder / "llama"), str(folder / "data" / "tokenizer.model")
    own = {"model__name": llama, "model__weights": llama, "data__tokenizer": tokenizer, "output": str(output / "run")}
    return own | {"optimizer__num_steps": 2} | more


def transformers_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    import transformers

    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        logits: torch.Tensor = theirs.eval()(tokens).logits
    return logits


def transformers_loss(folder: Path, micro: MicroBatch) -> float:
    """The mean over the targets of a micro-batch, every document by itself."""
    losses = []
    for row in range(len(micro.tokens)):
        starts = [n for n, place in enumerate(micro.positions[row].tolist()) if place == 0 or n == 0]
        for first, last in zip(starts, [*starts[1:], micro.tokens.shape[1]], strict=True):
            logits = transformers_logits(folder, micro.tokens[row : row + 1, first:last])[0]
            kept = micro.targets[row, first:last] != -100
            targets = micro.targets[row, first:last][kept]
            losses.append(torch.nn.functional.cross_entropy(logits[kept], targets, reduction="none"))
    return float(torch.cat(losses).mean())


@pytest.fixture(scope="module")
def one_rank(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("one-rank")
    export = str(output / "exported")
    assert train(run_settings(folder, **fields(folder, output, checkpoint__export=export))) == 2
    return output


def test_the_first_loss_is_that_of_transformers(folder: Path, one_rank: Path) -> None:
    settings = run_settings(folder, **fields(folder, one_rank))
    batch = Dataset(settings.data, 32, settings.seed).next_step(2, 2, 0, 1)
    expected = sum(transformers_loss(folder / "llama", micro) * micro.num_counted for micro in batch)
    expected /= sum(micro.num_counted for micro in batch)
    assert steps(one_rank / "run")[1]["loss"] == pytest.approx(expected, abs=1e-5)
    start = next(iter(records(one_rank / "run")))
    assert start["numerics"] == {"rope_theta": 50000.0, "norm_eps": 1e-3, "activation": "silu", "rope_scaling": None}


def test_what_is_exported_is_what_the_engine_computes_with(folder: Path, one_rank: Path) -> None:
    with process_group() as device:
        run = Run(run_settings(folder, **fields(folder, one_rank)), device)
        assert run.step == 2
        with torch.no_grad():
            logits = run.engine.module(TOKENS)
    exported = transformers_logits(one_rank / "exported", TOKENS)
    torch.testing.assert_close(logits, exported, rtol=1e-5, atol=2e-5)
    assert (exported - transformers_logits(folder / "llama", TOKENS)).abs().max() > 1e-2
    assert [r["event"] for r in records(one_rank / "run") if "event" in r][-2:] == ["exported", "done"]


@pytest.mark.usefixtures("forked_ranks")
def test_two_ranks_start_and_end_as_one(folder: Path, one_rank: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    export = str(tmp_path / "exported")
    write_config(config, folder, **fields(folder, tmp_path, checkpoint__export=export))
    with Ranks([str(config)], 2, tmp_path / "errors") as ranks:
        assert ranks.wait(TIMEOUT_S) == [0, 0], ranks.error_text(0)
    found, expected = (steps(path / "run")[1]["loss"] for path in (tmp_path, one_rank))
    assert found == pytest.approx(expected, abs=1e-5)
    logits = [transformers_logits(path / "exported", TOKENS) for path in (tmp_path, one_rank)]
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)


def test_the_last_checkpoint_is_exported_when_no_step_is_left(folder: Path, one_rank: Path, tmp_path: Path) -> None:
    again = fields(folder, one_rank, optimizer__num_steps=1, checkpoint__export=str(tmp_path / "again"))
    assert train(run_settings(folder, **again)) == 2
    for path in (one_rank / "exported").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "again").iterdir()}
    assert train(run_settings(folder, **again)) == 2  # a requeued job whose work is done has done it
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "again").iterdir()} == written
    shutil.rmtree(tmp_path / "again")
    assert train(run_settings(folder, **again)) == 2  # the log says that it was written, the folder that it is not
    assert {path for path in (tmp_path / "again").iterdir()} == set(written)
    with pytest.raises(InputError, match="again: exists already and is not overwritten"):
        train(run_settings(folder, **again | {"output": str(tmp_path / "another run")}))


def test_a_checkpoint_goes_on_with_its_own_constants_only(folder: Path, one_rank: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "llama", tmp_path / "llama")
    edit_config(tmp_path / "llama", rope_theta=10000.0, rope_parameters=None)
    with pytest.raises(InputError, match=r": rope_theta is 50000 in the checkpoint and 10000 in this run; go on with"):
        train(run_settings(folder, **fields(folder, one_rank, model__weights=str(tmp_path / "llama"))))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def rename_a_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"layers.1.self_attn.k_proj", b"layers.1.self_attn.x_proj"))


def add_a_bias(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.bias"
    save_file(weights | {name: torch.ones(64)}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "model.safetensors: cannot be read"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: cannot be read"),
        (rename_a_tensor, "lacks model.layers.1.self_attn.k_proj.weight and 0 more"),
        (add_a_bias, "holds model.layers.0.self_attn.q_proj.bias and 0 more that a llama of its config.json does not"),
        (lambda folder: edit_config(folder, num_hidden_layers=3), "number of layers is 3, not 2"),
        (lambda folder: edit_config(folder, num_key_value_heads=4), "num_kv_heads is 4, not 2"),
        (lambda folder: edit_config(folder, tie_word_embeddings=True), "tied_embeddings is True, not False"),
        (lambda folder: edit_config(folder, hidden_act="tanh"), "hidden_act is 'tanh'"),
        (lambda folder: (folder / "config.json").unlink(), "a directory without a config.json"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_training(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    shutil.copytree(folder / "llama", tmp_path / "llama")
    spoil(tmp_path / "llama")
    settings = run_settings(folder, **fields(folder, tmp_path, model__weights=str(tmp_path / "llama")))
    with pytest.raises(InputError, match=message) as caught:
        train(settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "log.jsonl").exists()


@pytest.mark.usefixtures("forked_ranks")
def test_every_rank_says_what_is_wrong_with_the_weights(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "llama", tmp_path / "llama")
    cut(tmp_path / "llama")
    config = tmp_path / "run.toml"
    write_config(config, folder, **fields(folder, tmp_path, model__weights=str(tmp_path / "llama")))
    with Ranks([str(config)], 2, tmp_path / "errors") as ranks:
        assert ranks.wait(TIMEOUT_S) == [2, 2]
    assert all("model.safetensors: cannot be read" in ranks.error_text(rank) for rank in range(2))


def test_an_export_that_cannot_be_is_refused_before_training(folder: Path, tmp_path: Path) -> None:
    neither = {"model__qk_norm": True, "checkpoint__export": str(tmp_path / "exported")}
    with pytest.raises(InputError, match="only those can be saved"):
        train(run_settings(folder, output=str(tmp_path / "run"), **neither))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["/proc/exported", "run.txt/exported"])
def test_an_export_to_where_nothing_can_be_is_refused_before_training(folder: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "run.txt").write_text("a file")
    with pytest.raises(InputError, match=r"exported: cannot be written .*; name another folder"):
        train(run_settings(folder, **fields(folder, tmp_path, checkpoint__export=str(tmp_path / place))))
    assert not (tmp_path / "run").exists()


def test_weights_need_their_tokenizer(folder: Path) -> None:
    with pytest.raises(InputError, match=r"model\.weights needs data\.tokenizer"):
        run_settings(folder, model__weights=str(folder / "llama"))


def test_a_config_gives_its_constants_where_they_are_known(folder: Path, tmp_path: Path) -> None:
    def numerics(name: Path | str) -> Numerics:
        table = run_settings(folder, model__name=str(name)).model
        return make_numerics(table, make_model(table))

    assert numerics(folder / "llama") == numerics(folder / "llama" / "config.json") == NUMERICS
    assert numerics("llama-2-7b") == numerics(MODEL) == Numerics()
    shutil.copy(folder / "llama" / "config.json", tmp_path)
    edit_config(tmp_path, hidden_act="tanh")
    with pytest.raises(InputError, match="hidden_act is 'tanh'; the trainer has silu"):
        numerics(tmp_path)
    own = run_settings(folder, model__rope_theta=5e5, model__norm_eps=1e-5).model
    assert make_numerics(own, make_model(own)) == Numerics(rope_theta=5e5, norm_eps=1e-5)
    with pytest.raises(InputError, match=r"model\.norm_eps is what model\.weights say it is"):
        run_settings(folder, **fields(folder, tmp_path, model__norm_eps=1e-5))
