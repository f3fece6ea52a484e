"""Inside a model: where heads look, what each part does for an ability, and how far a compression moved a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from labkit.errors import LabkitError, unknown
from labkit.plotting.style import COLOURS, GREY, MARKERS, STYLE, counted, finished, mark, panel_grid

_COLUMNS = {"change": "change of the score", "share": "share of the ability"}
_ENDS = {"change": "Largest", "share": "Least and largest"}


def patterns(pictures: Mapping[str, np.ndarray], tokens: Sequence[str]) -> Figure:
    """Attention of some heads on one text, side by side: a row for each place that looks, dark where it looks.

    Parameters
    ----------
    pictures : title, such as "head 1.2" -> (time, time) attention; rows sum to 1.
    tokens : the text, one word for each place.

    Raises
    ------
    LabkitError
        No picture, or one that is not as large as the text.
    """
    _check(pictures, tokens)
    size, letters = min(4.2, max(2.2, 0.17 * len(tokens))), 6.5 if len(tokens) > 16 else 8
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(1, len(pictures), figsize=(size * len(pictures) + 0.8, size + 0.7), sharey=True,
                                    squeeze=False, layout="constrained")  # fmt: skip
        for axes, (title, pattern) in zip(grid.flat, pictures.items(), strict=True):
            ahead = np.triu(np.ones_like(pattern, dtype=bool), 1)
            image = axes.imshow(np.ma.masked_array(pattern, ahead), cmap="Blues", vmin=0, vmax=1)
            axes.set_title(title, loc="left", fontweight="bold", fontsize=9)
            places = range(len(tokens))
            axes.set_xticks(places, tokens, fontsize=letters, rotation=90)
            axes.set_yticks(places, tokens, fontsize=letters)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        figure.supxlabel("is looked at", fontsize=9)
        figure.supylabel("looks", fontsize=9)
        figure.colorbar(image, ax=list(grid.flat), label="attention", shrink=0.7, pad=0.02)
    return finished(figure)


def patterns_alt(pictures: Mapping[str, np.ndarray], tokens: Sequence[str]) -> str:
    """The figure of `patterns` in words: where each head looks most from the last place, and how much."""
    _check(pictures, tokens)
    told = []
    for title, pattern in pictures.items():
        most = int(np.argmax(pattern[-1]))
        told.append(f"{title} looks most at {tokens[most]!r} in place {most} ({pattern[-1, most]:.2f})")
    return f"Attention on a text of {len(tokens)} tokens. From the last place, {tokens[-1]!r}: {'; '.join(told)}."


def parts(effects: pd.DataFrame, column: str = "change") -> Figure:
    """A heat map: parts down, abilities across; bold where the interval leaves out 0. Lines part the layers, and
    parts of one layer from those that are of none.

    Parameters
    ----------
    effects : what `labkit.inside.effects` returns, of one metric.
    column : "change" from the intact model, or "share": left after an ablation, or come back after a patch.

    Raises
    ------
    LabkitError
        Another column; more than one row for a part and an ability.
    """
    value, low, high = _tables(effects, column)
    layers = effects.drop_duplicates("part")["layer"].to_list()
    with plt.rc_context(STYLE):
        size = (0.55 * value.shape[1] + 2.6, 0.24 * len(value) + 1.2)
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        colours, least = ("RdBu", -1) if column == "change" else ("Blues", 0)
        image = axes.imshow(value, cmap=colours, vmin=least, vmax=1, aspect="auto")
        for (y, x), number in np.ndenumerate(value.to_numpy()):
            told = low.iat[y, x] > 0 or high.iat[y, x] < 0
            axes.text(x, y, "…" if np.isnan(number) else f"{round(number, 2) + 0.0:.2f}", ha="center", va="center",
                      fontsize=7.5, color="white" if (abs(number) if column == "change" else number) > 0.6 else "black",
                      fontweight="bold" if told else "normal")  # fmt: skip
        for y, (above, below) in enumerate(zip(layers, layers[1:], strict=False)):
            if pd.isna(above) != pd.isna(below) or (pd.notna(above) and above != below):
                axes.axhline(y + 0.5, color=GREY, linewidth=1)
        axes.set_xticks(range(value.shape[1]), value.columns, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(value)), value.index)
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, label=_COLUMNS[column], pad=0.02)
    return finished(figure)


def parts_alt(effects: pd.DataFrame, column: str = "change") -> str:
    """The figure of `parts` in words: for every ability the largest change; of shares the least and the largest."""
    value, low, high = _tables(effects, column)
    told = []
    for ability in value.columns:
        known = value[ability].dropna()
        if known.empty:
            told.append(f"{ability}: none")
            continue
        ends = [known.abs().idxmax()] if column == "change" else dict.fromkeys([known.idxmin(), known.idxmax()])
        said = [f"{part} {known[part]:z.2f} ({low.at[part, ability]:z.2f} to {high.at[part, ability]:z.2f})" for part in ends]
        told.append(f"{ability}: {', '.join(said)}")
    return (
        f"Heat map of the {_COLUMNS[column]} for {counted(len(value), 'part')} and "
        f"{counted(value.shape[1], 'ability', 'abilities')}. {_ENDS[column]}, with 95 % interval: {'; '.join(told)}."
    )


def heads(looks: pd.DataFrame) -> Figure:
    """Scores of heads under several compressions, one panel per score; bars are 95 % intervals.

    The dotted line is what a head would have that looks at all places alike.

    Parameters
    ----------
    looks : what `labkit.inside.looks` returns, of several models, with a column ``model`` that names them.

    Raises
    ------
    LabkitError
        No model, or more than can be told apart.
    """
    models, scores, names = _models(looks), list(looks["score"].unique()), list(looks["part"].unique())
    with plt.rc_context(STYLE):
        figure, grid = panel_grid(len(scores), columns=2, width=max(2.6, 0.3 * len(names)), height=1.9)
        for axes, score in zip(grid, scores, strict=True):
            panel = looks[looks["score"] == score]
            axes.set_title(score, loc="left", fontweight="bold", fontsize=9)
            axes.axhline(panel["even"].mean(), color=GREY, linestyle=":", linewidth=1.2, zorder=1)
            for number, model in enumerate(models):
                line = panel[panel["model"] == model].set_index("part").reindex(names)
                x = np.arange(len(names)) + 0.6 * ((number + 0.5) / len(models) - 0.5)
                axes.vlines(x, line["low"], line["high"], color=COLOURS[number], linewidth=1.4, alpha=0.7, zorder=2)
                points = mark(number, "")
                points.set_data(x, line["value"].to_numpy())
                points.set_clip_on(False)
                axes.add_line(points)
            axes.set(ylim=(0, 1), xlim=(-0.5, len(names) - 0.5))
            axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
        figure.supylabel("share of the attention", fontsize=9)
        key = [mark(number, model) for number, model in enumerate(models)]
        key.append(Line2D([], [], color=GREY, linestyle=":", label="looks at all places alike"))
        figure.legend(handles=key, loc="outside upper center", ncols=5, frameon=False, fontsize=8.5)
    return finished(figure)


def heads_alt(looks: pd.DataFrame) -> str:
    """The figure of `heads` in words: for every score and model the head with most of it."""
    names, told = ", ".join(_models(looks)), []
    for score, panel in looks.groupby("score", sort=False):
        most = [group.loc[group["value"].idxmax()] for _, group in panel.groupby("model", sort=False)]
        told.append(f"{score}: {', '.join(f'{row.model} {row.part} {row.value:.2f}' for row in most)}")
    return f"Scores of {counted(looks['part'].nunique(), 'head')}, {names}. Highest: {'; '.join(told)}."


def _check(pictures: Mapping[str, np.ndarray], tokens: Sequence[str]) -> None:
    if not pictures:
        raise LabkitError("a figure of attention needs a pattern", "none", "Give title -> pattern of a head.")
    for title, pattern in pictures.items():
        if np.shape(pattern) != (len(tokens),) * 2:
            rule = f"a pattern is (time, time) for a text of {len(tokens)} tokens"
            raise LabkitError(rule, f"{title}: {np.shape(pattern)}", "Give one head's attention on this text.")


def _tables(effects: pd.DataFrame, column: str) -> list[pd.DataFrame]:
    """Estimate, low and high, parts × abilities, in the order of the rows."""
    if column not in _COLUMNS:
        raise unknown("column of effects", column, _COLUMNS)
    if effects.duplicated(["part", "ability"]).any():
        received = ", ".join(effects["metric"].unique())
        rule = "a heat map shows one row for each part and ability"
        raise LabkitError(rule, received, "Choose a metric: effects[effects.metric == 'exact_match'].")
    ends = ("low", "high") if column == "change" else ("share_low", "share_high")
    order = [effects[name].unique() for name in ("part", "ability")]
    return [
        effects.pivot(index="part", columns="ability", values=name).loc[order[0], order[1]] for name in (column, *ends)
    ]


def _models(looks: pd.DataFrame) -> list[str]:
    models = list(looks["model"].unique()) if "model" in looks else []
    if not 1 <= len(models) <= len(MARKERS):
        rule = f"a figure of heads shows 1 to {len(MARKERS)} models, named in a column 'model'"
        raise LabkitError(rule, models, "Add the column: looks.assign(model='dense').")
    return models
