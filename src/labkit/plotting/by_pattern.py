"""Retention against the pattern that zeros must keep, at one sparsity."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from labkit.errors import LabkitError
from labkit.plotting.style import (
    GREY, STYLE, counted, draw_retentions, finished, hollow, look, mark, panel_grid,
)  # fmt: skip

FREE = "free"
_FRAME = (-0.35, 1.35)  # retention shown; what lies beyond is an arrowhead at the edge


def by_pattern(verdicts: pd.DataFrame, columns: int = 4) -> Figure:
    """Retention where zeros are chosen freely, by 4:8 and by 2:4, a panel per ability and a line per criterion.

    The fewer the places that a group of inputs leaves to choose from, the further right. Bars are 95 % intervals; hollow
    marks are undecided; abilities that the dense models lack are left out. Panels run from what keeps most to what
    keeps least.

    Parameters
    ----------
    verdicts : what `labkit.judge` returns, of one rung and one sparsity; a pattern stands at the end of a compression's
        name. Compressions without a partner in another pattern are left out.
    columns : panels side by side.

    Raises
    ------
    LabkitError
        Several rungs or sparsities, or no criterion with two patterns.
    """
    told = _told(verdicts)
    names, patterns = list(dict.fromkeys(told["criterion"])), _patterns(told)
    panels = told.groupby("ability", observed=True)
    order = panels["retention"].mean().sort_values(ascending=False).index
    with plt.rc_context(STYLE):
        figure, grid = panel_grid(len(order), columns, width=1.9, height=1.5)
        for axes, ability in zip(grid, order, strict=True):
            axes.set_title(ability, loc="left", fontweight="bold", fontsize=9)
            for level in (0, 1):
                axes.axhline(level, color=GREY, linewidth=0.8, zorder=1)
            for name, line in panels.get_group(ability).groupby("criterion", sort=False, observed=True):
                number = names.index(name)
                x = line["pattern"].map(patterns.index) + 0.1 * (number - (len(names) - 1) / 2)
                draw_retentions(axes, x, line, line["verdict"] == "undecided", _FRAME, look(number))
            axes.set(ylim=_FRAME, yticks=[0, 0.5, 1], yticklabels=["0", "0.5", "1"], xlim=(-0.4, len(patterns) - 0.6))
            axes.set_xticks(range(len(patterns)), patterns)
        figure.supxlabel("pattern of the zeros: their number is the same", fontsize=9)
        figure.supylabel("retention (0 = chance, 1 = dense)", fontsize=9)
        key = [mark(number, name) for number, name in enumerate(names)]
        key += [hollow()]
        figure.legend(handles=key, loc="outside upper center", ncols=len(key), frameon=False, fontsize=8.5)
    return finished(figure)


def by_pattern_alt(verdicts: pd.DataFrame) -> str:
    """The figure of `by_pattern` in words: the mean retention over abilities of every criterion in every pattern."""
    told = _told(verdicts)
    means = told.groupby(["criterion", "pattern"], observed=True)["retention"].mean()
    lines = [
        f"{name}: {', '.join(f'{p} {means[name, p]:.2f}' for p in _patterns(told) if (name, p) in means.index)}"
        for name in dict.fromkeys(told["criterion"])
    ]
    return (
        f"Retention by pattern for {counted(told['ability'].nunique(), 'ability', 'abilities')} on rung "
        f"{told['rung'].iloc[0]} at {told['sparsity'].iloc[0]:.0%} zeros, with 95 % intervals. Means: {'; '.join(lines)}."
    )


def _told(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Verdicts to draw with their criterion and pattern, the least free pattern last."""
    where = verdicts[["rung", "sparsity"]].drop_duplicates().values.tolist()
    if len(where) != 1:
        remedy = "Choose one: verdicts[(verdicts.rung == …) & (verdicts.sparsity == …)]."
        raise LabkitError("patterns are drawn for one rung and one sparsity", where, remedy)
    named = verdicts["compression"].astype(str).str.extract(r"^(.*?)(?: (\d+:\d+))?$")
    told = verdicts.assign(criterion=named[0], pattern=named[1].fillna(FREE))
    told = told[(told["verdict"] != "absent") & told["retention"].notna()]
    several = told.groupby("criterion")["pattern"].nunique()
    told = told[told["criterion"].isin(several.index[several > 1])]
    if told.empty:
        received = sorted(verdicts["compression"].astype(str).unique())
        raise LabkitError("a criterion was measured in two patterns or more", received, "Run a study such as pruning.")
    return told.sort_values("pattern", key=lambda pattern: pattern.map(_constraint), kind="stable")


def _patterns(told: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(told["pattern"]))


def _constraint(pattern: str) -> float:
    """How little a pattern leaves to choose: 1 / M of N:M."""
    return 0.0 if pattern == FREE else 1 / int(pattern.partition(":")[2])
