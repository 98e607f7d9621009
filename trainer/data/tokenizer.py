"""A SentencePiece tokenizer trained here, and its identity, which every token file and checkpoint carries."""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from flopcast.errors import InputError
from flopcast.files import write_atomically
from flopcast.trainer.files import writing

try:
    import sentencepiece
except ImportError:
    raise InputError(
        "training needs sentencepiece, which is not installed; pip install '.[train]' in flopcast's folder"
    ) from None

UNKNOWN, BEGIN, END = 0, 1, 2
# The share of characters with a piece of their own; the rest are spelt in bytes. The library's advice for Japanese.
CHARACTER_COVERAGE = 0.9995
LONGEST_SENTENCE_BYTES = 4192


class Tokenizer:
    """Text to token ids and back, without loss: the text is not normalised, and rare characters are spelt in bytes."""

    def __init__(self, model: bytes) -> None:
        """``model``: the bytes of a SentencePiece model file. Raises InputError where they are not one."""
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError, OSError):
            raise InputError("the tokenizer is not a SentencePiece model; train it again") from None
        if self.end < 0:
            raise InputError("the tokenizer has no token to end a document (eos); name one that has")
        self.identity = hashlib.sha256(model).hexdigest()

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """The tokenizer of a file. Raises InputError naming the file."""
        try:
            model = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); name a SentencePiece model") from None
        try:
            return cls(model)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    @property
    def vocab_size(self) -> int:
        """Pieces, the three of control included."""
        return int(self._processor.get_piece_size())

    @property
    def end(self) -> int:
        """The token that ends a document."""
        return int(self._processor.eos_id())

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, without a token to begin or end it."""
        return list(self._processor.encode(text))

    def decode(self, tokens: list[int]) -> str:
        """The text of token ids."""
        return str(self._processor.decode(tokens))


def train(texts: Iterable[str], path: Path, vocab_size: int) -> Tokenizer:
    """A unigram model with bytes for rare characters, written to ``path`` in one piece.

    Every space and line break is kept. The result depends on the texts alone, on any machine of one library version.
    Raises InputError where there is no text, or too little of it for ``vocab_size`` pieces.
    """
    lines = _Lines(texts)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="unigram",
            character_coverage=CHARACTER_COVERAGE,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n"],
            unk_id=UNKNOWN,
            bos_id=BEGIN,
            eos_id=END,
            pad_id=-1,
            max_sentence_length=LONGEST_SENTENCE_BYTES,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise lines.error or InputError(_too_little(vocab_size, " ".join(str(error).split()))) from None
    with writing(path):
        write_atomically(path, model.getvalue())
    return Tokenizer(model.getvalue())


class _Lines:
    """The lines of the texts; what a text could not be read for is kept, as SentencePiece words it in its own way."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.error: InputError | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self._texts:
                yield from _sentences(text)
        except InputError as error:
            self.error = error
            raise


def _too_little(vocab_size: int, message: str) -> str:
    """SentencePiece's message in a sentence, where it is the one about a text too short for its vocabulary."""
    most = re.search(r"value <= (\d+)", message)
    if most is None:
        return f"a tokenizer of {vocab_size} pieces cannot be trained on this text: {message}"
    return (
        f"data.vocab_size is {vocab_size}, but the text has enough for {most[1]} pieces at most; set that or less, or "
        "give it more text"
    )


def _sentences(text: str) -> Iterable[str]:
    """The lines of a text, long ones in parts, as the trainer skips a line longer than it was told of."""
    longest = LONGEST_SENTENCE_BYTES // 4  # characters of at most four bytes
    for line in text.splitlines():
        for start in range(0, len(line), longest):
            yield line[start : start + longest]
