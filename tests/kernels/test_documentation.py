import doctest
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "kernels.md"


def test_the_examples_give_what_they_show():
    found = doctest.testfile(str(DOCUMENT), module_relative=False)
    assert found.attempted > 8
    assert found.failed == 0
