"""The roofline figure of a kernel benchmark: what each op reaches of the device's own copy, by the bytes it moves."""

from pathlib import Path
from typing import Any

from flopcast.errors import InputError
from flopcast.files import replacing

_COLOURS = {"flopcast": "C3", "torch": "C0", "compiled": "C2", "liger": "C1", "quack": "C4", "eager": "0.6"}


def draw(result: dict[str, Any], path: Path) -> None:
    """One panel per op and pass: bytes moved (MB) against bandwidth (TB/s), the copy and the datasheet as ceilings.

    ``result`` is what :func:`flopcast.kernels.benchmark.run` returned; the format is the suffix of ``path``.
    """
    from matplotlib.figure import Figure

    rows = [row for row in result["rows"] if row.get("bytes_per_s") and row["pass"] in ("forward", "backward")]
    if not rows:
        raise InputError("the benchmark has no row with a bandwidth; nothing to draw")
    panels = list(dict.fromkeys((row["op"], row["pass"]) for row in rows))
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.9 * lines), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel, axis in zip(panels, axes, strict=False):
        _panel(axis, [row for row in rows if (row["op"], row["pass"]) == panel])
        axis.set_title(f"{panel[0]} {panel[1]}", fontsize=9)
        axis.axhline(result["copy_bytes_per_s"] / 1e12, color="k", linewidth=0.8, label="measured copy")
        stated = next((r["bytes_per_s"] / r["of_datasheet"] for r in rows if r.get("of_datasheet")), None)
        if stated:
            axis.axhline(stated / 1e12, color="k", linewidth=0.8, linestyle=":", label="datasheet")
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    figure.suptitle(f"{result['environment']['device']}, {result['environment']['date'][:10]}", fontsize=10)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _panel(axis: Any, rows: list[dict[str, Any]]) -> None:
    for provider, colour in _COLOURS.items():
        mine = sorted((row["bytes"], row["bytes_per_s"]) for row in rows if row["provider"] == provider)
        if mine:
            axis.plot([b / 1e6 for b, _ in mine], [v / 1e12 for _, v in mine], "o", color=colour, ms=3, label=provider)
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("MB that must move", fontsize=8)
    axis.set_ylabel("TB/s", fontsize=8)
    axis.tick_params(labelsize=7)
