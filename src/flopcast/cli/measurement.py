"""The command that measures a machine, so that a forecast becomes the machine's own."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flopcast.cli.app import Flag, app
from flopcast.cli.output import check_place, print_json
from flopcast.errors import InputError


@app.command
def profile(
    *,
    output: Annotated[Path, Parameter(name=["-o", "--output"])] = Path("profile.json"),
    quick: Flag = False,
    cluster: str = "",
    kinds: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    merge: Annotated[list[Path] | None, Parameter(consume_multiple=True, negative="")] = None,
    json: Flag = False,
) -> None:
    """Measure this machine, alone or under torchrun: what --cluster of every other command then accepts as a cluster.

    Matrix products, attention, copies, launches, the optimizer, memory-bound kernels and, on two ranks or more,
    collectives, on every rank at the same time. An interrupted profile goes on where it stopped.

    Parameters
    ----------
    output
        The file to write.
    quick
        Fewer and smaller shapes: under a minute on a CPU.
    cluster
        Catalogue name or TOML file of the cluster the machine belongs to: says what is not measured.
    kinds
        gemm, attention, copy, launch, optimizer, kernel, collective; by default all.
    merge
        Instead of measuring: profiles of several nodes to put into one, naming the nodes that stand out.
    json
        Print the profile and nothing else.

    """
    from flopcast.simulator.odd_devices import odd_devices
    from flopcast.simulator.profile import KINDS, read_profile, write_profile
    from flopcast.simulator.profile import merge as merged
    from flopcast.simulator.profile_words import scattered

    check_place("--output", output)
    if merge:
        stray = [name for name, value in (("quick", quick), ("cluster", cluster), ("kinds", kinds)) if value]
        if stray:
            raise InputError(f"profile --merge takes no --{stray[0]}, for nothing is measured; leave it out")
        found = merged([read_profile(path) for path in merge], [str(path) for path in merge])
        write_profile(output, found)
    else:
        from flopcast.trainer.installed import require_torch

        require_torch()
        from flopcast.trainer.profile import profile as measure

        measured = measure(output, quick=quick, kinds=kinds or KINDS, cluster=cluster, quiet=json)
        if measured is None:  # only rank 0 reports
            return
        found = measured
    if json:
        print_json(found.model_dump(mode="json", exclude_defaults=True))
    else:
        from flopcast.reports.profile_table import summary

        for line in summary(found):
            print(line)
    for sentence in (scattered(found), *(odd.sentence() for odd in odd_devices(found))):
        if sentence:
            print(f"flopcast: {sentence}", file=sys.stderr)
    print(f"flopcast: wrote {output}", file=sys.stderr)
