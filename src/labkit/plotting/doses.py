"""Retention against sparsity: at which dose does an ability break?"""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from labkit.errors import LabkitError
from labkit.plotting.style import COLOURS, GREY, STYLE, counted, draw_retentions, finished, hollow, look, panel_grid

_FRAME = (-0.35, 1.35)  # retention shown; what lies beyond is an arrowhead at the edge


def sweep(
    verdicts: pd.DataFrame, margin: float = 0.05, lost: float = 0.20, columns: int = 4, level: float | None = None
) -> Figure:
    """Retention against sparsity, one panel per ability and one line per criterion, for one rung.

    The bars are 95 % intervals, the shaded band is 1 ± margin (kept), the dotted line the mark for lost. Hollow marks
    are undecided. Abilities that the dense models lack are left out. Panels run from the ability that keeps most to the
    one that keeps least.

    Parameters
    ----------
    verdicts : what `labkit.verdict.judge` returns, of one rung, with compressions at two or more sparsities; patterns
        and structured compressions, which have no dose, are left out.
    margin, lost : as in the rule that it was judged by.
    columns : panels side by side.
    level : of retention, below which an ability counts as broken (`labkit.break_point`): a dashed line, or None.

    Raises
    ------
    LabkitError
        More than one rung, or no compression with two sparsities.
    """
    doses = _doses(verdicts)
    names = list(dict.fromkeys(doses["compression"]))
    panels = doses.groupby("ability", observed=True)
    order = panels["retention"].mean().sort_values(ascending=False).index
    at = sorted(doses["sparsity"].unique())
    told = [f"{dose:.0%}" if number % 2 == 0 else "" for number, dose in enumerate(at)]  # every second has room
    with plt.rc_context(STYLE):
        figure, grid = panel_grid(len(order), columns, width=2.2, height=1.6)
        for axes, ability in zip(grid, order, strict=True):
            axes.set_title(ability, loc="left", fontweight="bold", fontsize=9)
            axes.axhspan(1 - margin, 1 + margin, color=COLOURS[2], alpha=0.15, linewidth=0, zorder=0)
            axes.axhline(lost, color=GREY, linestyle=":", linewidth=1.2, zorder=1)
            axes.axhline(0, color=GREY, linewidth=0.8, zorder=1)
            if level is not None:
                axes.axhline(level, color=GREY, linestyle="--", linewidth=0.8, zorder=1)
            for name, line in panels.get_group(ability).groupby("compression", sort=False, observed=True):
                _draw(axes, line.sort_values("sparsity"), names.index(name), len(names))
            axes.set_ylim(*_FRAME)
            axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
            axes.set_xticks(at, told)
        across = "sparsity (share of the weights inside the blocks set to zero); marks of one sparsity are moved apart"
        figure.supxlabel(across, fontsize=9)
        figure.supylabel("retention (0 = chance, 1 = dense)", fontsize=9)
        key = [
            Line2D([], [], color=colour, marker=marker, linestyle=dash, markersize=4.5, label=name)
            for name, (colour, marker, dash) in zip(names, map(look, range(len(names))), strict=True)
        ]
        key += [
            hollow(),
            Patch(color=COLOURS[2], alpha=0.15, label=f"{1 - margin:g} to {1 + margin:g}: kept"),
            Line2D([], [], color=GREY, linestyle=":", label=f"below {lost:g}: lost"),
        ]
        if level is not None:
            key.append(Line2D([], [], color=GREY, linestyle="--", linewidth=0.8, label=f"below {level:g}: broken"))
        figure.legend(handles=key, loc="outside upper center", ncols=min(4, columns), frameon=False, fontsize=8.5)
    return finished(figure)


def sweep_alt(verdicts: pd.DataFrame) -> str:
    """The figure of `sweep` in words: for every ability and criterion the retention at the least and the highest dose."""
    doses, told = _doses(verdicts), []
    for ability, panel in doses.groupby("ability", sort=False, observed=True):
        lines = []
        for name, line in panel.groupby("compression", sort=False, observed=True):
            first, last = (line.sort_values("sparsity").iloc[place] for place in (0, -1))
            ends = [f"{end['retention']:z.2f} at {end['sparsity']:.0%}" for end in (first, last)]
            lines.append(f"{name} {' to '.join(ends)}")
        told.append(f"{ability}: {', '.join(lines)}")
    return (
        f"Retention against sparsity for {counted(len(told), 'ability', 'abilities')} on rung {doses['rung'].iloc[0]}, "
        f"with 95 % intervals, at the least and the highest sparsity. {'; '.join(told)}."
    )


def swept(verdicts: pd.DataFrame) -> pd.Series:
    """Which verdicts are of a compression with a retention at two or more sparsities of its rung; patterns have one.
    Bool, by row."""
    plain = ~verdicts["compression"].str.contains(":")
    drawn = verdicts["sparsity"].where(verdicts["retention"].notna())
    several = drawn.groupby([verdicts["rung"], verdicts["compression"]], observed=True).transform("nunique")
    return plain & (several > 1)


def _doses(verdicts: pd.DataFrame) -> pd.DataFrame:
    rungs = list(verdicts["rung"].unique())
    if len(rungs) != 1:
        raise LabkitError("a sweep is drawn for one rung", rungs, "Choose one: verdicts[verdicts.rung == …].")
    doses = verdicts[swept(verdicts) & (verdicts["verdict"] != "absent") & verdicts["retention"].notna()]
    if doses.empty:
        remedy = "Run a study with a list of sparsities, such as pruning."
        received = sorted(verdicts["compression"].unique())
        raise LabkitError("a sweep needs a compression at two or more sparsities", received, remedy)
    return doses


def _draw(axes: Axes, line: pd.DataFrame, number: int, of: int) -> None:
    x = line["sparsity"] + 0.012 * (number - (of - 1) / 2)  # side by side, so that bars can be told apart
    draw_retentions(axes, x, line, line["verdict"] == "undecided", _FRAME, look(number))
