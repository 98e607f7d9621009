"""Token files: the documents of one source as one row of ids on disk, mapped into memory and never half written.

A folder holds ``tokens.bin`` (uint16, or uint32 for vocabularies above 65,536), ``documents.bin`` (uint64, where each
document ends) and ``index.json`` with their sizes, their checksums, the tokenizer's identity and where the text came
from. It is written under another name and renamed when it is whole.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flopcast.errors import InputError
from flopcast.files import sync_folder, write_atomically
from flopcast.trainer.data.tokenizer import Tokenizer
from flopcast.trainer.files import sha256, writing

TOKENS, DOCUMENTS, INDEX = "tokens.bin", "documents.bin", "index.json"
PARTIAL = ".partial"  # how the folder that is being written is called at the end

Origin = dict[str, str | None]


@dataclass(frozen=True)
class TokenFile:
    """The tokens of one source, each document closed by the tokenizer's end token.

    ``tokens``: [num_tokens]. ``ends``: [num_documents], the position just after each document's end token.
    ``digest`` is the SHA-256 over those of both, ``origin`` where the text came from, ``fingerprint`` that of the text
    as it was then (empty in files of earlier versions).
    """

    tokens: NDArray[np.uint16] | NDArray[np.uint32]
    ends: NDArray[np.uint64]
    digest: str
    origin: Origin = field(default_factory=dict)
    fingerprint: str = ""


def write_tokens(
    folder: Path, texts: Iterable[str], tokenizer: Tokenizer, origin: Origin, fingerprint: str = ""
) -> None:
    """Write the documents of a source as a token file; ``fingerprint`` tells their text from a later one.

    Raises InputError where there is no document at all, and where it cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}{PARTIAL}")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            _write(temporary, texts, tokenizer, {"origin": origin, "fingerprint": fingerprint}, folder.name)
            temporary.replace(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(folder.parent)


def _write(folder: Path, texts: Iterable[str], tokenizer: Tokenizer, source: dict[str, Any], name: str) -> None:
    kind = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    ends: list[int] = []
    num_tokens = 0
    with (folder / TOKENS).open("wb") as file:
        for text in texts:
            document = np.array([*tokenizer.encode(text), tokenizer.end], dtype=kind)
            file.write(document.tobytes())
            num_tokens += len(document)
            ends.append(num_tokens)
        file.flush()
        os.fsync(file.fileno())
    if not ends:
        raise InputError(f"source '{name}' is empty: it has no document with text; give it some")
    write_atomically(folder / DOCUMENTS, np.array(ends, dtype=np.uint64).tobytes())
    index = {
        "tokenizer": tokenizer.identity,
        "dtype": np.dtype(kind).name,
        "num_tokens": num_tokens,
        "num_documents": len(ends),
        **source,
        "sha256": {name: sha256(folder / name) for name in (TOKENS, DOCUMENTS)},
    }
    write_atomically(folder / INDEX, json.dumps(index, indent=2).encode())


def open_tokens(folder: Path, tokenizer: Tokenizer, verify: bool = True) -> TokenFile:
    """A token file, mapped into memory.

    Raises InputError where it is missing, cut short, made with another tokenizer, or (with ``verify``, which reads
    all of it once) where a byte of it has changed.
    """
    mend = "remove the folder and prepare the data again"
    try:
        index = json.loads((folder / INDEX).read_bytes())
        identity, kind, checksums = index["tokenizer"], np.dtype(index["dtype"]), index["sha256"]
        origin = dict(index["origin"])
        sizes = {TOKENS: index["num_tokens"] * kind.itemsize, DOCUMENTS: index["num_documents"] * 8}
        if kind not in (np.uint16, np.uint32) or not all(isinstance(checksums[name], str) for name in sizes):
            raise ValueError
    except FileNotFoundError:
        raise InputError(f"{folder}: holds no tokens; prepare the data first") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{folder / INDEX}: is not an index of tokens; {mend}") from None
    if identity != tokenizer.identity:
        raise InputError(
            f"{folder}: was made with another tokenizer ({identity[:12]}, not {tokenizer.identity[:12]}); {mend}, "
            "or name the tokenizer it was made with"
        )
    for name, size in sizes.items():
        found = (folder / name).stat().st_size if (folder / name).exists() else 0
        if found != size:
            raise InputError(f"{folder / name}: has {found} bytes, not {size}; {mend}")
        if verify and sha256(folder / name) != checksums[name]:
            raise InputError(f"{folder / name}: its checksum has changed since it was written; {mend}")
    return TokenFile(
        np.memmap(folder / TOKENS, dtype=kind, mode="r"),
        np.memmap(folder / DOCUMENTS, dtype=np.uint64, mode="r"),
        hashlib.sha256("".join(checksums[name] for name in sizes).encode()).hexdigest(),
        origin,
        str(index.get("fingerprint", "")),
    )
