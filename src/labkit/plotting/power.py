"""How many seeds do you need? What the judge shows and what it gets wrong, in simulated experiments of known truth."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from labkit.errors import LabkitError
from labkit.plotting.style import COLOURS, GREY, MARKERS, STYLE, finished, panel_grid
from labkit.statistics import jeffreys_interval

_FAILS = {"two-point": "two modes", "skewed": "one seed in ten fails"}  # shapes of SHAPES that are not normal
_SOUGHT = 0.8  # the power that experiments are usually planned for


def power(frame: pd.DataFrame, margin: float = 0.05, lost: float = 0.20) -> Figure:
    """Shares of simulated experiments against their number of seeds, in four panels.

    How often what is kept is called kept (truth 1: power), how often what just misses it is called so all the same
    (truth 1 − margin), how often what just misses lost is called lost (truth `lost`), and how often a 95 % interval
    holds the truth, over all truths at once. Dotted lines are the stated levels (in the first panel a power of .8), the
    bars 95 % Jeffreys intervals of the Monte Carlo error. Colours tell how much seeds differ, hollow marks the fewer
    items. Seeds stand at equal distances.

    Parameters
    ----------
    frame : what `labkit.simulation.calibrate` returns, of one method; several frames in one, if they differ in shape.
    margin, lost : as in the rule that the simulation was judged by.

    Raises
    ------
    LabkitError
        More than one method or none, more than two numbers of items, or no experiment of truth 1.
    """
    _check(frame)
    seeds, items = sorted(frame["seeds"].unique()), sorted(frame["items"].unique())
    kinds = list(frame.groupby(["shape", "between"], sort=True).groups)
    with plt.rc_context(STYLE):
        figure, grid = panel_grid(4, columns=2, width=3.3, height=2.1)
        for axes, (title, truth, column, level) in zip(grid, _panels(margin, lost), strict=True):
            axes.set_title(title, loc="left", fontweight="bold", fontsize=9)
            axes.axhline(level, color=GREY, linestyle=":", linewidth=1.2, zorder=1)
            part = frame if truth is None else frame[np.isclose(frame["retention"], truth)]
            for number, kind in enumerate(kinds):
                for n, line in part[(part["shape"] == kind[0]) & (part["between"] == kind[1])].groupby("items"):
                    _draw(axes, line.assign(share=line[column]), seeds, number, len(kinds), full=n == items[-1])
            low, high = axes.get_ylim()
            axes.set_ylim(*((-0.01 * high, max(high, 2.2 * level)) if level < 0.5 else (min(low, level - 0.05), 1.01)))
            axes.set_xticks(range(len(seeds)), seeds)
            axes.set_xlim(-0.5, len(seeds) - 0.5)
            axes.tick_params(labelbottom=True)
        figure.supxlabel("seeds of an experiment", fontsize=9)
        figure.supylabel("share of simulated experiments", fontsize=9)
        key = [_mark(number, True, _kind(*kind)) for number, kind in enumerate(kinds)]
        key += [Line2D([], [], color=GREY, linestyle=":", label=f"stated level (first panel: {_SOUGHT:g})")]
        if len(items) == 2:
            key.append(_mark(None, False, f"hollow: {items[0]:,} items, full: {items[1]:,}"))
        figure.legend(handles=key, loc="outside upper center", ncols=2, frameon=False, fontsize=8.5)
    return finished(figure)


def power_alt(frame: pd.DataFrame, margin: float = 0.05, lost: float = 0.20) -> str:
    """The figure of `power` in words: seeds for a power of .8, and the highest share of wrong verdicts."""
    _check(frame)
    truth, most = frame["retention"], frame["items"].max()
    told = []
    for kind, line in frame[np.isclose(truth, 1) & (frame["items"] == most)].groupby(["shape", "between"], sort=True):
        enough = line.loc[line["kept"] >= _SOUGHT, "seeds"]
        found = f"from {enough.min()} seeds on" if len(enough) else f"not with {line['seeds'].max()} seeds"
        told.append(f"{found} where {_kind(*kind)}")
    wrong = []
    for verdict, level, part in (
        ("kept", 0.05, frame[np.isclose(truth, 1 - margin)]),
        ("lost", 0.025, frame[np.isclose(truth, lost)]),
    ):
        for shape, rows in sorted(part.groupby("shape"), key=lambda pair: pair[0] != "normal"):
            where = _FAILS.get(shape, "seeds differ normally or not at all")
            wrong.append(f"{verdict} in at most {rows[verdict].max():.1%} (stated: {level:.1%}; {where})")
    low, high = frame.loc[frame["shape"] == "normal", "coverage"].agg(["min", "max"])
    fewest, largest = frame["seeds"].agg(["min", "max"])
    return (
        f"Simulated experiments of {fewest} to {largest} seeds. With {most:,} items, what is kept is called kept in "
        f"{_SOUGHT:.0%} of them {'; '.join(told)}. Wrongly {', '.join(wrong)}. Where seeds differ normally or not at "
        f"all, 95 % intervals hold the truth in {low:.1%} to {high:.1%}."
    )


def _panels(margin: float, lost: float) -> Iterator[tuple[str, float | None, str, float]]:
    """Title, truth (None: all), column, stated level."""
    yield "truth 1: called kept (power)", 1.0, "kept", _SOUGHT
    yield f"truth {1 - margin:g}: called kept (wrong)", 1 - margin, "kept", 0.05
    yield f"truth {lost:g}: called lost (wrong)", lost, "lost", 0.025
    yield "95 % interval holds the truth", None, "coverage", 0.95


def _draw(axes: Axes, line: pd.DataFrame, seeds: list[int], number: int, of: int, full: bool) -> None:
    """One line over seeds; where there are several truths, their mean, which their repeats add up to."""
    line = line.assign(found=line["share"] * line["repeats"]).groupby("seeds")[["found", "repeats"]].sum()
    x = np.array([seeds.index(n) for n in line.index]) + 0.08 * (number - (of - 1) / 2) + (0.03 if full else -0.03)
    bounds = [jeffreys_interval(round(row.found), int(row.repeats)) for row in line.itertuples()]
    colour = COLOURS[number % len(COLOURS)]
    axes.vlines(x, *np.transpose(bounds), color=colour, linewidth=1, alpha=0.6, zorder=2)
    drawn = _mark(number, full, "")
    drawn.set_data(x, line["found"] / line["repeats"])
    drawn.set(linestyle="-" if full else "--", linewidth=1, clip_on=False)
    axes.add_line(drawn)


def _mark(number: int | None, full: bool, label: str) -> Line2D:
    """In the colour and shape of a kind of experiment; None for the key's own."""
    colour, marker = "0.2", "o"
    if number is not None:
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    face = colour if full else "white"
    return Line2D([], [], color=colour, marker=marker, markersize=4, markerfacecolor=face, linestyle="", label=label)


def _kind(shape: str, between: float) -> str:
    if shape in _FAILS:
        return f"{_FAILS[shape]} (deviation {between:g})"
    return f"retention differs by {between:g} between seeds" if between else "seeds do not differ"


def _check(frame: pd.DataFrame) -> None:
    methods = sorted(frame["method"].unique())
    if len(methods) != 1:
        raise LabkitError("a figure of power shows one method", methods, "Choose one: frame[frame.method == …].")
    if frame["items"].nunique() > 2:
        received = sorted(frame["items"].unique())
        raise LabkitError("a figure of power tells two numbers of items apart", received, "Choose two of them.")
    if not np.isclose(frame["retention"], 1).any():
        received = sorted(frame["retention"].unique())
        raise LabkitError("power needs experiments whose truth is retention 1", received, "Simulate them as well.")
