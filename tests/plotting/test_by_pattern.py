"""Lines run from the freest pattern to the least free, through the verdicts' retentions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from labkit import plotting
from labkit.errors import LabkitError


@pytest.fixture
def verdicts() -> pd.DataFrame:
    told = [("64x2", f"wanda{p}", 0.5, "recall", "kept", R, R - 0.1, R + 0.1)
            for p, R in ((" 2:4", 0.5), ("", 0.9), (" 4:8", 0.7))]  # fmt: skip
    told += [("64x2", f"random{p}", 0.5, "recall", "undecided", 0.1, 0.0, 0.2) for p in ("", " 2:4")]
    told += [
        ("64x2", "magnitude by row", 0.5, "recall", "kept", 1.0, 0.9, 1.1),
        ("64x2", "wanda", 0.5, "guard", "absent", np.nan, np.nan, np.nan),
    ]
    names = ["rung", "compression", "sparsity", "ability", "verdict", "retention", "low", "high"]
    return pd.DataFrame(told, columns=names)


def test_lines_run_from_free_to_two_of_four_whatever_the_order_of_the_rows(verdicts):
    (axes,) = plotting.by_pattern(verdicts).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["free", "4:8", "2:4"]
    lines = [list(line.get_ydata()) for line in axes.get_lines() if line.get_linestyle() == "-"]
    drawn = [values for values in lines if len(set(values)) == 3 or values == [0.1, 0.1]]
    assert sorted(drawn, key=len) == [[0.1, 0.1], [0.9, 0.7, 0.5]]
    assert axes.get_title("left") == "recall"


def test_undecided_is_hollow(verdicts):
    (axes,) = plotting.by_pattern(verdicts).axes
    marks = [line for line in axes.get_lines() if len(line.get_xdata()) == 1]
    assert sorted(line.get_markerfacecolor() == "white" for line in marks) == [False] * 3 + [True] * 2


def test_the_sentence_has_the_means_of_what_is_drawn(verdicts):
    said = plotting.by_pattern_alt(verdicts)
    assert "1 ability on rung 64x2 at 50% zeros" in said
    assert "wanda: free 0.90, 4:8 0.70, 2:4 0.50" in said and "random: free 0.10, 2:4 0.10" in said
    assert "by row" not in said


def test_one_sparsity_and_two_patterns_are_needed(verdicts):
    with pytest.raises(LabkitError, match="patterns are drawn for one rung and one sparsity; got .*0.7"):
        plotting.by_pattern(pd.concat([verdicts, verdicts.assign(sparsity=0.7)]))
    with pytest.raises(LabkitError, match="a criterion was measured in two patterns or more; got .*by row"):
        plotting.by_pattern(verdicts[verdicts["compression"] == "magnitude by row"])
