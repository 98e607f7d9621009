"""The documentation beside the program: API page (UPDATE_EXAMPLES=1 rewrites it), links, cluster files, index."""

import ast
import inspect
import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flopcast
from flopcast.simulator.specification.cluster import (
    ClusterTable,
    NetworkTable,
    NodeTable,
    OperationTable,
    parse_cluster,
)
from flopcast.simulator.specification.gpu import GpuTable

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md"), ROOT / "notebooks" / "README.md"])
WIDTH = 100
API = re.compile(r"<!-- api -->\n(.*)<!-- /api -->", re.DOTALL)


def markdown(docstring: str | None) -> str:
    """A docstring's markup as Markdown's."""
    text = re.sub(r"``([^`]+)``", r"`\1`", inspect.cleandoc(docstring or ""))
    return re.sub(r":(?:func|class|data|attr|meth):`~?([^`]+)`", r"`\1`", text)


def parameters(value: Any) -> list[str]:
    """Of a function or a class, each parameter as the source has it: the text does not hang on a version of Python."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(value))).body
    if isinstance(node, ast.ClassDef):
        made = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        if not made:
            fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
            return [parameter(ast.unparse(f.target), f.annotation, f.value) for f in fields]
        node = made[0]
    assert isinstance(node, ast.FunctionDef)
    called = [a for a in node.args.args if a.arg != "self"]
    defaults = [None] * (len(called) - len(node.args.defaults)) + node.args.defaults
    found = [parameter(a.arg, a.annotation, default) for a, default in zip(called, defaults, strict=True)]
    return found + (
        [parameter(f"**{node.args.kwarg.arg}", node.args.kwarg.annotation, None)] if node.args.kwarg else []
    )


def type_name(annotation: ast.expr) -> str:
    return str(annotation.value) if isinstance(annotation, ast.Constant) else ast.unparse(annotation)


def returns(value: Any) -> str:
    """What a function gives."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(value))).body
    given = isinstance(node, ast.FunctionDef) and node.returns
    return f" -> {type_name(given)}" if given else ""


def parameter(name: str, annotation: ast.expr | None, default: ast.expr | None) -> str:
    assert annotation is not None
    kind = type_name(annotation)
    if isinstance(default, ast.Call):  # dataclasses.field(default=...)
        default = next((keyword.value for keyword in default.keywords if keyword.arg == "default"), default)
    shown = default and ("..." if isinstance(default, ast.Call | ast.Lambda) else ast.unparse(default))
    return f"{name}: {kind}" + (f" = {shown}" if shown else "")


def signature(name: str, value: Any) -> str:
    """How it is called, on one line or with a line per parameter."""
    found = parameters(value)
    line = f"{name}({', '.join(found)}){returns(value)}"
    each = "".join(f"    {one},\n" for one in found)
    return line if len(line) <= WIDTH else f"{name}(\n{each}){returns(value)}"


def members(value: type) -> Iterator[str]:
    """Public properties and methods of a class with the first sentence of each."""
    for name, member in vars(value).items():
        function = getattr(member, "fget", None) or getattr(member, "func", None) or getattr(member, "__func__", member)
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        call = "()" if inspect.isfunction(member) or isinstance(member, classmethod | staticmethod) else ""
        yield f"* `{name}{call}`: {markdown(function.__doc__).splitlines()[0]}"


def entries() -> Iterator[str]:
    for name in sorted(flopcast.__all__, key=str.lower):
        value = getattr(flopcast, name)
        yield f"## {name}\n"
        if not (inspect.isclass(value) and issubclass(value, Exception)):
            yield f"```python\n{signature(name, value)}\n```\n"
        yield f"{markdown(value.__doc__)}\n"
        if inspect.isclass(value) and (found := list(members(value))):
            yield "\n".join(found) + "\n"


def test_the_api_page_is_what_the_docstrings_say() -> None:
    page = DOCS / "api.md"
    text, expected = page.read_text(encoding="utf-8"), "\n".join(entries())
    if os.environ.get("UPDATE_EXAMPLES"):
        page.write_text(API.sub(lambda _: f"<!-- api -->\n{expected}<!-- /api -->", text), encoding="utf-8")
        return
    found = API.search(text)
    assert found is not None
    assert found[1] == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize(
    "name", ["README.md", "docs/api.md", "docs/report.md", "docs/timeline.md", "docs/which-strategy.md"]
)
def test_python_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(from .*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, name, "exec"), {})  # noqa: S102 - our own pages


def test_the_index_leads_to_every_page() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in DOCS.glob("*.md") if page.name != "README.md" and f"({page.name})" not in index] == []


def test_cluster_files_of_the_documentation_are_read() -> None:
    texts = [block for page in PAGES for block in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)]
    clusters = [parse_cluster(text, "documentation") for text in texts if "[node]" in text]
    assert len(clusters) >= 2
    assert {cluster.gpus_per_node for cluster in clusters} == {4, 8}


def test_mistakes_are_answered_as_shown() -> None:
    page = (DOCS / "cluster-files.md").read_text(encoding="utf-8")
    (text, *_) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    wrong = text.replace('nvlink = "300 GB/s"', "nvlink = 300").replace('"infiniband"', '"infinband"')
    with pytest.raises(flopcast.InputError) as caught:
        parse_cluster(wrong, "my.toml")
    assert f"flopcast: {caught.value}" in " ".join(page.split())


def test_every_field_of_a_cluster_file_is_explained() -> None:
    page = (DOCS / "cluster-files.md").read_text(encoding="utf-8")
    tables = {"node": NodeTable, "network": NetworkTable, "operation": OperationTable}
    names = [f"{name}.{field}" for name, table in tables.items() for field in table.model_fields if field != "source"]
    names += [field for field in ClusterTable.model_fields if field not in (*tables, "gpu", "source")]
    assert [name for name in names if f"| `{name}` |" not in page] == []
    assert [field for field in GpuTable.model_fields if f"\n{field} = " not in page] == []
