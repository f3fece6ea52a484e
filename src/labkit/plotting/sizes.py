"""Score against size: what appears along the ladder, and where."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter
from scipy import stats

from labkit.errors import LabkitError, unknown
from labkit.plotting.style import COLOURS, GREY, STYLE, counted, ends, finished, panel_grid, span
from labkit.records import BRIER, CHOICE_ACCURACY, DENSE, EXACT_MATCH, NLL_NATS, TOKEN_ACCURACY
from labkit.scores import BEST, PRIMARY

_FRACTIONS = (EXACT_MATCH, TOKEN_ACCURACY, CHOICE_ACCURACY)
_UNIT = {
    EXACT_MATCH: "exact match",
    TOKEN_ACCURACY: "token accuracy",
    CHOICE_ACCURACY: "choice accuracy",
    NLL_NATS: "nats per token",
    BRIER: "Brier score",
}


def emergence(rows: pd.DataFrame, metric: str | None = None, columns: int = 4) -> Figure:
    """Score against size, one panel per ability: what appears along the ladder, and where.

    A dot is one seed's mean over items, the line is the mean over seeds, a bar its 95 % t-interval over seeds where
    there are two or more (cut off at the frame of the panel), the dashed line is chance. Panels run from the ability
    that goes furthest from chance, averaged over rungs, to the one that goes least.

    Parameters
    ----------
    rows : frame with the columns of `labkit.records.ItemRow`; only dense rows are drawn.
    metric : one of `labkit.scores.BEST`; by default the first of `labkit.scores.PRIMARY` that an ability has.
    columns : panels side by side.

    Raises
    ------
    LabkitError
        An unknown metric, or no dense rows of it.
    """
    scores = _scores(rows, metric)
    panels = list(scores.groupby("ability", sort=False))
    with plt.rc_context(STYLE):
        figure, grid = panel_grid(len(panels), columns, width=2.1, height=1.55)
        for axes, (ability, panel) in zip(grid, panels, strict=True):
            axes.set_title(ability, loc="left", fontweight="bold", fontsize=9)
            axes.set_title(_UNIT[panel["metric"].iloc[0]], loc="right", color=GREY, fontsize=7.5)
            _draw_emergence(axes, panel)
            axes.set_xlim(scores["params"].min() / 1.5, scores["params"].max() * 1.5)
        fractions = scores["metric"].isin(_FRACTIONS).all()
        figure.supxlabel("non-embedding parameters (log scale)", fontsize=9)
        figure.supylabel("mean score" + (" (fraction correct)" if fractions else ""), fontsize=9)
        key = [
            Line2D([], [], color=COLOURS[0], marker="o", markersize=4, alpha=0.5, linestyle="", label="one seed"),
            Line2D([], [], color=COLOURS[0], label="mean over seeds"),
            Line2D([], [], color=COLOURS[0], alpha=0.25, linewidth=5, label="95 % t-interval"),
            Line2D([], [], color=GREY, linestyle="--", label="chance"),
        ]
        figure.legend(handles=key, loc="outside upper center", ncols=min(4, columns), frameon=False, fontsize=8.5)
    return finished(figure)


def emergence_alt(rows: pd.DataFrame, metric: str | None = None) -> str:
    """The figure of `emergence` in words: for every ability its mean on the smallest and on the largest rung."""
    scores = _scores(rows, metric)
    sizes = scores.drop_duplicates("params").sort_values("params")
    seeds = scores.groupby(["ability", "params"])["seed"].nunique()
    told = []
    for ability, panel in scores.groupby("ability", sort=False):
        first, last = (panel.loc[panel["params"] == size, "value"].mean() for size in ends(panel["params"]))
        unit = _UNIT[panel["metric"].iloc[0]]
        told.append(f"{ability} {first:.2f} to {last:.2f} ({unit}, chance {panel['chance'].mean():.2f})")
    return (
        f"Score against model size for {counted(len(told), 'ability', 'abilities')} on {counted(len(sizes), 'rung')}, "
        f"{sizes['rung'].iloc[0]} to {sizes['rung'].iloc[-1]} ({span(sizes['params'])} non-embedding parameters), "
        f"{span(seeds)} seeds each. Mean on the smallest and on the largest rung: {'; '.join(told)}."
    )


def _scores(rows: pd.DataFrame, metric: str | None) -> pd.DataFrame:
    """Mean value and chance of each dense seed in one metric per ability, the abilities furthest from chance first."""
    if metric is not None and metric not in _UNIT:
        raise unknown("metric", metric, _UNIT)
    wanted = PRIMARY if metric is None else (metric,)
    rows = rows[(rows["compression"] == DENSE) & rows["metric"].isin(wanted)]
    if rows.empty:
        named = " or ".join(wanted)
        raise LabkitError("a figure of emergence needs dense rows", f"none of {named}", "Evaluate the dense models.")
    keys = ["ability", "metric", "rung", "params", "seed"]
    scores = rows.groupby(keys, observed=True)[["value", "chance"]].mean().reset_index()
    scores = scores.astype({key: str for key in keys[:3]})
    rank = scores["metric"].map(wanted.index)
    scores = scores[rank == rank.groupby(scores["ability"]).transform("min")]
    headroom = scores["metric"].map(BEST) - scores["chance"]
    gain = ((scores["value"] - scores["chance"]) / headroom.where(headroom != 0)).groupby(scores["ability"]).mean()
    order = {ability: place for place, ability in enumerate(gain.sort_values(ascending=False, kind="stable").index)}
    return scores.sort_values(["ability", "params", "seed"], key=lambda c: c.map(order) if c.name == "ability" else c)


def _draw_emergence(axes: Axes, panel: pd.DataFrame) -> None:
    colour = COLOURS[0]
    axes.axhline(panel["chance"].mean(), color=GREY, linestyle="--", linewidth=1, label="chance")
    over = panel.groupby("params")["value"].agg(["mean", "sem", "count"])
    half = over["sem"] * stats.t.ppf(0.975, over["count"] - 1)  # NaN for one seed: no bar
    several = over[half.notna()]
    low, high = several["mean"] - half[several.index], several["mean"] + half[several.index]
    axes.vlines(several.index, low, high, color=colour, alpha=0.25, linewidth=5, label="interval")
    axes.plot(over.index, over["mean"], color=colour, linewidth=1.4, label="mean")
    axes.plot(panel["params"], panel["value"], "o", color=colour, markersize=3.5, alpha=0.5, mew=0, label="seeds")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.minorticks_off()
    if panel["metric"].iloc[0] in _FRACTIONS:
        axes.set_ylim(-0.05, 1.05)
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
