"""Marks and bars stand at the break-points and their ends; what does not break stands last, beyond what was measured."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from labkit import plotting
from labkit.errors import LabkitError

NAN = np.nan


@pytest.fixture
def points() -> pd.DataFrame:
    told = [
        ("64x2", "random", "recall", 0.15, 0.10, 0.20, ""),
        ("64x2", "wanda", "recall", NAN, 0.68, NAN, "retention stays above 0.5 up to sparsity 0.7"),
        ("64x2", "random", "facts", 0.20, 0.15, 0.25, ""),
        ("64x2", "wanda", "facts", 0.60, 0.50, NAN, "the upper bound is still above 0.5 at sparsity 0.7"),
        ("64x2", "wanda", "chain-3", NAN, NAN, NAN, "the dense models cannot be told from chance"),
    ]
    names = ["rung", "compression", "ability", "break_point", "low", "high", "reason"]
    return pd.DataFrame(told, columns=names)


def test_what_breaks_first_is_on_top_and_what_does_not_break_counts_as_last(points):
    """By the mean of the break-points alone recall would be first: one criterion breaks it early, the other never."""
    (axes,) = plotting.breaks(points, (0.3, 0.7)).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["facts", "recall"]


def test_bars_end_at_the_interval_and_marks_stand_at_the_break_point(points):
    (axes,) = plotting.breaks(points, (0.3, 0.7)).axes
    bars = sorted(tuple(line.get_xdata()) for line in axes.get_lines() if len(set(line.get_ydata())) == 1
                  and len(line.get_xdata()) == 2 and line.get_linewidth() == 1.4)  # fmt: skip
    edge = pytest.approx(0.73)
    assert bars == [(0.10, 0.20), (0.15, 0.25), (0.50, edge), (0.68, edge)]
    marks = {round(line.get_xdata()[0], 2): line.get_marker() for line in axes.get_lines() if len(line.get_xdata()) == 1}
    assert set(marks) == {0.15, 0.20, 0.60, 0.73} and marks[0.73] == ">"


def test_the_sentence_says_what_is_drawn(points):
    said = plotting.breaks_alt(points)
    assert "Rung 64x2, 2 abilities" in said and "chain-3" not in said
    assert "facts: random 20%, wanda 60%; recall: random 15%, wanda beyond" in said


def test_without_an_interval_there_is_nothing_to_draw(points):
    with pytest.raises(LabkitError, match="a figure of break-points needs one with an interval; got '1 without'"):
        plotting.breaks(points[points["ability"] == "chain-3"], (0.3, 0.7))
