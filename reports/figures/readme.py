"""The README's figure: strategies for PLaMo-13B on 480 A100-40GB.

``python -m flopcast.reports.figures.readme docs/figures/plamo-13b-strategies.svg`` draws it. Its description holds the
numbers drawn, so that a test can tell when the forecast has moved on.
"""

import sys
from pathlib import Path

from flopcast.reports.document.study import Study, study
from flopcast.reports.figures.canvas import save
from flopcast.reports.figures.strategies import strategies_figure
from flopcast.simulator.catalogue import load_cluster, load_model
from flopcast.simulator.request import Request


def asked() -> Study:
    """What the figure shows."""
    return study(load_model("plamo-13b"), load_cluster("abci-a"), Request(480))


def description(found: Study) -> str:
    """The numbers drawn, in words."""
    return ", ".join(f"{row.strategy} {row.step_s:.2f} ({row.low_s:.2f}-{row.high_s:.2f}) s" for row in found.ranked)


def draw(path: Path) -> None:
    """Write the figure as SVG, the same bytes for the same forecast and the same matplotlib."""
    found = asked()
    figure = strategies_figure(found.strategies)
    save(figure, path, Description=description(found))


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
