"""The sweep's lines hold the verdicts' numbers, and the sentence beside it says the same."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from labkit import plotting
from labkit.errors import LabkitError
from labkit.plotting.doses import swept


@pytest.fixture
def verdicts() -> pd.DataFrame:
    told = []
    for place, name in enumerate(("random", "wanda")):
        for sparsity in (0.2, 0.5, 0.8):
            for ability, slope in (("recall", 0.5), ("facts", 2.0)):
                R = 1 - slope * sparsity + 0.1 * place
                verdict = "undecided" if sparsity == 0.5 else "degraded"
                told.append(("64x2", name, sparsity, ability, verdict, R, R - 0.1, R + 0.1))
            told.append(("64x2", name, sparsity, "guard", "absent", np.nan, np.nan, np.nan))
    told.append(("64x2", "wanda 2:4", 0.5, "recall", "kept", 1.0, 0.9, 1.1))
    told.append(("64x2", "drop-layers 1", 0.0, "recall", "lost", 0.0, 0.0, 0.1))
    names = ["rung", "compression", "sparsity", "ability", "verdict", "retention", "low", "high"]
    return pd.DataFrame(told, columns=names)


def test_lines_go_through_the_retentions_in_order_of_the_dose(verdicts):
    panels = {axes.get_title("left"): axes for axes in plotting.sweep(verdicts).axes}
    assert list(panels) == ["recall", "facts"]  # what keeps most comes first; absent abilities have no panel
    drawn = [line.get_ydata() for line in panels["recall"].get_lines() if len(line.get_ydata()) == 3]
    expected = [[1 - 0.5 * s + shift for s in (0.2, 0.5, 0.8)] for shift in (0, 0.1)]
    np.testing.assert_allclose(drawn, expected)


def test_undecided_is_hollow_and_what_is_off_the_frame_an_arrowhead(verdicts):
    (facts,) = (axes for axes in plotting.sweep(verdicts).axes if axes.get_title("left") == "facts")
    marks = [line for line in facts.get_lines() if line.get_marker() not in ("None", None, "")]
    hollow = [line for line in marks if line.get_markerfacecolor() == "white"]
    assert len(marks) == 6 and len(hollow) == 2
    arrows = [line for line in marks if line.get_marker() == "v"]
    assert len(arrows) == 2 and all(line.get_ydata()[0] == -0.35 for line in arrows)  # random and wanda at 80 %


def test_the_level_is_a_line_and_every_dose_a_tick(verdicts):
    plain, levelled = (plotting.sweep(verdicts, level=level) for level in (None, 0.4))
    for without, axes in zip(plain.axes, levelled.axes, strict=True):
        assert list(axes.get_xticks()) == [0.2, 0.5, 0.8]
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["20%", "", "80%"]
        dashed = [[line.get_ydata()[0] for line in a.get_lines() if line.get_linestyle() == "--"] for a in (without, axes)]
        assert dashed == [[], [0.4]]
    (legend,) = levelled.legends
    assert legend.get_texts()[-1].get_text() == "below 0.4: broken"


def test_the_sentence_says_what_is_drawn(verdicts):
    said = plotting.sweep_alt(verdicts)
    assert "2 abilities on rung 64x2" in said
    assert "recall: random 0.90 at 20% to 0.60 at 80%, wanda 1.00 at 20% to 0.70 at 80%" in said and "guard" not in said


def test_one_rung_and_two_doses_are_needed(verdicts):
    with pytest.raises(LabkitError, match="a sweep is drawn for one rung; got \\['64x2', '96x3'\\]"):
        plotting.sweep(pd.concat([verdicts, verdicts.assign(rung="96x3")]))
    with pytest.raises(LabkitError, match="a compression at two or more sparsities"):
        plotting.sweep(verdicts[verdicts["sparsity"] == 0.5])


def test_a_rung_with_one_sparsity_of_a_compression_has_no_line_of_it(verdicts):
    other = verdicts[(verdicts["compression"] != "wanda") | (verdicts["sparsity"] == 0.5)].assign(rung="96x3")
    both = pd.concat([verdicts, other], ignore_index=True)
    drawn = set(map(tuple, both[swept(both)][["rung", "compression"]].drop_duplicates().values))
    assert drawn == {("64x2", "random"), ("64x2", "wanda"), ("96x3", "random")}


def test_any_number_of_criteria_is_drawn(verdicts):
    wanda = verdicts[verdicts["compression"] == "wanda"]
    many = pd.concat([wanda.assign(compression=f"criterion-{number}") for number in range(12)])
    (legend,) = plotting.sweep(many).legends
    assert [text.get_text() for text in legend.get_texts()][:12] == [f"criterion-{number}" for number in range(12)]
