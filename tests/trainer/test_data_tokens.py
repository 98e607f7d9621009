import json
from pathlib import Path

import numpy as np
import pytest

from flopcast.errors import InputError
from flopcast.trainer.data.tokenizer import Tokenizer, train
from flopcast.trainer.data.tokens import open_tokens, write_tokens
from flopcast.trainer.regression.text import write_sources

TEXTS = ["the gradient waits.\nevery node splits a layer.", "層を集める。\n勾配を測る。", "one rank"]


def sample_texts(folder: Path) -> list[str]:
    paths = [str(source["path"]) for source in write_sources(folder, 40, seed=3)]
    return [json.loads(line)["text"] for path in paths for line in Path(path).read_text().splitlines()]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    return train(sample_texts(folder), folder / "tokenizer.model", 400)


@pytest.mark.parametrize("text", [*TEXTS, "  two  spaces\n\n\ttab\r\n", "𠮷野家 ﾊﾝｶｸ ① naïve 🙂", " ", ""])
def test_text_comes_back_as_it_was(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_same_text_makes_the_same_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    again = train(sample_texts(tmp_path), tmp_path / "again.model", 400)
    assert again.identity == tokenizer.identity
    assert Tokenizer.load(tmp_path / "again.model").identity == tokenizer.identity
    assert tokenizer.vocab_size == 400


def test_a_tokenizer_that_cannot_be_had_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be trained on this text"):
        train([], tmp_path / "none.model", 400)
    with pytest.raises(InputError, match=r"^data\.vocab_size is 9000, but the text has enough for \d+ pieces at most;"):
        train(["some words"], tmp_path / "none.model", 9000)
    assert not list(tmp_path.iterdir())
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"bad\.model: the tokenizer is not a SentencePiece model"):
        Tokenizer.load(tmp_path / "bad.model")
    with pytest.raises(InputError, match="cannot be read"):
        Tokenizer.load(tmp_path / "missing.model")


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample_texts(tmp_path)),
        model_prefix=str(tmp_path / "endless"),
        vocab_size=200,
        eos_id=-1,
        minloglevel=2,
    )
    with pytest.raises(InputError, match=r"endless\.model: the tokenizer has no token to end a document"):
        Tokenizer.load(tmp_path / "endless.model")


def test_token_files_hold_every_document_closed_by_its_end(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_tokens(tmp_path / "x", TEXTS, tokenizer, {"path": "somewhere"})
    file = open_tokens(tmp_path / "x", tokenizer)
    begin = 0
    for text, end in zip(TEXTS, file.ends.tolist(), strict=True):
        *document, last = file.tokens[begin:end].tolist()
        assert tokenizer.decode(document) == text
        assert last == tokenizer.end
        begin = end
    assert begin == len(file.tokens)
    assert file.tokens.dtype == np.uint16


def test_an_empty_source_leaves_nothing_behind(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="source 'x' is empty"):
        write_tokens(tmp_path / "x", [], tokenizer, {})
    assert not list(tmp_path.iterdir())


def test_a_failure_half_way_leaves_nothing_behind(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def texts() -> object:
        yield "one"
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"x: cannot be written \(No space left on device\); make room or"):
        write_tokens(tmp_path / "x", texts(), tokenizer, {})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_damaged_or_foreign_token_files_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    with pytest.raises(InputError, match="holds no tokens"):
        open_tokens(folder, tokenizer)
    write_tokens(folder, TEXTS, tokenizer, {})
    other = train(sample_texts(tmp_path / "text"), tmp_path / "other.model", 390)
    with pytest.raises(InputError, match="was made with another tokenizer"):
        open_tokens(folder, other)
    whole = (folder / "tokens.bin").read_bytes()
    (folder / "tokens.bin").write_bytes(whole[:-2])
    with pytest.raises(InputError, match=r"tokens\.bin: has \d+ bytes, not \d+"):
        open_tokens(folder, tokenizer, verify=False)
    (folder / "tokens.bin").write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(InputError, match="its checksum has changed"):
        open_tokens(folder, tokenizer)
    (folder / "index.json").write_text("{}")
    with pytest.raises(InputError, match="is not an index of tokens"):
        open_tokens(folder, tokenizer)
