"""The figure of the experiments: loss curves with their spread over seeds, and paired gaps to the base."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flopcast.files import write_atomically
from flopcast.trainer.experiments import BASE, Gap, smoothed

# Okabe and Ito's palette, which colour-blind readers tell apart.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")


def draw(losses: Mapping[str, NDArray[np.float64]], gaps: Sequence[Gap], path: Path) -> None:
    """``losses``: [seeds, steps] per variant. Lines are means over seeds, bands run from the least to the most."""
    num_seeds, num_steps = losses[BASE].shape
    window = max(num_steps // 15, 1)
    places = np.arange(window, num_steps + 1)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for (variant, curve), colour in zip(losses.items(), COLOURS, strict=False):
        _band(left, places, smoothed(curve, window), variant, colour)
        if variant != BASE:
            found = next(gap.training for gap in gaps if gap.variant == variant)
            spread = "" if found.gap_std is None else f" ± {found.gap_std:.4f}"
            label = f"{variant}: {found.gap:+.4f}{spread} at the end"
            _band(right, places, smoothed(curve - losses[BASE], window), label, colour)
    right.axhline(0, color=COLOURS[0], linewidth=0.8)
    left.set_title("training loss")
    right.set_title("loss minus the base of the same seed")
    left.set_ylabel("cross entropy (nats per token)")
    for axes in (left, right):
        axes.set_xlabel(f"optimizer step (mean of {window} steps)")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{num_seeds} seeds; line: mean, band: least to most", fontsize=10)
    image = io.BytesIO()
    figure.savefig(image, dpi=150, format="png", metadata={"Software": None})
    write_atomically(path, image.getvalue())


def _band(axes: object, places: NDArray[np.int64], curve: NDArray[np.float64], label: str, colour: str) -> None:
    axes.plot(places, curve.mean(axis=0), color=colour, label=label, linewidth=1.3)  # type: ignore[attr-defined]
    axes.fill_between(places, curve.min(axis=0), curve.max(axis=0), color=colour, alpha=0.15, linewidth=0)  # type: ignore[attr-defined]
