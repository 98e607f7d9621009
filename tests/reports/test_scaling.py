"""Scaling and sensitivity against forecasts made by hand."""

from dataclasses import replace

import pytest

from flopcast import Request, compare, load_cluster, load_model
from flopcast.reports.explain import recommended
from flopcast.reports.scaling import gpu_counts, scaling
from flopcast.reports.sensitivity import sensitivity
from flopcast.simulator.catalogue import generic_cluster
from flopcast.simulator.goodput import run_cost

TOKENS = 1e11


def test_counts_run_from_a_node_to_ten_times_what_was_asked() -> None:
    cluster = load_cluster("abci-a")
    assert gpu_counts(480, cluster) == [8, 16, 32, 64, 128, 256, 480, 960, 2400, 4800]
    assert gpu_counts(8, cluster) == [8, 16, 40, 80]
    assert gpu_counts(4, cluster) == [4, 8, 16, 24, 40]
    assert gpu_counts(1, cluster) == [1, 2, 4, 8, 16]
    assert gpu_counts(4, replace(cluster, nics_per_node=0, nic_bytes_per_s=0.0, num_nodes=1)) == [1, 2, 4, 8]


def test_each_count_is_a_comparison_at_the_same_global_batch() -> None:
    model, cluster, request = load_model("plamo-13b"), load_cluster("abci-a"), Request(480)
    asked = compare(model, cluster, request)
    frame, left_out = scaling(model, cluster, request, asked, TOKENS)
    assert left_out == {}
    here = frame[frame["num_gpus"] == 480].set_index("strategy")
    for row in asked.rows:
        assert here.loc[row.strategy, "step_s"] == row.step_s
    double = compare(model, cluster, Request(960, tokens_per_gpu=4096))
    there = frame[frame["num_gpus"] == 960].set_index("strategy")
    assert there.loc["zero3", "step_s"] == next(row.step_s for row in double.rows if row.strategy == "zero3")
    assert (frame.set_index("num_gpus")["tokens_per_step"].loc[960] == 960 * 4096).all()
    assert not frame[frame["num_gpus"] == 2400]["available"].any()
    best = frame[frame["recommended"]]
    assert best["fits"].all()
    assert list(best["num_gpus"]) == sorted(set(frame[frame["fits"]]["num_gpus"]))
    assert best["days"].is_monotonic_decreasing
    assert best.set_index("num_gpus").loc[960, "strategy"] == recommended(double.rows).strategy


def test_the_batch_divides_into_micro_batches_at_every_count() -> None:
    model, cluster, request = load_model("gpt2-xl"), load_cluster("dgx-h100"), Request(48, strategies=["zero1"])
    frame, _ = scaling(model, cluster, request, compare(model, cluster, request), TOKENS)
    for count, tokens in zip(frame["num_gpus"], frame["tokens_per_step"], strict=True):
        sequences = tokens // (count * model.context)
        assert len(f"{sequences:b}".rstrip("0")) <= 4


def test_a_change_is_a_comparison_on_the_changed_cluster() -> None:
    model, cluster, request = load_model("plamo-13b"), load_cluster("abci-a"), Request(480)
    asked = compare(model, cluster, request)
    frame = sensitivity(model, cluster, request, asked, TOKENS).set_index(["figure", "change"])
    faster = replace(cluster, nic_bytes_per_s=2 * cluster.nic_bytes_per_s)
    best = recommended(compare(model, faster, request).rows)
    row = frame.loc[("network of a node", "twice")]
    assert (row["strategy"], row["step_s"], row["value"]) == (best.strategy, best.step_s, "1,600 Gbit/s")
    days = [run_cost(model, machine, recommended(compare(model, machine, request).rows), TOKENS).days
            for machine in (faster, cluster)]  # fmt: skip
    assert row["days"] == pytest.approx(days[0])
    assert row["ratio"] == pytest.approx(days[0] / days[1])
    cards = frame.loc[("memory of a GPU", "twice")]
    assert cards["value"] == "80 GiB"
    assert cards["days"] <= days[1]
    assert frame.loc[("peak of a GPU", "twice"), "ratio"] < 1 < frame.loc[("peak of a GPU", "half"), "ratio"]


def test_a_batch_that_cannot_be_halved_says_why() -> None:
    model, cluster, request = load_model("plamo-13b"), load_cluster("abci-a"), Request(960, strategies=["zero3"])
    asked = compare(model, cluster, request)
    frame = sensitivity(model, cluster, request, asked, TOKENS).set_index(["figure", "change"])
    row = frame.loc[("global batch", "half")]
    assert row["days"] != row["days"]
    assert "sequence" in row["why_not"]


def test_the_peak_counts_where_products_were_measured_too() -> None:
    model, machine, request = load_model("llama-2-7b"), generic_cluster("mi300x"), Request(8, strategies=["zero1"])
    frame = sensitivity(model, machine, request, compare(model, machine, request), TOKENS)
    ratios = frame[frame["figure"] == "peak of a GPU"].set_index("change")["ratio"]
    assert ratios["half"] > 1.5
    assert ratios["twice"] < 0.75
