"""From sources to token files: a tokenizer trained on the mixture, every source tokenised once, both found again."""

import glob
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from flopcast.errors import InputError
from flopcast.trainer.data import corpus
from flopcast.trainer.data.tokenizer import Tokenizer, train
from flopcast.trainer.data.tokens import PARTIAL, open_tokens, write_tokens
from flopcast.trainer.files import locked
from flopcast.trainer.settings import DataTable, SourceTable

TOKENIZER = "tokenizer.model"
# Text that the tokenizer is trained on, at most; each source gives its share, from its beginning.
TOKENIZER_CHARACTERS = 20_000_000
FILES_NAMED = 3  # of those passed over


def prepare(settings: DataTable) -> None:
    """Train the tokenizer unless one is named or made already, and tokenise the sources that are not yet.

    Where two jobs come at once, one waits for the other. A text that is no longer there is not missed once its tokens
    are made. Raises InputError for a source that is empty or unreadable, and for a folder whose contents were made from
    other sources than the settings name, from another text or with another tokenizer.
    """
    folder = Path(settings.folder)
    made = [folder / source.name for source in settings.sources]
    if settings.tokenizer is None:
        made.append(folder / TOKENIZER)
    if all(path.exists() for path in made):  # and may be where nobody can write
        _prepare(settings)
        return
    with locked(folder) as is_alone:
        if is_alone:
            _remove_leftovers(settings)
        _prepare(settings)


def _prepare(settings: DataTable) -> None:
    folder = Path(settings.folder)
    if settings.tokenizer is None and not (folder / TOKENIZER).exists():
        texts = (text for source in settings.sources for text in _excerpt(source, settings))
        train(texts, folder / TOKENIZER, settings.vocab_size)
    tokenizer = load_tokenizer(settings)
    for source in settings.sources:
        origin = {"path": source.path, "package": source.package, "field": source.field}
        target = folder / source.name
        fingerprint = corpus.fingerprint(_path(source), source.package)
        if not target.exists():
            _say_what_is_left(source)
            write_tokens(target, _documents(source), tokenizer, origin, fingerprint)
            continue
        found = open_tokens(target, tokenizer, verify=False)
        mend = "remove the folder to make it again, or name another data.folder"
        if found.origin != origin:
            named = f"the source '{source.name}' of the settings ({_where(source)})"
            raise InputError(f"{target}: was not made from {named}; {mend}")
        if found.fingerprint and fingerprint and found.fingerprint != fingerprint:
            raise InputError(f"{target}: the text of {_where(source)} has changed since its tokens were made; {mend}")


def _remove_leftovers(settings: DataTable) -> None:
    """What jobs that were killed while tokenising left; only under the lock, as another may be at it else."""
    for source in settings.sources:
        for leftover in Path(settings.folder).glob(f".{glob.escape(source.name)}.*{PARTIAL}"):
            shutil.rmtree(leftover, ignore_errors=True)


def load_tokenizer(settings: DataTable) -> Tokenizer:
    """The tokenizer that the settings name, or the one trained before. Raises InputError where there is none."""
    trained = Path(settings.folder) / TOKENIZER
    tokenizer = Tokenizer.load(Path(settings.tokenizer) if settings.tokenizer is not None else trained)
    if settings.tokenizer is None and tokenizer.vocab_size != settings.vocab_size:
        raise InputError(
            f"{trained}: has {tokenizer.vocab_size} pieces, not data.vocab_size = {settings.vocab_size}; set that, or "
            "remove the folder to train another"
        )
    return tokenizer


def _say_what_is_left(source: SourceTable) -> None:
    """Name the files of a source's folder that give no text, on standard error."""
    path = _path(source)
    left = [] if path is None else corpus.passed_over(path)
    if left:
        assert path is not None
        named = ", ".join(str(file.relative_to(path)) for file in left[:FILES_NAMED])
        more = ", ..." if len(left) > FILES_NAMED else ""
        files = "1 file of another kind" if len(left) == 1 else f"{len(left)} files of other kinds"
        print(
            f"flopcast: source '{source.name}': passes over {files} ({named}{more}); what is read: {corpus.KINDS}",
            file=sys.stderr,
            flush=True,
        )


def _documents(source: SourceTable) -> Iterator[str]:
    return corpus.documents(_path(source), source.package, source.field)


def _path(source: SourceTable) -> Path | None:
    return None if source.path is None else Path(source.path)


def _excerpt(source: SourceTable, settings: DataTable) -> Iterator[str]:
    left = TOKENIZER_CHARACTERS * source.weight / sum(s.weight for s in settings.sources)
    is_empty = True
    for text in _documents(source):
        is_empty = False
        left -= len(text)
        yield text
        if left <= 0:
            return
    if is_empty:
        raise InputError(f"source '{source.name}' is empty: {_where(source)} holds no text; give it some")


def _where(source: SourceTable) -> str:
    return source.path or f"package {source.package}"
