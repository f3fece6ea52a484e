"""Lines are medians of how many times as fast, in the order and the panels that the rows have."""

from __future__ import annotations

import pandas as pd
import pytest

from labkit import plotting
from labkit.errors import LabkitError


@pytest.fixture
def faster() -> pd.DataFrame:
    told = [(way, part, tokens, times, times / 1.1, times * 1.1) for way, part, tokens, times in (
        ("called", "matrix", 1, 0.1), ("called", "matrix", 8, 0.2), ("called", "block", 1, 0.05), ("called", "block", 8, 0.1),
        ("replayed", "matrix", 1, 1.5), ("replayed", "matrix", 8, 1.25), ("replayed", "block", 1, 0.9), ("replayed", "block", 8, 1.0),
    )]  # fmt: skip
    return pd.DataFrame(told, columns=["way", "part", "tokens", "median", "min", "max"])


def test_a_panel_a_way_and_a_line_a_part(faster):
    called, replayed = plotting.speed(faster).axes
    assert [axes.get_title("left") for axes in (called, replayed)] == ["called", "replayed"]
    drawn = [list(line.get_ydata()) for line in called.get_lines()]
    assert drawn == [[1, 1], [0.1, 0.2], [0.05, 0.1]]  # the first is what dense is
    bars = [segment.tolist() for bars in replayed.collections for segment in bars.get_segments()]
    assert bars[0] == [[1, pytest.approx(1.5 / 1.1)], [1, pytest.approx(1.5 * 1.1)]]


def test_twice_and_half_are_as_far_from_dense(faster):
    (axes, _) = plotting.speed(faster).axes
    places = axes.transData.transform([(1, 0.5), (1, 1), (1, 2)])[:, 1]
    assert places[2] - places[1] == pytest.approx(places[1] - places[0])


def test_the_sentence_has_the_range_of_the_medians(faster):
    said = plotting.speed_alt(faster)
    assert "for 1 to 8 tokens at a time" in said
    assert "called: matrix 0.10 to 0.20, block 0.05 to 0.10" in said and "replayed: matrix 1.25 to 1.50" in said


def test_without_timings_there_is_no_figure(faster):
    with pytest.raises(LabkitError, match="a figure of speed has timings; got 'none'"):
        plotting.speed(faster.iloc[:0])
