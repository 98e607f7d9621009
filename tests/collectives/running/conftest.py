"""Starts several gloo ranks on this machine."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
Outcome = dict[str, list[str]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every case of ``SUBJECT_cases.py`` is one of ``test_SUBJECT.py``: none runs whose outcome nobody reads."""
    if {"four_ranks", "case"} <= {*metafunc.fixturenames}:
        source = (HERE / f"{_cases_of(metafunc.definition.path)}.py").read_text(encoding="utf-8")
        metafunc.parametrize("case", re.findall(r"^def (case_\w+)", source, re.MULTILINE))


def _cases_of(test: Path) -> str:
    return test.stem.removeprefix("test_") + "_cases"


@pytest.fixture(scope="module")
def four_ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Each case of ``SUBJECT_cases.py`` for ``test_SUBJECT.py`` on four ranks: "passed" of each rank or a traceback."""
    folder = tmp_path_factory.mktemp("four_ranks")
    module = _cases_of(request.path)
    command = [sys.executable, str(HERE / "gloo_cases.py"), "4", str(folder), module]
    errors = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False).stderr[-2000:]
    outcome: Outcome = {}
    for rank in range(4):
        path = folder / f"outcome{rank}.json"
        for case, text in (json.loads(path.read_text()) if path.exists() else {"start": errors}).items():
            outcome.setdefault(case, []).append(text)
    return outcome
