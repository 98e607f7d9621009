"""What a cluster, a GPU and its costs refuse: a what-if by dataclasses.replace is held to what a file is held to."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flopcast import InputError, Plan, forecast, load_cluster, load_model

CLUSTER = load_cluster("abci-a")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"gpu": "h100-80gb"}, "cluster 'ABCI-A': gpu is 'h100-80gb'; give a Gpu"),
        ({"gpus_per_node": "8"}, "cluster 'ABCI-A': gpus_per_node is '8'; it must be a whole number of at least 1"),
        ({"gpus_per_node": 0}, "gpus_per_node is 0; it must be"),
        ({"nics_per_node": 2.5}, "nics_per_node is 2.5; it must be a whole number of at least 0"),
        ({"num_nodes": math.nan}, "num_nodes is nan; it must be"),
        ({"nvlink_bytes_per_s": "300 GB/s"}, "nvlink_bytes_per_s is '300 GB/s'; it must be a positive number$"),
        ({"nic_bytes_per_s": -25e9}, "nic_bytes_per_s is -25000000000.0; it must be a positive number, or 0"),
        ({"nvswitch": None}, "nvswitch is None; it must be True or False"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(CLUSTER, **fields)


@pytest.mark.parametrize("name", ["tensor_flop_per_s", "memory_bytes", "memory_bytes_per_s", "power_w"])
@pytest.mark.parametrize("value", [math.nan, -1.0, 0, None, "312e12", True])
def test_a_gpu_that_cannot_be_is_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"GPU 'a100-40gb': {name} is .*; it must be a positive number"):
        replace(CLUSTER.gpu, **{name: value})


def test_costs_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="costs: gpu_hour_price is -2; it must be a positive number"):
        replace(CLUSTER.costs, gpu_hour_price=-2)


def test_figures_may_be_of_numpy() -> None:
    plan = Plan("ddp", 16, 2048)
    model = load_model("pythia-1b")
    half = replace(CLUSTER, nics_per_node=np.int8(2), gpu=replace(CLUSTER.gpu, tensor_flop_per_s=np.float64(156e12)))
    assert type(half.nics_per_node) is int
    assert type(half.gpu.tensor_flop_per_s) is float
    assert forecast(model, half, plan).row(0).step_s > forecast(model, CLUSTER, plan).row(0).step_s
