"""Retention of every ability under every compression, with its interval."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from labkit.errors import LabkitError
from labkit.plotting.style import COLOURS, GREY, STYLE, condition, counted, finished, mark, panel_grid


def retention(verdicts: pd.DataFrame, margin: float = 0.05, lost: float = 0.20, columns: int = 3) -> Figure:
    """Retention of every ability under every compression with its 95 % interval, one panel per rung.

    The shaded band is 1 ± margin (kept), the dotted line is the mark for lost; hollow markers are undecided, and
    where the dense models lack the ability the row says so. What lies beyond the frame is an arrowhead at its edge.

    Parameters
    ----------
    verdicts : what `labkit.verdict.judge` returns.
    margin, lost : as in the rule that it was judged by.
    columns : panels side by side.

    Raises
    ------
    LabkitError
        There are no verdicts.
    """
    if verdicts.empty:
        raise LabkitError("a figure of retention needs verdicts", "none", "Judge rows of a compressed model.")
    verdicts = verdicts.assign(label=list(map(condition, verdicts["compression"], verdicts["sparsity"])))
    labels = list(dict.fromkeys(verdicts["label"]))
    known = verdicts.groupby("ability", observed=True)["retention"].agg(["count", "mean"])
    abilities = list(known.sort_values(["count", "mean"], ascending=False).index)  # absent everywhere: last
    panels = list(verdicts.groupby("rung", sort=False, observed=True))
    limits = _limits(verdicts)
    with plt.rc_context(STYLE):
        height = 0.6 + len(abilities) * (0.16 + 0.07 * len(labels))
        figure, grid = panel_grid(len(panels), columns, width=3.3, height=height)
        for number, (axes, (rung, panel)) in enumerate(zip(grid, panels, strict=True)):
            axes.set_title(f"rung {rung}", loc="left", fontweight="bold", fontsize=9)
            axes.axvspan(1 - margin, 1 + margin, color=COLOURS[2], alpha=0.15, linewidth=0, zorder=0)
            axes.axvline(lost, color=GREY, linestyle=":", linewidth=1.2, zorder=1)
            for end in (0, 1):
                axes.axvline(end, color=GREY, linewidth=0.8, zorder=1)
            _draw_retention(axes, panel, abilities, labels, limits)
            axes.set_xlim(*limits)
            axes.tick_params(labelbottom=True)
            axes.set_xticks([0, lost, 0.5, 1], ["0", f"{lost:g}", "0.5", "1"])
            axes.set_ylim(len(abilities) - 0.5, -0.5)
            axes.set_yticks(range(len(abilities)), abilities if number % columns == 0 else [""] * len(abilities))
        figure.supxlabel("retention (0 = chance, 1 = as good as dense)", fontsize=9)
        figure.supylabel("ability", fontsize=9)
        key = [mark(labels.index(label), label) for label in labels]
        key += [
            Line2D([], [], color="0.2", marker="o", linestyle="", fillstyle="none", label="hollow: undecided"),
            Patch(color=COLOURS[2], alpha=0.15, label=f"{1 - margin:g} to {1 + margin:g}: kept"),
            Line2D([], [], color=GREY, linestyle=":", label=f"below {lost:g}: lost"),
        ]
        ncols = 4 if len(panels) > 1 and columns > 1 else 2
        figure.legend(handles=key, loc="outside upper center", ncols=ncols, frameon=False, fontsize=8.5)
    return finished(figure)


def retention_alt(verdicts: pd.DataFrame) -> str:
    """The figure of `retention` in words: for every compression the count of each verdict and the mean retention."""
    told = []
    for (compression, sparsity), group in verdicts.groupby(["compression", "sparsity"], sort=False, observed=True):
        counts = ", ".join(f"{count} {verdict}" for verdict, count in group["verdict"].value_counts().items())
        mean = group["retention"].mean()
        mean = "no retention to show" if np.isnan(mean) else f"mean retention {mean:.2f}"
        told.append(f"{condition(compression, sparsity)}: {counts}, {mean}")
    return (
        f"Retention with 95 % intervals of {counted(verdicts['ability'].nunique(), 'ability', 'abilities')} under "
        f"{counted(len(told), 'compression')} on {counted(verdicts['rung'].nunique(), 'rung')}. {'; '.join(told)}."
    )


def _draw_retention(
    axes: Axes, panel: pd.DataFrame, abilities: Sequence[str], labels: Sequence[str], limits: tuple[float, float]
) -> None:
    for place, ability in enumerate(abilities):
        if place % 2:
            axes.axhspan(place - 0.5, place + 0.5, color="0.96", linewidth=0, zorder=-1)
        group = panel[panel["ability"] == ability]
        absent = (group["verdict"] == "absent").to_numpy()
        if absent.size and absent.all():
            axes.text(0.6, place, "absent in dense", color=GREY, style="italic", ha="center", va="center", fontsize=8)
            continue
        for row in group.itertuples():
            number = labels.index(row.label)
            y = place + 0.8 * ((number + 0.5) / len(labels) - 0.5)
            if row.verdict == "absent":
                text = f"absent ({row.label})"
                axes.text(0.6, y, text, color=GREY, style="italic", ha="center", va="center", fontsize=6)
                continue
            axes.plot([row.low, row.high], [y, y], color=COLOURS[number % len(COLOURS)], linewidth=1.4, zorder=2)
            point = mark(number, row.label)
            point.set_data([np.clip(row.retention, *limits)], [y])
            if not limits[0] <= row.retention <= limits[1]:
                point.set_marker("<" if row.retention < limits[0] else ">")
            point.set(markerfacecolor="white" if row.verdict == "undecided" else point.get_color(), clip_on=False)
            axes.add_line(point)


def _limits(verdicts: pd.DataFrame) -> tuple[float, float]:
    """Retention shown: all of it, unless some is so far off that the marks would no longer be told apart."""
    ends = verdicts[["retention", "low", "high"]].to_numpy(float)
    ends = ends[np.isfinite(ends)]
    return max(-0.4, ends.min(initial=-0.05)) - 0.05, min(1.5, ends.max(initial=1.1)) + 0.05
