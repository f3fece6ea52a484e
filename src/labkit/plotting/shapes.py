"""Is it a jump? Each model's gain over size, with the smooth and the sharp curve that fit it best."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter
from numpy.typing import ArrayLike

from labkit import curves
from labkit.curves import rivals
from labkit.errors import LabkitError
from labkit.plotting.style import COLOURS, GREY, STYLE, counted, finished, panel_grid
from labkit.records import BRIER, CHOICE_ACCURACY, DENSE, EXACT_MATCH, NLL_NATS, TOKEN_ACCURACY
from labkit.scores import scores

_NAMED = {
    EXACT_MATCH: "exact match", TOKEN_ACCURACY: "token accuracy", CHOICE_ACCURACY: "choice accuracy", NLL_NATS: "nats",
    BRIER: "Brier",
}  # fmt: skip
_LOWEST = -1.0  # gains below are drawn at the edge: nats of a confident wrong answer have no bound


def jumps(
    rows: pd.DataFrame, outcomes: pd.DataFrame, columns: int = 4, decades: float = 0.5, scatter: float = 0.05
) -> Figure:
    """Gain over size with the best smooth and the best sharp curve, a panel per row of `outcomes`.

    A dot is one model: 0 is chance, 1 perfect, in every metric. The number is the difference in BIC, positive where the
    sharp curve is better. The band is the 95 % interval of the threshold over resampled seeds, the thin line its
    median; there is none where nothing rises. Panels go by ability, by their first threshold, one metric after another.

    Parameters
    ----------
    rows : frame with the columns of `labkit.records.ItemRow`; only dense rows are drawn.
    outcomes : what `labkit.emergence.emergence` returns, or several of them together: of all rows, and of those of one
        metric, to see both side by side.
    columns : panels side by side; a multiple of the number of metrics puts those of an ability into one line.
    decades, scatter : of the `labkit.emergence.Rule` that `outcomes` were told by.

    Raises
    ------
    LabkitError
        No outcomes; an outcome whose ability and metric have no dense rows, or fewer than two sizes.
    """
    panels = _panels(rows, outcomes)
    lowest = max(_LOWEST, min(points["gain"].min() for _, points in panels))
    sizes = pd.concat([points["params"] for _, points in panels])
    with plt.rc_context(STYLE):
        figure, grid = panel_grid(len(panels), columns, width=2.1, height=1.55)
        for axes, (outcome, points) in zip(grid, panels, strict=True):
            axes.set_title(outcome.ability, loc="left", fontweight="bold", fontsize=9)
            axes.set_title(_NAMED[outcome.metric], loc="right", color=GREY, fontsize=7.5)
            _draw(axes, points.assign(gain=points["gain"].clip(lower=lowest)), outcome)
            _draw_curves(axes, points, *rivals(points["x"], points["gain"], decades, scatter))
            axes.set(xlim=(sizes.min() / 1.5, sizes.max() * 1.5), ylim=(lowest - 0.08, 1.15), yticks=[0, 0.5, 1])
        figure.supxlabel("non-embedding parameters (log scale)", fontsize=9)
        figure.supylabel("gain (0 = chance, 1 = perfect)", fontsize=9)
        key = [
            Line2D([], [], color=GREY, marker="o", markersize=3.5, alpha=0.6, linestyle="", label="one model"),
            Line2D([], [], color=COLOURS[0], linestyle="--", label="best smooth curve"),
            Line2D([], [], color=COLOURS[1], label="best sharp curve (dotted: its two states)"),
            Line2D([], [], color=COLOURS[2], alpha=0.25, linewidth=6, label="threshold, 95 % interval"),
        ]
        figure.legend(handles=key, loc="outside upper center", ncols=min(4, columns), frameon=False, fontsize=8)
    return finished(figure)


def jumps_alt(rows: pd.DataFrame, outcomes: pd.DataFrame) -> str:
    """The figure of `jumps` in words: which curve is better by how much, and where the threshold lies."""
    told: dict[str, list[str]] = {}
    panels = _panels(rows, outcomes)
    for outcome, _ in panels:
        said = f"{_NAMED[outcome.metric]} {'sharp' if outcome.sharper > 0 else 'smooth'} by {abs(outcome.sharper):.0f}"
        if np.isfinite(outcome.threshold_params):
            middle, low, high = map(short, (outcome.threshold_params, outcome.params_low, outcome.params_high))
            said += f", threshold {middle} ({low} to {high}) parameters"
        told.setdefault(outcome.ability, []).append(said)
    models = max(len(points) for _, points in panels)
    listed = "; ".join(f"{ability}: {', '.join(said)}" for ability, said in told.items())
    return (
        f"Gain over chance against model size for {counted(len(told), 'ability', 'abilities')}, up to {models} models "
        f"each, with the best smooth and the best sharp curve. The better one and by how much in BIC: {listed}."
    )


def curve(fit: curves.Fit, at: ArrayLike, x: ArrayLike) -> np.ndarray:
    """Height of a fitted curve at `at`; of a two-state fit the mean. x: the points that it was fitted to."""
    at, first, last = np.asarray(at, float), np.min(x), np.max(x)
    if fit.shape == "flat":
        rise = np.zeros_like(at)
    elif fit.shape == "line":
        rise = (at - first) / (last - first)
    elif fit.shape == "break":
        length = fit.width / 0.8
        rise = np.maximum(0, at - (last - length)) / length
    else:
        rise = curves.logistic(at, fit.middle, fit.width / (2 * np.log(9)))
        if fit.shape == "two-state":
            rise = np.clip(rise, 0.01, 0.99)
    return fit.low + (fit.high - fit.low) * rise


def _panels(rows: pd.DataFrame, outcomes: pd.DataFrame) -> list[tuple]:
    """(outcome, its models) in the order in which they are drawn."""
    if outcomes.empty:
        raise LabkitError("jumps are drawn for outcomes", "none", "Hand in what labkit.emergence.emergence returns.")
    rows = rows[(rows["compression"] == DENSE) & rows["ability"].isin(outcomes["ability"])]
    rows = rows[rows["metric"].isin(outcomes["metric"])]
    means = {} if rows.empty else dict(list(scores(rows.assign(sparsity=0.0)).groupby(["ability", "metric"])))
    first = outcomes.groupby("ability", sort=False)["threshold"].transform("first")
    order = outcomes.assign(first=first, place=range(len(outcomes))).sort_values(["first", "ability", "place"])
    panels = []
    for outcome in order.itertuples(index=False):
        points = means.get((outcome.ability, outcome.metric))
        if points is None or points["params"].nunique() < 2:
            received = f"none of {outcome.ability} in {outcome.metric}" if points is None else f"{outcome.ability}: one"
            raise LabkitError("a jump is drawn over dense rows of several sizes", received, "Evaluate the ladder.")
        panels.append((outcome, points.assign(x=np.log10(points["params"]))))
    return panels


def _draw(axes: Axes, points: pd.DataFrame, outcome: tuple) -> None:
    if np.isfinite(outcome.threshold_params):
        axes.axvspan(outcome.params_low, outcome.params_high, color=COLOURS[2], alpha=0.2, linewidth=0, zorder=0)
        axes.axvline(outcome.threshold_params, color=COLOURS[2], linewidth=0.9, zorder=1)
    axes.axhline(0, color=GREY, linewidth=0.6, zorder=1)
    axes.plot(points["params"], points["gain"], "o", color=GREY, markersize=3.5, alpha=0.6, mew=0, label="models")
    told = f"ΔBIC {outcome.sharper:+.0f}".replace("-", "−")
    box = {"fc": "white", "ec": "none", "pad": 1}  # above the band and below the dots
    axes.text(0.98, 0.06, told, fontsize=7.5, ha="right", transform=axes.transAxes, bbox=box, zorder=1.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.minorticks_off()


def _draw_curves(axes: Axes, points: pd.DataFrame, smooth: curves.Fit, sharp: curves.Fit) -> None:
    at = np.linspace(points["x"].min(), points["x"].max(), 200)
    for label, fit, line in (("smooth", smooth, "--"), ("sharp", sharp, "-")):
        colour = COLOURS[label == "sharp"]
        axes.plot(10**at, curve(fit, at, points["x"]), line, color=colour, linewidth=1.3, label=label, zorder=3)
    if sharp.shape == "two-state":
        for level in (sharp.low, sharp.high):
            axes.axhline(level, color=COLOURS[1], linewidth=0.8, linestyle=":", zorder=2)


def short(number: float) -> str:
    """A count to two digits, with k, M or G."""
    return EngFormatter(sep="").format_data(float(f"{number:.2g}"))
