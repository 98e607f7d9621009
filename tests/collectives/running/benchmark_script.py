"""``torchrun benchmark_script.py FOLDER``: every collective of the benchmark at two sizes, report and table."""

import sys
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from flopcast.collectives import Fabric, architecture_code, fabric_code
from flopcast.collectives.running import results
from flopcast.collectives.running.benchmark import Options, machine, run
from flopcast.collectives.running.cases import CASES
from flopcast.collectives.running.forecasts import Machine


def main() -> None:
    folder = Path(sys.argv[1])
    fabric = Fabric(
        architecture=architecture_code("ampere"),
        nvlink_bytes_per_s=300e9,
        nvswitch=True,
        nics_per_node=4,
        nic_bytes_per_s=25e9,
        fabric=fabric_code("infiniband"),
        gpus_per_node=8,
    )
    shown: list[str] = []
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for dtype in ("float", "bfloat16"):
        options = Options(tuple(CASES), begin=4, end=64 * 1024, factor=1024, iterations=5, dtype=dtype)
        report = run(options, Machine(fabric), show=shown.append)
        if report is not None:
            results.write_json(folder / f"{dtype}.json", report.as_json())
            results.write_csv(folder / f"{dtype}.csv", results.records(report.rows, machine(report)))
    dist.destroy_process_group()
    if shown:
        (folder / "table.txt").write_text("\n".join(shown) + "\n")


if __name__ == "__main__":
    main()
