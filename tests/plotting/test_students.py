"""The curves hold the numbers of `inheritance`, controls are told apart, and the sentence beside them says the same."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from labkit import plotting
from labkit.errors import LabkitError

DOSES = (3e6, 6e6, 12e6)


@pytest.fixture
def inherited() -> pd.DataFrame:
    """R = slope · tokens / 12 M in every ability, ten times as much in the second; FLOPs double with a teacher."""
    told = []
    for way, slope in (("forward-kl", 0.4), ("sequence", 0.8), ("scratch", 1.0)):
        for tokens in DOSES:
            for ability, factor in (("recall", 1), ("chain-1", 10)):
                R = factor * slope * tokens / 12e6
                outcome = "undecided" if tokens == 6e6 else "partially"
                flops = tokens * (1 if way == "scratch" else 2)
                told.append(("fresh", way, tokens, flops, ability, outcome, R, R - 0.1, R + 0.1))
            told.append(("fresh", way, tokens, flops, "chain-2", "absent", np.nan, np.nan, np.nan))
    told.append(("drop-layers 1", "forward-kl", 6e6, 1e7, "recall", "better", 1.2, 1.1, 1.3))
    names = ["start", "way", "tokens", "flops", "ability", "outcome", "retention", "low", "high"]
    return pd.DataFrame(told, columns=names).assign(rung="96x3", size="64x2")


def panels(figure) -> dict:
    return {axes.get_title("left"): axes for axes in figure.axes}


def curves(axes) -> list:
    return [line for line in axes.get_lines() if len(line.get_xdata()) == 3]


@pytest.mark.parametrize("against", ["tokens", "flops"])
def test_curves_go_through_the_retentions_at_their_doses(inherited, against):
    found = panels(plotting.students(inherited, against))
    assert list(found) == ["chain-1", "recall"]  # most first; what no teacher has is left out
    drawn = curves(found["recall"])
    assert [line.get_linestyle() for line in drawn] == ["--", "-", "-"]  # from scratch first; one dose is no curve, but a mark:
    assert any(np.allclose(line.get_ydata(), [1.2]) for line in found["recall"].get_lines())
    for line, slope, cost in zip(drawn, (1.0, 0.4, 0.8), (1, 2, 2), strict=True):
        np.testing.assert_allclose(line.get_ydata(), [slope * tokens / 12e6 for tokens in DOSES])
        asked = np.array(DOSES) * (cost if against == "flops" else 1)
        np.testing.assert_allclose(line.get_xdata(), asked, rtol=0.07)  # side by side
    assert found["recall"].get_xscale() == "log"


def test_undecided_is_hollow_and_what_is_off_the_frame_an_arrowhead(inherited):
    found = panels(plotting.students(inherited))
    marks = [line for line in found["recall"].get_lines() if line.get_marker() not in ("None", None, "")]
    assert len(marks) == 10 and sum(line.get_markerfacecolor() == "white" for line in marks) == 3
    beyond = [line for line in found["chain-1"].get_lines() if line.get_marker() == "^" and line.get_ydata()[0] == 1.45]
    assert len(beyond) == 8  # all but forward-kl's 10 · 0.4 · 3 / 12 = 1


def test_the_axis_says_what_was_measured(inherited):
    (recall,) = (axes for name, axes in panels(plotting.students(inherited)).items() if name == "recall")
    assert [label.get_text() for label in recall.get_xticklabels()] == ["3 M", "6 M", "12 M"]
    assert "teacher included" in plotting.students(inherited, "flops").get_supxlabel()


def test_many_ways_are_drawn_near_their_dose_and_every_dose_is_on_the_axis(inherited):
    long = inherited[inherited["way"] == "scratch"]
    long = long.assign(tokens=long["tokens"] * 2)
    more = [inherited[inherited["way"] == "sequence"].assign(way=f"jsd beta 0.{number}") for number in range(1, 9)]
    figure = plotting.students(pd.concat([inherited, long, *more]))
    recall = panels(figure)["recall"]
    doses = sorted({*DOSES, *long["tokens"]})
    for line in curves(recall):
        assert all(min(abs(x / dose - 1) for dose in doses) < 0.11 for x in line.get_xdata())
    assert [label.get_text() for label in recall.get_xticklabels()] == ["3 M", "6 M", "12 M", "24 M"]
    low, high = recall.get_xlim()
    assert low < doses[0] and doses[-1] < high


def test_the_sentence_says_what_is_drawn(inherited):
    said = plotting.students_alt(inherited)
    assert "2 abilities in students 64x2 of teachers 96x3" in said and "from 3 M to 12 M tokens" in said
    assert "recall: scratch 0.25 at 3 M to 1.00 at 12 M, forward-kl 0.10 at 3 M to 0.40 at 12 M," in said and "forward-kl from drop-layers 1 1.20 at " in said
    assert "chain-2" not in said
    dear = inherited.assign(flops=inherited["flops"] * 1e6)
    assert "from 3 T to 24 T flops" in plotting.students_alt(dear, "flops")


def test_a_way_is_named_with_its_start():
    assert plotting.way("fresh", "sequence") == "sequence"
    assert plotting.way("drop-layers 1", "forward-kl") == "forward-kl from drop-layers 1"
    assert plotting.way("keep-layers 2 + shrink heads 50% width 64 by random", "train") == "train from keep-layers 2 + shrink by random"


def test_what_cannot_be_drawn(inherited):
    with pytest.raises(LabkitError, match="hours"):
        plotting.students(inherited, "hours")
    with pytest.raises(LabkitError, match=r"students of one size and teacher are drawn; got \['32x2 of 96x3', '64x2 of 96x3'\]"):
        plotting.students(pd.concat([inherited, inherited.assign(size="32x2")]))
    with pytest.raises(LabkitError, match="a way of making students at two doses; got 'none with flops'"):
        plotting.students(inherited.assign(flops=np.nan), "flops")
    with pytest.raises(LabkitError, match="a way of making students at two doses"):
        plotting.students_alt(inherited[inherited["tokens"] == 3e6])
