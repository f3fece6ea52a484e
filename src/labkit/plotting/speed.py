"""How many times as fast something is, against how many tokens go through it at a time."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from labkit.errors import LabkitError
from labkit.plotting.style import GREY, STYLE, finished, look, mark, panel_grid

_TICKS = {1 / n: f"1/{n}×" for n in (64, 32, 16, 8, 4, 2)} | {n: f"{n:g}×" for n in (0.75, 1, 1.25, 1.5, 2, 4, 8, 16)}


def speed(faster: pd.DataFrame) -> Figure:
    """Speed-up against tokens at a time, a panel for each way of running and a line for each part of a model.

    Parameters
    ----------
    faster : frame with the columns way, part, tokens, median, min and max: how many times as fast, of several timings.
        Bars run from the least to the most of them. Both axes are logarithmic, so that twice and half are as far from 1.

    Raises
    ------
    LabkitError
        Nothing to draw.
    """
    parts = _parts(faster)
    panels = faster.groupby("way", sort=False)
    with plt.rc_context(STYLE):
        figure, grid = panel_grid(panels.ngroups, 2, width=3.4, height=2.6)
        for axes, (way, panel) in zip(grid, panels, strict=True):
            axes.set_title(way, loc="left", fontweight="bold", fontsize=9)
            axes.axhline(1, color=GREY, linewidth=0.8, zorder=1)
            for number, part in enumerate(parts):
                line, (colour, marker, style) = panel[panel["part"] == part], look(number)
                axes.plot(line["tokens"], line["median"], color=colour, marker=marker, linestyle=style, markersize=4)
                axes.vlines(line["tokens"], line["min"], line["max"], color=colour, linewidth=1.2, alpha=0.6)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=2)
            axes.yaxis.set_minor_locator(NullLocator())
            axes.set_xticks(tokens := sorted(panel["tokens"].unique()), tokens)
            low, high = axes.get_ylim()
            ticks = {times: label for times, label in _TICKS.items() if low <= times <= high}
            axes.set_yticks(list(ticks), ticks.values())
        figure.supxlabel("tokens at a time", fontsize=9)
        figure.supylabel("times as fast as dense", fontsize=9)
        key = [mark(number, part) for number, part in enumerate(parts)]
        figure.legend(handles=key, loc="outside upper center", ncols=min(3, len(key)), frameon=False, fontsize=8.5)
    return finished(figure)


def speed_alt(faster: pd.DataFrame) -> str:
    """The figure of `speed` in words: for each way the least and the most of every part's medians."""
    told = []
    for way, panel in faster.groupby("way", sort=False):
        medians = panel.groupby("part")["median"].agg(["min", "max"])
        ranges = ", ".join(f"{part} {medians['min'][part]:.2f} to {medians['max'][part]:.2f}" for part in _parts(panel))
        told.append(f"{way}: {ranges}")
    low, high = faster["tokens"].min(), faster["tokens"].max()
    return f"Times as fast as dense, for {low} to {high} tokens at a time (medians). {'; '.join(told)}."


def _parts(faster: pd.DataFrame) -> list[str]:
    if faster.empty:
        raise LabkitError("a figure of speed has timings", "none", "Time something first.")
    return list(dict.fromkeys(faster["part"]))
