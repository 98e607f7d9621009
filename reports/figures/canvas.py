"""What every figure of a report shares: one width, the style sheet, and colours with a meaning."""

from contextlib import AbstractContextManager
from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flopcast.errors import InputError
from flopcast.files import replacing

STYLE = Path(__file__).with_name("style.mplstyle")
WIDTH = 8.0  # inches: text of 13 points stays readable at half that
BAR = 0.38  # inches of height per bar

# Okabe and Ito (2008), which colour-blind readers tell apart.
BLUE, ORANGE, GREEN, VERMILION = "#0072b2", "#e69f00", "#009e73", "#d55e00"
PURPLE, SKY, YELLOW = "#cc79a7", "#56b4e9", "#f0e442"
INK, GREY, PAPER = "#000000", "#888888", "#ffffff"
# Of series, in their order.
SERIES = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)


def blank(height: float, columns: int = 1, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of the common width, ``height`` inches high, with its axes side by side; use within :data:`STYLE`."""
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False, sharey=share_y)
    return figure, list(axes[0])


def rows_from_the_top(axes: Axes, labels: list[str]) -> None:
    """Name the rows of a chart of bars, the first on top, with a faint grid behind them."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=GREY, alpha=0.3, linewidth=0.8)
    axes.set_axisbelow(True)


def save(figure: Figure, path: Path, **metadata: str) -> None:
    """Write a figure whole or not at all, without date and chance names in it; the file's ending says as what.

    Raises InputError for an ending that matplotlib does not know or a place it cannot write to. ``metadata``: what an
    SVG says of itself besides.
    """
    FigureCanvasAgg(figure)
    kind = path.suffix.lower().lstrip(".")
    dates = {"svg": "Date", "pdf": "CreationDate"}
    dateless = {dates[kind]: None} if kind in dates else {}
    try:
        with in_style(), replacing(path) as temporary:
            figure.savefig(temporary, format=kind or None, metadata=dateless | metadata)
    except (OSError, ValueError) as error:
        raise InputError(f"figure {path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error


def in_style() -> AbstractContextManager[None]:
    """The style sheet, for a ``with`` statement."""
    return style.context(STYLE)
