"""What all figures share: colours, panels, and words for conditions and ranges."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

COLOURS = sns.color_palette("colorblind")
MARKERS = "oD^svPX*"
GREY = "0.35"
STYLE = {**sns.axes_style("white"), "font.size": 9, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8}
STYLE["text.parse_math"] = False  # names are text, whatever is in them


def condition(compression: str, sparsity: float) -> str:
    """What was done to a model, in words: "wanda 50 %", "wanda 2:4", "drop-layers keep 1"."""
    return f"{compression} {100 * sparsity:.3g} %" if sparsity and ":" not in compression else compression


def mark(number: int, label: str) -> Line2D:
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    return Line2D([], [], color=colour, marker=marker, markersize=4.5, linestyle="", label=label, zorder=3)


def look(number: int) -> tuple:
    """Colour, marker and line of one of several lines, as `draw_retentions` takes them."""
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)], "-"


def hollow() -> Line2D:
    """What a legend says of marks that are not filled."""
    return Line2D([], [], color="0.2", marker="o", linestyle="", fillstyle="none", label="hollow: undecided")


def panel_grid(panels: int, columns: int, width: float, height: float) -> tuple[Figure, Iterator[Axes]]:
    """A figure with as many axes as panels, in inches each; those below an empty place keep their tick labels."""
    columns = min(columns, panels)
    lines = -(-panels // columns)
    size = (width * columns + 0.6, height * lines + 0.9)
    figure, grid = plt.subplots(lines, columns, figsize=size, sharex=True, squeeze=False, layout="constrained")
    for empty in grid.flat[panels:]:
        empty.remove()
    for number, axes in enumerate(grid.flat[:panels]):
        axes.tick_params(labelbottom=number + columns >= panels, bottom=True, left=True, length=2.5)
        sns.despine(ax=axes)
    return figure, grid.flat[:panels]


def draw_retentions(
    axes: Axes, x: pd.Series, line: pd.DataFrame, hollow: pd.Series, frame: tuple[float, float], look: tuple
) -> None:
    """A line through retentions at `x`, with the bars of their intervals; what lies beyond the frame is an arrowhead at it.

    `line` has retention, low and high; `look` is (colour, marker, line style).
    """
    colour, marker, style = look
    axes.plot(x, line["retention"].clip(*frame), color=colour, linestyle=style, linewidth=1.2, zorder=2)
    axes.vlines(x, line["low"].clip(*frame), line["high"].clip(*frame), color=colour, linewidth=1.2, alpha=0.6, zorder=2)
    for place, value, empty in zip(x, line["retention"], hollow, strict=True):
        inside = frame[0] <= value <= frame[1]
        shape = marker if inside else "v" if value < frame[0] else "^"
        axes.plot([place], [np.clip(value, *frame)], shape, color=colour, markerfacecolor="white" if empty else colour,
                  markersize=4, clip_on=False, zorder=3)  # fmt: skip


def finished(figure: Figure) -> Figure:
    """The figure, forgotten by pyplot: a notebook shows it where it is returned, once, and none pile up."""
    plt.close(figure)
    return figure


def ends(values: pd.Series) -> tuple[float, float]:
    return values.min(), values.max()


def span(values: pd.Series) -> str:
    low, high = ends(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
