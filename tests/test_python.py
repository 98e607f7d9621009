"""The public names as one meets them in a notebook: completion, short texts, tables."""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest

import flopcast
from flopcast import Comparison, Request, SearchRequest, compare, forecast, load_cluster, load_model, run_cost, search
from flopcast.simulator.plan import Plan


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare(load_model("pythia-1b"), load_cluster("abci-a"), Request(16))


def test_completion_offers_every_public_name() -> None:
    assert set(flopcast.__all__) <= set(dir(flopcast))
    for name in flopcast.__all__:
        assert getattr(flopcast, name).__doc__


def test_the_version_needs_no_package_metadata() -> None:
    """A checkout on the path of another machine has none: there the measurements of a GPU are made."""
    hidden = "import importlib.metadata as m; f = m.version; m.version = lambda n: {}[n] if n == 'flopcast' else f(n)"
    read = "import flopcast; from flopcast.collectives.running.surroundings import versions"
    lines = f"{hidden}\n{read}\nassert versions()['flopcast'] == flopcast.__version__\nprint(flopcast.__version__)"
    found = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == version("flopcast")


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda m, c: compare("llama-7b", c, Request(16)), r"model is 'llama-7b'; give a Model, e\.g\. load_model"),
        (lambda m, c: compare(m, "abci-a", Request(16)), r"cluster is 'abci-a'; give a Cluster, e\.g\. load_cluster"),
        (lambda m, c: search("llama-7b", c, SearchRequest([16])), "give a Model"),
        (lambda m, c: forecast(m, "abci-a", Plan("ddp", 16, 2048)), "give a Cluster"),
        (lambda m, c: compare(m, c, Request("16")), "give one whole number"),
        (lambda m, c: compare(m, c, Request(64, seq_len=2048.0)), "--seq-len is 2048.0; it must be a whole number"),
        (lambda m, c: compare(m, c, Request(64, strategies=[None])), r"strategies is \[None\]; give a list of names"),
        (
            lambda m, c: search(m, c, SearchRequest([16], fixed={"pp": 1})),
            r"fixed pp is 1; give a list of values, \[1\]",
        ),
        (lambda m, c: search(m, c, SearchRequest([16], fixed={"pp": ["1"]})), "--fix pp=1: it must be a whole number"),
        (lambda m, c: search(m, c, SearchRequest([16], global_batch_tokens="4M")), "--global-batch-tokens is '4M'"),
        (lambda m, c: search(m, c, SearchRequest(["16"])), "give one whole number"),
        (lambda m, c: search(m, c, SearchRequest("16")), "--gpus is '16'; give a list"),
        (lambda m, c: search(m, c, SearchRequest([16], fixed=None)), "fixed is None; give lists of values by field"),
        (lambda m, c: search(m, c, SearchRequest([16], fixed={3: [1]})), "fixed has 3; give names of a plan's fields"),
        (lambda m, c: search(m, c, SearchRequest([16], fixed={"tp": []})), "fixed tp is empty; give at least one"),
        (lambda m, c: search(m, c, SearchRequest([16], objective=["time"])), r"--objective is '\['time'\]'; choose of"),
        (lambda m, c: search(m, c, SearchRequest([16], memory_margin="8%")), "--memory-margin is '8%'; give a share"),
        (lambda m, c: forecast(m, c, Plan("ddp", 16, 2048), ["6n"]), "convention .* is unknown; choose one of"),
        (lambda m, c: m.check_expert_parallel(0), "ep is 0; it must be a whole number of at least 1"),
        (lambda m, c: run_cost("pythia-1b", c, None, 1e12), "give a Model"),
        (lambda m, c: run_cost(m, c, {"step_s": 1.0}, 1e12), r"row is a dict; give a Row, e\.g\. comparison\.best"),
        (
            lambda m, c: run_cost(m, c, forecast(m, c, Plan("ddp", 16, 2048)).row(0), 1e12, "4.5"),
            "step_s is '4.5'; it must be a positive number of seconds",
        ),
    ],
)
def test_what_is_of_another_type_is_said_in_a_sentence(ask: Callable[[Any, Any], Any], words: str) -> None:
    with pytest.raises(flopcast.InputError, match=words):
        ask(load_model("pythia-1b"), load_cluster("abci-a"))


def test_numbers_of_numpy_ask_as_those_of_python_do(comparison: Comparison) -> None:
    model, cluster = comparison.model, comparison.cluster
    assert compare(model, cluster, Request(np.uint8(16))) == comparison
    fixed = {"tp": np.array([1, 2]), "pp": [np.int32(1)]}
    found = search(model, cluster, SearchRequest([np.int64(16), np.uint8(8)], seq_len=np.int32(2048), fixed=fixed))
    plain = search(model, cluster, SearchRequest([16, 8], seq_len=2048, fixed={"tp": [1, 2], "pp": [1]}))
    assert found.to_frame().equals(plain.to_frame())
    cost = run_cost(model, cluster, comparison.best, np.float32(1e12))
    assert type(cost.days) is float


def test_the_best_is_the_fastest_that_fits(comparison: Comparison) -> None:
    roomy = [row for row in comparison.rows if row.fits and not row.tight]
    assert comparison.best.step_s == min(row.step_s for row in roomy)
    cost = run_cost(comparison.model, comparison.cluster, comparison.best, 1e12)
    assert cost.gpu_hours == pytest.approx(cost.days * 24 * 16)


def test_a_comparison_is_a_table_with_the_plan_and_its_forecast(comparison: Comparison) -> None:
    frame = comparison.to_frame()
    assert list(frame["strategy"]) == [row.strategy for row in comparison.rows]
    assert list(frame["step_s"]) == [row.step_s for row in comparison.rows]
    alone = forecast(comparison.model, comparison.cluster, Plan(**comparison.best.plan)).to_frame()
    assert list(alone.columns) == list(frame.columns)
    assert frame["memory_bytes"].dtype == float
    assert frame["fits"].dtype == bool


def test_results_show_themselves_in_a_line_and_as_a_table(comparison: Comparison) -> None:
    model, cluster = comparison.model, comparison.cluster
    found = search(model, cluster, SearchRequest([8, 16], top=2))
    many = forecast(model, cluster, [Plan(**row.plan) for row in comparison.rows])
    for result, rows in ((comparison, len(comparison.rows)), (many, len(comparison.rows)), (found, 4)):
        assert len(repr(result)) < 120
        assert model.name in repr(result)
        html = result._repr_html_()
        assert html.count("<tr") == rows + 1
        assert "&lt;" in html.partition("<table")[0]
    alone = compare(model, cluster, Request(16, strategies=["ddp"]))
    assert repr(alone) == "<Comparison of 1 strategy: Pythia-1B on 16 x a100-40gb, ABCI-A>"
    assert repr(model) == "<Model Pythia-1B: 16 layers of 2,048, 1,011,781,632 parameters>"
