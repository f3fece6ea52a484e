"""Figures of rows and verdicts, and a sentence for each that says what it shows to those who cannot see it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter
from scipy import stats

from labkit.errors import LabkitError, unknown
from labkit.records import BRIER, DENSE, EXACT_MATCH, METRICS, NLL_NATS, TOKEN_ACCURACY

_PRIMARY = (EXACT_MATCH, TOKEN_ACCURACY, NLL_NATS)  # an ability is drawn in the first of these that it has
_BEST = {EXACT_MATCH: 1.0, TOKEN_ACCURACY: 1.0, NLL_NATS: 0.0, BRIER: 0.0}
_UNIT = {
    EXACT_MATCH: "exact match",
    TOKEN_ACCURACY: "token accuracy",
    NLL_NATS: "nats per token",
    BRIER: "Brier score",
}
_COLOURS = sns.color_palette("colorblind")
_MARKERS = "oD^svPX*"
_GREY = "0.35"
_STYLE = {**sns.axes_style("white"), "font.size": 9, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8}


def condition(compression: str, sparsity: float) -> str:
    """What was done to a model, in words: "wanda 50 %", "wanda 2:4", "drop-layers keep 1"."""
    return f"{compression} {100 * sparsity:.3g} %" if sparsity and ":" not in compression else compression


def emergence(rows: pd.DataFrame, metric: str | None = None, columns: int = 4) -> Figure:
    """Score against size, one panel per ability: what appears along the ladder, and where.

    A dot is one seed's mean over items, the line is the mean over seeds, a bar its 95 % t-interval over seeds where
    there are two or more (cut off at the frame of the panel), the dashed line is chance. Panels run from the ability
    that goes furthest from chance, averaged over rungs, to the one that goes least.

    Parameters
    ----------
    rows : frame with the columns of `labkit.records.ItemRow`; only dense rows are drawn.
    metric : one of `METRICS`; by default exact match, else token accuracy, else nats, for each ability.
    columns : panels side by side.

    Raises
    ------
    LabkitError
        An unknown metric, or no dense rows of it.
    """
    scores = _scores(rows, metric)
    panels = list(scores.groupby("ability", sort=False))
    with plt.rc_context(_STYLE):
        figure, grid = _grid(len(panels), columns, width=2.1, height=1.55)
        for axes, (ability, panel) in zip(grid, panels, strict=True):
            axes.set_title(ability, loc="left", fontweight="bold", fontsize=9)
            axes.set_title(_UNIT[panel["metric"].iloc[0]], loc="right", color=_GREY, fontsize=7.5)
            _draw_emergence(axes, panel)
            axes.set_xlim(scores["params"].min() / 1.5, scores["params"].max() * 1.5)
        fractions = scores["metric"].isin([EXACT_MATCH, TOKEN_ACCURACY]).all()
        figure.supxlabel("non-embedding parameters (log scale)", fontsize=9)
        figure.supylabel("mean score" + (" (fraction correct)" if fractions else ""), fontsize=9)
        key = [
            Line2D([], [], color=_COLOURS[0], marker="o", markersize=4, alpha=0.5, linestyle="", label="one seed"),
            Line2D([], [], color=_COLOURS[0], label="mean over seeds"),
            Line2D([], [], color=_COLOURS[0], alpha=0.25, linewidth=5, label="95 % t-interval"),
            Line2D([], [], color=_GREY, linestyle="--", label="chance"),
        ]
        figure.legend(handles=key, loc="outside upper center", ncols=min(4, columns), frameon=False, fontsize=8.5)
    return _finished(figure)


def emergence_alt(rows: pd.DataFrame, metric: str | None = None) -> str:
    """The figure of `emergence` in words: for every ability its mean on the smallest and on the largest rung."""
    scores = _scores(rows, metric)
    sizes = scores.drop_duplicates("params").sort_values("params")
    seeds = scores.groupby(["ability", "params"])["seed"].nunique()
    told = []
    for ability, panel in scores.groupby("ability", sort=False):
        first, last = (panel.loc[panel["params"] == size, "value"].mean() for size in _ends(panel["params"]))
        unit = _UNIT[panel["metric"].iloc[0]]
        told.append(f"{ability} {first:.2f} to {last:.2f} ({unit}, chance {panel['chance'].mean():.2f})")
    return (
        f"Score against model size for {_count(len(told), 'ability', 'abilities')} on {_count(len(sizes), 'rung')}, "
        f"{sizes['rung'].iloc[0]} to {sizes['rung'].iloc[-1]} ({_range(sizes['params'])} non-embedding parameters), "
        f"{_range(seeds)} seeds each. Mean on the smallest and on the largest rung: {'; '.join(told)}."
    )


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
    with plt.rc_context(_STYLE):
        height = 0.6 + len(abilities) * (0.16 + 0.07 * len(labels))
        figure, grid = _grid(len(panels), columns, width=3.3, height=height)
        for number, (axes, (rung, panel)) in enumerate(zip(grid, panels, strict=True)):
            axes.set_title(f"rung {rung}", loc="left", fontweight="bold", fontsize=9)
            axes.axvspan(1 - margin, 1 + margin, color=_COLOURS[2], alpha=0.15, linewidth=0, zorder=0)
            axes.axvline(lost, color=_GREY, linestyle=":", linewidth=1.2, zorder=1)
            for mark in (0, 1):
                axes.axvline(mark, color=_GREY, linewidth=0.8, zorder=1)
            _draw_retention(axes, panel, abilities, labels, limits)
            axes.set_xlim(*limits)
            axes.tick_params(labelbottom=True)
            axes.set_xticks([0, lost, 0.5, 1], ["0", f"{lost:g}", "0.5", "1"])
            axes.set_ylim(len(abilities) - 0.5, -0.5)
            axes.set_yticks(range(len(abilities)), abilities if number % columns == 0 else [""] * len(abilities))
        figure.supxlabel("retention (0 = chance, 1 = as good as dense)", fontsize=9)
        figure.supylabel("ability", fontsize=9)
        key = [_marker(labels.index(label), label) for label in labels]
        key += [
            Line2D([], [], color="0.2", marker="o", linestyle="", fillstyle="none", label="hollow: undecided"),
            Patch(color=_COLOURS[2], alpha=0.15, label=f"{1 - margin:g} to {1 + margin:g}: kept"),
            Line2D([], [], color=_GREY, linestyle=":", label=f"below {lost:g}: lost"),
        ]
        ncols = 4 if len(panels) > 1 and columns > 1 else 2
        figure.legend(handles=key, loc="outside upper center", ncols=ncols, frameon=False, fontsize=8.5)
    return _finished(figure)


def retention_alt(verdicts: pd.DataFrame) -> str:
    """The figure of `retention` in words: for every compression the count of each verdict and the mean retention."""
    told = []
    for (compression, sparsity), group in verdicts.groupby(["compression", "sparsity"], sort=False, observed=True):
        counts = ", ".join(f"{count} {verdict}" for verdict, count in group["verdict"].value_counts().items())
        mean = group["retention"].mean()
        mean = "no retention to show" if np.isnan(mean) else f"mean retention {mean:.2f}"
        told.append(f"{condition(compression, sparsity)}: {counts}, {mean}")
    return (
        f"Retention with 95 % intervals of {_count(verdicts['ability'].nunique(), 'ability', 'abilities')} under "
        f"{_count(len(told), 'compression')} on {_count(verdicts['rung'].nunique(), 'rung')}. {'; '.join(told)}."
    )


def _scores(rows: pd.DataFrame, metric: str | None) -> pd.DataFrame:
    """Mean value and chance of each dense seed in one metric per ability, the abilities furthest from chance first."""
    if metric is not None and metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    wanted = _PRIMARY if metric is None else (metric,)
    rows = rows[(rows["compression"] == DENSE) & rows["metric"].isin(wanted)]
    if rows.empty:
        named = " or ".join(wanted)
        raise LabkitError("a figure of emergence needs dense rows", f"none of {named}", "Evaluate the dense models.")
    keys = ["ability", "metric", "rung", "params", "seed"]
    scores = rows.groupby(keys, observed=True)[["value", "chance"]].mean().reset_index()
    scores = scores.astype({key: str for key in keys[:3]})
    rank = scores["metric"].map(wanted.index)
    scores = scores[rank == rank.groupby(scores["ability"]).transform("min")]
    headroom = scores["metric"].map(_BEST) - scores["chance"]
    gain = ((scores["value"] - scores["chance"]) / headroom.where(headroom != 0)).groupby(scores["ability"]).mean()
    order = {ability: place for place, ability in enumerate(gain.sort_values(ascending=False, kind="stable").index)}
    return scores.sort_values(["ability", "params", "seed"], key=lambda c: c.map(order) if c.name == "ability" else c)


def _draw_emergence(axes: Axes, panel: pd.DataFrame) -> None:
    colour = _COLOURS[0]
    axes.axhline(panel["chance"].mean(), color=_GREY, linestyle="--", linewidth=1, label="chance")
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
    if panel["metric"].iloc[0] in (EXACT_MATCH, TOKEN_ACCURACY):
        axes.set_ylim(-0.05, 1.05)
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])


def _draw_retention(
    axes: Axes, panel: pd.DataFrame, abilities: Sequence[str], labels: Sequence[str], limits: tuple[float, float]
) -> None:
    for place, ability in enumerate(abilities):
        if place % 2:
            axes.axhspan(place - 0.5, place + 0.5, color="0.96", linewidth=0, zorder=-1)
        group = panel[panel["ability"] == ability]
        absent = (group["verdict"] == "absent").to_numpy()
        if absent.size and absent.all():
            axes.text(0.6, place, "absent in dense", color=_GREY, style="italic", ha="center", va="center", fontsize=8)
            continue
        for row in group.itertuples():
            number = labels.index(row.label)
            y = place + 0.8 * ((number + 0.5) / len(labels) - 0.5)
            if row.verdict == "absent":
                text = f"absent ({row.label})"
                axes.text(0.6, y, text, color=_GREY, style="italic", ha="center", va="center", fontsize=6)
                continue
            axes.plot([row.low, row.high], [y, y], color=_COLOURS[number % len(_COLOURS)], linewidth=1.4, zorder=2)
            point = _marker(number, row.label)
            point.set_data([np.clip(row.retention, *limits)], [y])
            if not limits[0] <= row.retention <= limits[1]:
                point.set_marker("<" if row.retention < limits[0] else ">")
            point.set(markerfacecolor="white" if row.verdict == "undecided" else point.get_color(), clip_on=False)
            axes.add_line(point)


def _marker(number: int, label: str) -> Line2D:
    colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    return Line2D([], [], color=colour, marker=marker, markersize=4.5, linestyle="", label=label, zorder=3)


def _limits(verdicts: pd.DataFrame) -> tuple[float, float]:
    """Retention shown: all of it, unless some is so far off that the marks would no longer be told apart."""
    ends = verdicts[["retention", "low", "high"]].to_numpy(float)
    ends = ends[np.isfinite(ends)]
    return max(-0.4, ends.min(initial=-0.05)) - 0.05, min(1.5, ends.max(initial=1.1)) + 0.05


def _grid(panels: int, columns: int, width: float, height: float) -> tuple[Figure, Iterator[Axes]]:
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


def _finished(figure: Figure) -> Figure:
    """The figure, forgotten by pyplot: a notebook shows it where it is returned, once, and none pile up."""
    plt.close(figure)
    return figure


def _ends(values: pd.Series) -> tuple[float, float]:
    return values.min(), values.max()


def _range(values: pd.Series) -> str:
    low, high = _ends(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
