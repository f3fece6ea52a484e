"""The marks stand at the effective sizes, bounds are arrowheads, and the sentence beside them says the same."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from labkit.errors import LabkitError
from labkit.plotting.scale import effective_scale, effective_scale_alt

PARENT = 100_000


@pytest.fixture
def frame() -> pd.DataFrame:
    told = []
    for place, name in enumerate(("random", "wanda")):
        for ability, size, bounded in (("recall", 1e5, ""), ("facts", 2e4, ""), ("chain-1", 3e3, "at most")):
            size = size if bounded else size / (2 - place)
            told.append(("64x2", name, 0.5, ability, PARENT, size, size / 2, size * 1.5, size / PARENT, bounded))
        told.append(("64x2", name, 0.5, "guard", PARENT, *[np.nan] * 4, ""))
    names = ["rung", "compression", "sparsity", "ability", "params", "effective", "low", "high", "share", "bounded"]
    return pd.DataFrame(told, columns=names)


def marks(axes) -> list:
    return [line for line in axes.get_lines() if line.get_marker() not in ("None", None, "")]


def test_marks_stand_at_the_sizes_what_keeps_most_on_top(frame):
    (axes,) = effective_scale(frame).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["recall", "facts", "chain-1", "guard"]
    assert axes.get_xscale() == "log"
    drawn = [line.get_xdata()[0] for line in marks(axes)]
    np.testing.assert_allclose(drawn, [5e4, 1e5, 1e4, 2e4, 3e3, 3e3])  # random, then wanda, per ability
    bars = [line for line in axes.get_lines() if len(line.get_xdata()) == 2 and len(set(line.get_ydata())) == 1]
    np.testing.assert_allclose([line.get_xdata() for line in bars], [(x / 2, 1.5 * x) for x in drawn])


def test_bounds_are_arrowheads_and_the_parent_is_a_line(frame):
    (axes,) = effective_scale(frame).axes
    assert [line.get_marker() for line in marks(axes)] == ["o", "D", "o", "D", "<", "<"]
    assert any(set(line.get_xdata()) == {PARENT} for line in axes.get_lines())
    (above,) = effective_scale(frame.assign(bounded="at least")).axes
    assert {line.get_marker() for line in marks(above)} == {">"}


def test_what_the_parents_lack_is_said(frame):
    (axes,) = effective_scale(frame).axes
    (text,) = axes.texts
    assert text.get_text() == "absent in dense" and text.get_position()[1] == 3


def test_the_sentence_says_what_is_drawn(frame):
    said = effective_scale_alt(frame)
    assert "3 abilities under 2 compressions" in said
    assert "64x2, random 50 %: at most 0.03 (chain-1) to 0.50 (recall)" in said
    assert "64x2, wanda 50 %: at most 0.03 (chain-1) to 1.00 (recall)" in said


def test_nothing_to_draw_and_too_much_are_refused(frame):
    many = pd.concat([frame.assign(sparsity=s / 10) for s in range(1, 6)])
    for draw in (effective_scale, effective_scale_alt):
        with pytest.raises(LabkitError, match="needs an effective size; got 'none'"):
            draw(frame[frame["ability"] == "guard"])
        with pytest.raises(LabkitError, match="at most 8 compressions can be told apart in one figure; got 10"):
            draw(many)
