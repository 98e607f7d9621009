"""Two reports: the question of PLaMo-13B with a price, and one whose every name is hostile."""

from dataclasses import replace
from datetime import date

import pytest
from builders import cluster, small_model

from flopcast import Request, load_cluster, load_model
from flopcast.reports.document.study import study
from flopcast.reports.document.write import Report
from flopcast.simulator.cluster import Costs

SCRIPT = "<script>alert('%s')</script>"
DAY = date(2025, 4, 1)


@pytest.fixture(scope="session")
def report() -> Report:
    costs = Costs(gpu_hour_price=1.5, node_mtbf_hours=9000.0)
    return Report(
        study(load_model("plamo-13b"), replace(load_cluster("abci-a"), costs=costs), Request(480)),
        "flopcast report plamo-13b",
        DAY,
    )


@pytest.fixture(scope="session")
def hostile() -> Report:
    model = replace(small_model(), name=SCRIPT % "model", source=SCRIPT % "source", assumptions=(SCRIPT % "model is",))
    machine = cluster()
    machine = replace(
        machine,
        name='"><img src=x onerror=alert(1)>|`*$x_1$*`',
        gpu=replace(machine.gpu, name="</title></style>" + SCRIPT % "gpu"),
        assumptions=("<b>node</b> | assumed",),
        sources={"node": "</td></table>" + SCRIPT % "node"},
    )
    return Report(study(model, machine, Request(16)), "flopcast report '<script>.json'", DAY)
