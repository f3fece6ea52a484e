"""Retention against what a student took: by tokens or by FLOPs, with a teacher and without."""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from labkit.errors import LabkitError, unknown
from labkit.plotting.style import COLOURS, GREY, MARKERS, STYLE, counted, draw_retentions, finished, hollow, panel_grid
from labkit.students import FRESH, SCRATCH

_FRAME = (-0.35, 1.45)  # retention shown; what lies beyond is an arrowhead at the edge
_AGAINST = {"tokens": "tokens that the student was trained on", "flops": "FLOPs of making the student, teacher included"}
_APART = 1.04  # factor between neighbouring ways at one dose, so that bars can be told apart ...
_ASIDE = 1.10  # ... and at most between a dose and where it is drawn


def way(start: str, way: str) -> str:
    """How a student was made, in words: "sequence", "forward-kl from drop-layers 1". How much is left of the teacher's
    width is not said, as the student's size says it.
    """
    return way if start == FRESH else f"{way} from {re.sub(r' (heads|ffn|width) [0-9]+%?', '', start)}"


def students(inherited: pd.DataFrame, against: str = "tokens", margin: float = 0.05, columns: int = 4) -> Figure:
    """Retention against the dose, one panel per ability and one line per way of making a student; bars are 95 %.

    Hollow marks are undecided, the shaded band is 1 ± margin (as the teacher), the grey dashed line the students that
    never met one. A way at a single dose is a lone mark; abilities that no teacher has are left out. Panels run from the ability
    that students have most of to the one they have least of; the axis of doses is logarithmic.

    Parameters
    ----------
    inherited : what `labkit.inheritance.inheritance` returns, of one rung of teacher and one size of student.
    against : "tokens", or "flops", the teacher's included, for which it needs a provenance.
    margin : as in the rule that it was judged by.
    columns : panels side by side.

    Raises
    ------
    LabkitError
        Another `against`, several teachers or sizes, or no way at two doses (of known FLOPs).
    """
    told = _doses(inherited, against)
    kinds = list(dict.fromkeys(zip(told["start"], told["way"], strict=True)))
    middle = (len(kinds) - 1) / 2
    apart = min(_APART, _ASIDE ** (1 / max(middle, 1)))
    doses = told[against].min() / _ASIDE**1.5, told[against].max() * _ASIDE**1.5
    panels = told.groupby("ability", observed=True)
    order = panels["retention"].mean().sort_values(ascending=False).index
    with plt.rc_context(STYLE):
        figure, grid = panel_grid(len(order), columns, width=2.2, height=1.7)
        for axes, ability in zip(grid, order, strict=True):
            axes.set_title(ability, loc="left", fontweight="bold", fontsize=9)
            axes.axhspan(1 - margin, 1 + margin, color=COLOURS[2], alpha=0.15, linewidth=0, zorder=0)
            axes.axhline(0, color=GREY, linewidth=0.8, zorder=1)
            for kind, line in panels.get_group(ability).groupby(["start", "way"], sort=False):
                x, empty = line[against] * apart ** (kinds.index(kind) - middle), line["outcome"] == "undecided"
                draw_retentions(axes, x, line, empty, _FRAME, _look(kinds, kind))
            axes.set(xscale="log", xlim=doses, ylim=_FRAME, yticks=[0, 0.5, 1], yticklabels=["0", "0.5", "1"])
            _tick(axes, told["tokens"] if against == "tokens" else None)
        figure.supxlabel(_AGAINST[against], fontsize=9)
        figure.supylabel("retention (0 = chance, 1 = teacher)", fontsize=9)
        key = [Line2D([], [], color=c, marker=m, linestyle=s, markersize=4.5, label=way(*kind))
               for kind in kinds for c, m, s in [_look(kinds, kind)]]  # fmt: skip
        key += [
            hollow(),
            Patch(color=COLOURS[2], alpha=0.15, label=f"{1 - margin:g} to {1 + margin:g}: as the teacher"),
        ]
        figure.legend(handles=key, loc="outside upper center", ncols=min(3, columns), frameon=False, fontsize=8.5)
    return finished(figure)


def students_alt(inherited: pd.DataFrame, against: str = "tokens") -> str:
    """The figure of `students` in words: for every ability and way the retention at the least and the largest dose."""
    doses, told = _doses(inherited, against), []
    for ability, panel in doses.groupby("ability", sort=False, observed=True):
        lines = []
        for kind, line in panel.groupby(["start", "way"], sort=False):
            both = line.iloc[[0, -1]] if len(line) > 1 else line
            ends = [f"{r:z.2f} at {_short(x, against)}" for r, x in both[["retention", against]].values]
            lines.append(f"{way(*kind)} {' to '.join(ends)}")
        told.append(f"{ability}: {', '.join(lines)}")
    low, high = (_short(dose, against) for dose in (doses[against].min(), doses[against].max()))
    return (
        f"Retention of {counted(len(told), 'ability', 'abilities')} in students {doses['size'].iloc[0]} of teachers "
        f"{doses['rung'].iloc[0]}, with 95 % intervals, from {low} to {high} {against}. "
        f"{'; '.join(told)}."
    )


def _doses(inherited: pd.DataFrame, against: str) -> pd.DataFrame:
    """What is drawn, in order of the dose; at least one way is at two doses."""
    if against not in _AGAINST:
        raise unknown("dose", against, _AGAINST)
    pairs = sorted({f"{size} of {rung}" for size, rung in zip(inherited["size"], inherited["rung"], strict=True)})
    if len(pairs) > 1:
        remedy = 'Choose one: inherited[(inherited["rung"] == …) & (inherited["size"] == …)].'
        raise LabkitError("students of one size and teacher are drawn", pairs, remedy)
    told = inherited[(inherited["outcome"] != "absent") & inherited["retention"].notna() & inherited[against].notna()]
    if not (told.groupby(["start", "way"])["tokens"].nunique() > 1).any():
        remedy = "Measure a list of tokens, and for FLOPs give inheritance the provenance."
        raise LabkitError("a curve needs a way of making students at two doses", f"none with {against}", remedy)
    return told.sort_values(["way", "tokens"], key=lambda c: c != SCRATCH if c.name == "way" else c, kind="stable")


def _look(kinds: list[tuple[str, str]], kind: tuple[str, str]) -> tuple:
    """Colour, marker and line of a start and a way; those without a teacher look the same in every figure."""
    if kind[1] == SCRATCH:
        return GREY, "o", "--"
    number = [k for k in kinds if k[1] != SCRATCH].index(kind)
    return COLOURS[number % len(COLOURS)], MARKERS[1:][number % (len(MARKERS) - 1)], "-"


def _tick(axes: Axes, tokens: pd.Series | None) -> None:
    """At the tokens measured, or at round numbers of FLOPs."""
    axes.xaxis.set_major_locator(LogLocator(subs=(2, 4, 8)) if tokens is None else FixedLocator(sorted(set(tokens))))
    axes.xaxis.set_minor_locator(NullLocator())
    against = "flops" if tokens is None else "tokens"
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _short(x, against)))


def _short(dose: float, against: str) -> str:
    return f"{dose / 1e12:.2g} T" if against == "flops" else f"{dose / 1e6:.3g} M"
