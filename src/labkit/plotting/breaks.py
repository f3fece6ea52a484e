"""Break-points with their intervals: how sparse a model can be made before each ability falls below a level."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from labkit.errors import LabkitError
from labkit.plotting.style import GREY, STYLE, counted, finished, mark, panel_grid


def breaks(points: pd.DataFrame, measured: tuple[float, float], columns: int = 2) -> Figure:
    """The sparsity at which each ability breaks with its 95 % interval, one panel per rung, one mark per criterion.

    What breaks first stands on top. Grey is where nothing was measured: below it a break-point rests on a straight line
    from the dense models, and one that lies above is an arrowhead at the right edge.

    Parameters
    ----------
    points : what `labkit.break_point` returns. measured : least and most sparsity of its rows.
    columns : panels side by side.

    Raises
    ------
    LabkitError
        No break-point has an interval.
    """
    drawn = _drawn(points)
    names = list(dict.fromkeys(drawn["compression"]))
    panels = list(drawn.groupby("rung", observed=True))
    abilities = drawn["ability"].nunique()
    with plt.rc_context(STYLE):
        height = 0.5 + abilities * (0.14 + 0.06 * len(names))
        figure, grid = panel_grid(len(panels), columns, width=3.6, height=height)
        for axes, (rung, panel) in zip(grid, panels, strict=True):
            axes.set_title(f"rung {rung}", loc="left", fontweight="bold", fontsize=9)
            for unmeasured in ((0, measured[0]), (measured[1], 1)):
                axes.axvspan(*unmeasured, color="0.93", linewidth=0, zorder=0)
            order = list(_order(panel))
            for row in panel.itertuples():
                number = names.index(row.compression)
                y = order.index(row.ability) + 0.8 * ((number + 0.5) / len(names) - 0.5)
                _draw(axes, y, row, number, measured[1])
            for place in range(1, len(order)):
                axes.axhline(place - 0.5, color=GREY, linewidth=0.3, zorder=1)
            axes.set(xlim=(0, measured[1] + 0.04), ylim=(len(order) - 0.5, -0.5))
            axes.set_yticks(range(len(order)), order)
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.tick_params(labelbottom=True)
        figure.supxlabel("sparsity at which retention falls below the level", fontsize=9)
        key = [mark(number, name) for number, name in enumerate(names)]
        key += [Patch(color="0.93", label="not measured; at its edge: beyond")]
        ncols = len(key) if len(panels) > 1 and columns > 1 else 2
        figure.legend(handles=key, loc="outside upper center", ncols=ncols, frameon=False, fontsize=8.5)
    return finished(figure)


def breaks_alt(points: pd.DataFrame) -> str:
    """The figure of `breaks` in words: for every rung and ability the break-point under each criterion."""
    told = []
    for rung, panel in _drawn(points).groupby("rung", observed=True):
        lines = []
        for ability in _order(panel):
            group = panel[panel["ability"] == ability]
            where = [
                f"{row.compression} {'beyond' if np.isnan(row.break_point) else f'{row.break_point:.0%}'}"
                for row in group.itertuples()
            ]
            lines.append(f"{ability}: {', '.join(where)}")
        told.append(f"Rung {rung}, {counted(len(lines), 'ability', 'abilities')}, first to break first. {'; '.join(lines)}.")
    return f"Sparsity at which abilities break, with 95 % intervals. {' '.join(told)}"


def _drawn(points: pd.DataFrame) -> pd.DataFrame:
    """Those with an interval: seeds enough, and an ability that dense models have."""
    drawn = points[points["break_point"].notna() | points["low"].notna() | points["reason"].str.contains("stays above")]
    if drawn.empty:
        remedy = "Run a study with a list of sparsities, such as pruning."
        raise LabkitError("a figure of break-points needs one with an interval", f"{len(points)} without", remedy)
    return drawn


def _order(panel: pd.DataFrame) -> pd.Index:
    """Abilities, first to break first; what does not break counts as breaking at 1."""
    return panel.assign(at=panel["break_point"].fillna(1)).groupby("ability", observed=True)["at"].mean().sort_values().index


def _draw(axes: Axes, y: float, row: tuple, number: int, most: float) -> None:
    edge = most + 0.03
    low, middle, high = (edge if np.isnan(x) else x for x in (row.low, row.break_point, row.high))
    point = mark(number, "")
    axes.plot([low, high], [y, y], color=point.get_color(), linewidth=1.4, zorder=2)
    point.set_data([middle], [y])
    if np.isnan(row.break_point):
        point.set_marker(">")
    axes.add_line(point)
