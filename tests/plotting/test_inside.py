"""Colours and marks stand for the numbers of the frames, and the sentence beside each figure says the same."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from labkit.errors import LabkitError
from labkit.plotting.inside import heads, heads_alt, parts, parts_alt, patterns, patterns_alt

PATTERN = np.array([[1, 0, 0], [0.25, 0.75, 0], [0.1, 0.7, 0.2]])
WORDS = ["a", "b", "a"]


@pytest.fixture
def effects() -> pd.DataFrame:
    told = [
        ("head 0.1", 0, 1, "recall", -0.9, -1.0, -0.8, 0.1, 0.0, 0.2),
        ("head 0.1", 0, 1, "facts", -0.001, -0.1, 0.1, 1.0, 0.9, 1.1),
        ("mlp 1", 1, pd.NA, "recall", 0.0, -0.1, 0.1, 1.0, 0.9, 1.1),
        ("mlp 1", 1, pd.NA, "facts", 0.5, 0.4, 0.6, np.nan, np.nan, np.nan),
    ]
    names = ["part", "layer", "head", "ability", "change", "low", "high", "share", "share_low", "share_high"]
    return pd.DataFrame(told, columns=names).assign(metric="exact_match")


@pytest.fixture
def looks() -> pd.DataFrame:
    told = [(m, p, s, v, v - 0.1, v + 0.1, 0.2) for m, base in (("dense", 0.8), ("wanda 50 %", 0.4))
            for p, v in (("head 0.0", base), ("head 1.0", base / 2)) for s in ("induction", "backward")]  # fmt: skip
    return pd.DataFrame(told, columns=["model", "part", "score", "value", "low", "high", "even"])


# --- attention -------------------------------------------------------------------------------------------------------


def test_a_pattern_is_shown_up_to_the_place_that_looks():
    figure = patterns({"head 1.2": PATTERN, "head 0.0": PATTERN.T.T}, WORDS)
    first, second = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["head 1.2", "head 0.0"]
    shown = first.images[0].get_array()
    np.testing.assert_array_equal(shown.mask, np.triu(np.ones((3, 3), bool), 1))
    np.testing.assert_array_equal(shown.filled(0), PATTERN)
    assert [label.get_text() for label in first.get_xticklabels()] == WORDS


def test_the_sentence_says_where_the_last_place_looks():
    said = patterns_alt({"head 1.2": PATTERN}, WORDS)
    assert said.endswith("From the last place, 'a': head 1.2 looks most at 'b' in place 1 (0.70).")


def test_patterns_of_another_text_are_refused():
    for draw in (patterns, patterns_alt):
        with pytest.raises(LabkitError, match=r"for a text of 2 tokens; got 'head: \(3, 3\)'. Give one head's attention"):
            draw({"head": PATTERN}, WORDS[:2])
        with pytest.raises(LabkitError, match="a figure of attention needs a pattern; got 'none'"):
            draw({}, WORDS)


# --- parts -----------------------------------------------------------------------------------------------------------


def test_cells_are_the_numbers_and_bold_where_the_interval_leaves_out_zero(effects):
    axes, bar = parts(effects).axes
    np.testing.assert_array_equal(axes.images[0].get_array(), [[-0.9, -0.001], [0.0, 0.5]])
    assert [(text.get_text(), text.get_fontweight()) for text in axes.texts] == [
        ("-0.90", "bold"), ("0.00", "normal"), ("0.00", "normal"), ("0.50", "bold")
    ]  # fmt: skip
    assert [label.get_text() for label in axes.get_yticklabels()] == ["head 0.1", "mlp 1"]
    assert [line.get_ydata()[0] for line in axes.lines] == [0.5]  # between the layers
    assert bar.get_ylabel() == "change of the score"


def test_shares_that_are_not_known_are_left_open(effects):
    axes, _ = parts(effects, "share").axes
    assert [text.get_text() for text in axes.texts] == ["0.10", "1.00", "1.00", "…"]
    assert "facts: head 0.1 1.00 (0.90 to 1.10)" in parts_alt(effects, "share")


def test_roles_have_no_line_between_them_but_one_before_them(effects):
    assert not parts(effects.assign(layer=pd.NA)).axes[0].lines
    roles = effects.assign(layer=pd.array([0, 0, pd.NA, pd.NA], dtype="Int64"), part=list("aabb"))
    assert [line.get_ydata()[0] for line in parts(roles).axes[0].lines] == [0.5]


def test_the_sentence_names_the_largest_effect(effects):
    said = parts_alt(effects)
    assert said.startswith("Heat map of the change of the score for 2 parts and 2 abilities.")
    assert "recall: head 0.1 -0.90 (-1.00 to -0.80); facts: mlp 1 0.50 (0.40 to 0.60)" in said


def test_a_map_of_two_metrics_or_of_another_column_is_refused(effects):
    for draw in (parts, parts_alt):
        with pytest.raises(LabkitError, match="one row for each part and ability; got 'exact_match, nll_nats'. Choose"):
            draw(pd.concat([effects, effects.assign(metric="nll_nats")]))
        with pytest.raises(LabkitError, match="a known column of effects is needed; got 'shares'. Nearest: share."):
            draw(effects, "shares")


# --- heads -----------------------------------------------------------------------------------------------------------


def test_marks_stand_at_the_scores_with_their_intervals(looks):
    first, second = heads(looks).axes
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["induction", "backward"]
    even, *points = first.lines
    assert set(even.get_ydata()) == {0.2}
    assert [line.get_ydata().tolist() for line in points] == [[0.8, 0.4], [0.4, 0.2]]
    bars = [segment[:, 1].tolist() for segment in first.collections[0].get_segments()]
    assert bars == [pytest.approx([0.7, 0.9]), pytest.approx([0.3, 0.5])]
    assert [label.get_text() for label in first.get_xticklabels()] == ["head 0.0", "head 1.0"]


def test_a_head_that_a_model_lacks_has_no_mark(looks):
    short = looks[(looks["model"] == "dense") | (looks["part"] == "head 1.0")]
    points = heads(short).axes[0].lines[-1].get_ydata()
    assert np.isnan(points[0]) and points[1] == 0.2


def test_the_sentence_names_the_highest_of_each_model(looks):
    said = heads_alt(looks)
    assert said.startswith("Scores of 2 heads, dense, wanda 50 %.")
    assert "induction: dense head 0.0 0.80, wanda 50 % head 0.0 0.40" in said


def test_models_without_a_name_are_refused(looks):
    for draw in (heads, heads_alt):
        with pytest.raises(LabkitError, match=r"shows 1 to 8 models, named in a column 'model'; got \[\]. Add the column"):
            draw(looks.drop(columns="model"))


def test_of_shares_the_least_is_told_too_and_what_is_far_below_is_readable(effects):
    said = parts_alt(effects, "share")
    assert "recall: head 0.1 0.10 (0.00 to 0.20), mlp 1 1.00 (0.90 to 1.10)" in said and "facts: head 0.1 1.00" in said
    assert "recall: none" in parts_alt(effects.assign(share=effects["share"].where(effects["ability"] != "recall")), "share")
    (axes, *_) = parts(effects.assign(share=-3.0), "share").axes
    assert {text.get_color() for text in axes.texts} == {"black"}
