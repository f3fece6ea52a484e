"""Effective scale: how large a dense model is as able as a compressed one?"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from labkit.errors import LabkitError
from labkit.plotting.style import COLOURS, GREY, MARKERS, STYLE, condition, counted, finished, mark, panel_grid

_SIDES = {"at most": "<", "at least": ">"}


def effective_scale(frame: pd.DataFrame, columns: int = 2) -> Figure:
    """Effective size of every ability under every compression with its 95 % interval, one panel per rung.

    The solid line is the size of the dense parent: a mark on it has lost nothing that size would explain. An arrowhead
    is a bound: even the smallest dense rung is as able ("at most"), or not even the largest ("at least"). Where the
    parents lack the ability the row says so. Abilities that keep most size stand on top.

    Parameters
    ----------
    frame : what `labkit.contrast.effective_scale` returns, of at most eight compressions.
    columns : panels side by side.

    Raises
    ------
    LabkitError
        Nothing to draw, or more compressions than marks.
    """
    frame = _named(frame)
    labels = list(dict.fromkeys(frame["label"]))
    known = frame.assign(log=np.log(frame["share"])).groupby("ability", observed=True)["log"].agg(["count", "mean"])
    abilities = list(known.sort_values(["count", "mean"], ascending=False).index)  # absent everywhere: last
    panels = list(frame.groupby("rung", sort=False, observed=True))
    ends = frame[["params", "effective", "low", "high"]].to_numpy(float)
    limits = np.nanmin(ends) / 1.25, np.nanmax(ends) * 1.25
    with plt.rc_context(STYLE):
        height = 0.6 + len(abilities) * (0.16 + 0.07 * len(labels))
        figure, grid = panel_grid(len(panels), columns, width=3.6, height=height)
        for number, (axes, (rung, panel)) in enumerate(zip(grid, panels, strict=True)):
            axes.set_title(f"rung {rung}", loc="left", fontweight="bold", fontsize=9)
            axes.set_xscale("log")
            axes.axvline(panel["params"].iloc[0], color=GREY, linewidth=0.9, zorder=1)
            _draw(axes, panel, abilities, labels)
            axes.set_xlim(*limits)
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.xaxis.set_major_formatter(FuncFormatter(_short))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.tick_params(labelbottom=True)
            axes.set_ylim(len(abilities) - 0.5, -0.5)
            axes.set_yticks(range(len(abilities)), abilities if number % columns == 0 else [""] * len(abilities))
        figure.supxlabel("effective size (non-embedding parameters of a dense model that is as able)", fontsize=9)
        figure.supylabel("ability", fontsize=9)
        key = [mark(labels.index(label), label) for label in labels]
        key += [
            Line2D([], [], color=GREY, linewidth=0.9, label="size of the dense parent"),
            Line2D([], [], color="0.2", marker="<", markersize=4.5, linestyle="", label="at most (the smallest rung)"),
            Line2D([], [], color="0.2", marker=">", markersize=4.5, linestyle="", label="at least (the largest rung)"),
        ]
        ncols = 3 if len(panels) > 1 and columns > 1 else 2
        figure.legend(handles=key, loc="outside upper center", ncols=ncols, frameon=False, fontsize=8.5)
    return finished(figure)


def effective_scale_alt(frame: pd.DataFrame) -> str:
    """The figure of `effective_scale` in words: per rung and compression the least and the largest effective share."""
    frame, told = _named(frame), []
    known = frame[frame["share"].notna()]
    for (rung, label), group in known.groupby(["rung", "label"], sort=False, observed=True):
        least, most = (group.loc[place] for place in (group["share"].idxmin(), group["share"].idxmax()))
        spread = " to ".join(f"{_share(row)} ({row['ability']})" for row in (least, most))
        told.append(f"{rung}, {label}: {spread}")
    return (
        f"Effective size with 95 % intervals of {counted(known['ability'].nunique(), 'ability', 'abilities')} under "
        f"{counted(frame['label'].nunique(), 'compression')}, as a share of the dense parent's size. {'; '.join(told)}."
    )


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    labels = list(map(condition, frame["compression"], frame["sparsity"]))
    if not frame["effective"].notna().any():
        remedy = "Compress models that have an ability."
        raise LabkitError("a figure of effective scale needs an effective size", "none", remedy)
    if len(set(labels)) > len(MARKERS):
        rule = f"at most {len(MARKERS)} compressions can be told apart in one figure"
        raise LabkitError(rule, len(set(labels)), "Choose some: frame[frame.compression.isin([…])].")
    return frame.assign(label=labels).reset_index(drop=True)


def _draw(axes: Axes, panel: pd.DataFrame, abilities: list[str], labels: list[str]) -> None:
    for place, ability in enumerate(abilities):
        if place % 2:
            axes.axhspan(place - 0.5, place + 0.5, color="0.96", linewidth=0, zorder=-1)
        group = panel[panel["ability"] == ability]
        if len(group) and group["effective"].isna().all():
            middle = axes.get_yaxis_transform()  # x as a share of the panel, y in rows
            axes.text(0.5, place, "absent in dense", color=GREY, style="italic", ha="center", va="center", fontsize=8,
                      transform=middle)  # fmt: skip
        for row in group[group["effective"].notna()].itertuples():
            number = labels.index(row.label)
            y = place + 0.8 * ((number + 0.5) / len(labels) - 0.5)
            axes.plot([row.low, row.high], [y, y], color=COLOURS[number % len(COLOURS)], linewidth=1.4, zorder=2)
            point = mark(number, row.label)
            point.set_data([row.effective], [y])
            point.set_marker(_SIDES.get(row.bounded, point.get_marker()))
            point.set_clip_on(False)
            axes.add_line(point)


def _share(row: pd.Series) -> str:
    return f"{row['bounded']} {row['share']:.2f}".strip()


def _short(params: float, _: int = 0) -> str:
    return f"{params / 1e6:g} M" if params >= 1e6 else f"{params / 1e3:g} k"
