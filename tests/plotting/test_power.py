"""The panels hold the simulated shares with their Monte Carlo error, and the sentence beside them says the same."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from labkit.errors import LabkitError
from labkit.plotting.power import power, power_alt
from labkit.simulation import calibrate
from labkit.statistics import jeffreys_interval

SEEDS = (3, 5, 8)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Shares written by hand: power grows with seeds, and one seed in ten that fails is not seen."""
    told = []
    for seeds, enough in zip(SEEDS, (0.5, 0.85, 1.0), strict=True):
        for items in (500, 2000):
            for truth, kept, lost in ((1.0, enough - (items == 500) * 0.1, 0.0), (0.95, 0.04, 0.0), (0.2, 0.0, 0.02)):
                told.append((seeds, items, truth, 0.03, "normal", kept, lost, 0.95))
            told.append((seeds, items, 0.95, 0.1, "skewed", 0.9**seeds, 0.0, 0.5))
    names = ["seeds", "items", "retention", "between", "shape", "kept", "lost", "coverage"]
    return pd.DataFrame(told, columns=names).assign(method="interval", repeats=1000)


def panels(frame: pd.DataFrame) -> dict:
    return {axes.get_title("left"): axes for axes in power(frame).axes}


def curves(axes) -> list[np.ndarray]:
    return [line.get_ydata() for line in axes.get_lines() if len(line.get_xdata()) == len(SEEDS)]


def test_each_panel_draws_the_shares_of_its_truth(frame):
    drawn = panels(frame)
    assert list(drawn) == [
        "truth 1: called kept (power)",
        "truth 0.95: called kept (wrong)",
        "truth 0.2: called lost (wrong)",
        "95 % interval holds the truth",
    ]
    first, second, third, last = map(curves, drawn.values())
    np.testing.assert_allclose(first, [[0.4, 0.75, 0.9], [0.5, 0.85, 1.0]])  # 500 items, then 2,000
    np.testing.assert_allclose(second, [[0.04] * 3] * 2 + [[0.9**n for n in SEEDS]] * 2)
    np.testing.assert_allclose(third, [[0.02] * 3] * 2)
    np.testing.assert_allclose(last, [[0.95] * 3] * 2 + [[0.5] * 3] * 2)


def test_bars_are_the_error_of_so_many_repeats(frame):
    (bars, *_) = panels(frame)["truth 0.95: called kept (wrong)"].collections
    ends = [segment[:, 1] for segment in bars.get_segments()]
    np.testing.assert_allclose(ends, [jeffreys_interval(40, 1000)] * 3)


def test_fewer_items_are_hollow_and_levels_are_dotted(frame):
    for axes, level in zip(panels(frame).values(), (0.8, 0.05, 0.025, 0.95), strict=True):
        (stated,) = (line for line in axes.get_lines() if line.get_linestyle() == ":")
        assert set(stated.get_ydata()) == {level}
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) == len(SEEDS)]
    assert [line.get_markerfacecolor() == "white" for line in lines] == [True, False, True, False]


def test_the_sentence_says_what_is_drawn(frame):
    said = power_alt(frame)
    assert "Simulated experiments of 3 to 8 seeds. With 2,000 items" in said
    assert "in 80% of them from 5 seeds on where retention differs by 0.03 between seeds" in said
    assert "kept in at most 4.0% (stated: 5.0%; seeds differ" in said and "lost in at most 2.0% (stated: 2.5%;" in said
    assert "kept in at most 72.9% (stated: 5.0%; one seed in ten fails)" in said and "95.0% to 95.0%" in said
    weak = frame.assign(kept=frame["kept"] / 2)
    assert "not with 8 seeds where retention differs by 0.03" in power_alt(weak)


def test_what_calibrate_returns_can_be_drawn():
    frame = calibrate((3, 5), (50,), (0.95, 1.0), (0.0,), repeats=20)
    assert len(power(frame).axes) == 4 and "With 50 items" in power_alt(frame)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda f: pd.concat([f, f.assign(method="bootstrap")]), r"shows one method; got \['bootstrap', 'interval'\]"),
        (lambda f: pd.concat([f, f.assign(items=9)]), "tells two numbers of items apart; got"),
        (lambda f: f[f["retention"] < 1], "power needs experiments whose truth is retention 1; got"),
    ],
)
def test_other_frames_are_refused(frame, changed, message):
    for draw in (power, power_alt):
        with pytest.raises(LabkitError, match=message):
            draw(changed(frame))
