"""The curves drawn are those that the rule compares, and the sentence says what is drawn."""

from __future__ import annotations

import inspect

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from labkit import curves
from labkit.emergence import Rule, emergence
from labkit.errors import LabkitError
from labkit.plotting import shapes
from labkit.records import DENSE, EXACT_MATCH, NLL_NATS

PARAMS = np.array([3376, 12640, 25248, 50368, 100672, 332448])
X = np.log10(PARAMS)
CHANCE = {EXACT_MATCH: 0.2, NLL_NATS: float(np.log(5))}


def ladder(ability: str, gain: np.ndarray, seed: int) -> pd.DataFrame:
    """Rows of one item per model, the same gain in both metrics but for noise: gain (rungs,), three seeds."""
    generator, parts = np.random.default_rng(seed), []
    for metric, chance in CHANCE.items():
        value = chance + (gain[:, None] + generator.normal(0, 0.03, (6, 3))) * ((metric == EXACT_MATCH) - chance)
        rung, number = np.indices(value.shape).reshape(2, -1)
        named = {"rung": [f"r{r}" for r in rung], "params": PARAMS[rung], "seed": number, "value": value.ravel()}
        parts.append(pd.DataFrame(named).assign(metric=metric, chance=chance))
    constant = {"run": "r", "model": "m", "compression": DENSE, "sparsity": 0.0, "ability": ability, "item": 0}
    return pd.concat(parts, ignore_index=True).assign(**constant)


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    step = curves.logistic(X, 4.85, 0.02)
    both = pd.concat([ladder("step", step, 0), ladder("trend", np.linspace(0, 1, 6), 2)])
    return pd.concat([both, both.assign(compression="wanda", value=0.9)], ignore_index=True)


@pytest.fixture(scope="module")
def outcomes(rows: pd.DataFrame) -> pd.DataFrame:
    rule = Rule(draws=100)
    return pd.concat([emergence(rows, rule), emergence(rows[rows["metric"] == NLL_NATS], rule)], ignore_index=True)


@pytest.fixture(scope="module")
def figure(rows: pd.DataFrame, outcomes: pd.DataFrame) -> Figure:
    return shapes.jumps(rows, outcomes, columns=2)


def test_rivals_are_those_of_the_rule(rows, outcomes):
    assert len(outcomes) == 4
    for row in outcomes.itertuples():
        mine = rows[(rows["ability"] == row.ability) & (rows["metric"] == row.metric) & (rows["compression"] == DENSE)]
        gain = (mine["value"] - mine["chance"]) / ((row.metric == EXACT_MATCH) - mine["chance"])
        smooth, sharp = curves.rivals(np.log10(mine["params"]), gain)
        assert smooth.bic - sharp.bic == pytest.approx(row.sharper, abs=1e-6)
        best = sharp if row.sharper > 0 else smooth
        assert row.shape == ("step" if best is sharp and best.shape == "logistic" else best.shape)
    options = inspect.signature(curves.rivals).parameters
    assert (options["decades"].default, options["scatter"].default) == (Rule().decades, Rule().scatter)


@pytest.mark.parametrize("shape", ["flat", "line", "break", "logistic"])
def test_a_curve_leaves_the_residuals_that_its_bic_was_made_of(shape):
    x = np.repeat(X, 3)
    y = 0.1 + 0.9 * curves.logistic(x, 4.7, 0.15) + np.random.default_rng(1).normal(0, 0.1, len(x))
    fit = curves.fit(shape, x, y, 0.01)
    residuals = y - shapes.curve(fit, x, x)
    parameters = {"flat": 2, "line": 3, "break": 4, "logistic": 5}[shape]  # with the scatter
    variance = (residuals**2).mean()
    bic = parameters * np.log(len(x)) + len(x) * (np.log(2 * np.pi * variance) + 1)
    assert fit.bic == pytest.approx(bic, abs=1e-6)


def test_two_states_are_drawn_at_their_mean():
    x = np.repeat(X, 5)
    toss = np.random.default_rng(0).random(30) < curves.logistic(x, 4.6, 0.1)
    fit = curves.fit("two-state", x, toss + np.random.default_rng(1).normal(0, 0.02, 30), 0.05)
    assert shapes.curve(fit, fit.middle, x) == pytest.approx((fit.low + fit.high) / 2)
    ends = shapes.curve(fit, np.array([-99.0, 99.0]), x)
    np.testing.assert_allclose(ends, fit.low + np.array([0.01, 0.99]) * (fit.high - fit.low))  # a lapse in a hundred


def test_panels_stand_side_by_side_in_order_of_the_threshold(figure, outcomes):
    shown = [(axes.get_title("left"), axes.get_title("right")) for axes in figure.axes]
    first = outcomes.drop_duplicates("ability").sort_values("threshold")["ability"]
    assert shown == [(ability, metric) for ability in first for metric in ("exact match", "nats")]


def test_dots_and_band_are_the_numbers_of_the_frames(figure, rows, outcomes):
    for axes in figure.axes:
        metric = {"exact match": EXACT_MATCH, "nats": NLL_NATS}[axes.get_title("right")]
        mine = rows[(rows["compression"] == DENSE) & (rows["metric"] == metric)]
        mine = mine[mine["ability"] == axes.get_title("left")]
        gain = (mine["value"] - mine["chance"]) / ((metric == EXACT_MATCH) - mine["chance"])
        (dots,) = [line for line in axes.lines if line.get_label() == "models"]
        np.testing.assert_allclose(sorted(dots.get_ydata()), sorted(gain))
        told = outcomes[(outcomes["ability"] == axes.get_title("left")) & (outcomes["metric"] == metric)].iloc[0]
        (band,) = axes.patches
        assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((told.params_low, told.params_high))
        assert f"ΔBIC {told.sharper:+.0f}".replace("-", "−") in [text.get_text() for text in axes.texts]


def test_what_does_not_rise_has_no_band(rows, outcomes):
    flat = outcomes.assign(**dict.fromkeys(("threshold_params", "params_low", "params_high"), np.nan))
    assert not any(axes.patches for axes in shapes.jumps(rows, flat[:1]).axes)
    assert "threshold" not in shapes.jumps_alt(rows, flat[:1])


def test_the_sentence_says_what_is_drawn(rows, outcomes):
    said = shapes.jumps_alt(rows, outcomes)
    assert "for 2 abilities, up to 18 models each" in said
    step = outcomes[(outcomes["ability"] == "step") & (outcomes["metric"] == EXACT_MATCH)].iloc[0]
    assert f"step: exact match sharp by {step.sharper:.0f}, threshold " in said
    assert " parameters, nats sharp by " in said
    trend = outcomes[(outcomes["ability"] == "trend") & (outcomes["metric"] == EXACT_MATCH)].iloc[0]
    assert f"trend: exact match smooth by {-trend.sharper:.0f}" in said


def test_numbers_are_short():
    assert [shapes.short(number) for number in (48_612, 332_448, 1.21e9, 850)] == ["49k", "330k", "1.2G", "850"]


@pytest.mark.parametrize("function", [shapes.jumps, shapes.jumps_alt])
def test_what_cannot_be_drawn_is_refused(rows, outcomes, function):
    with pytest.raises(LabkitError, match="jumps are drawn for outcomes; got 'none'"):
        function(rows, outcomes[:0])
    with pytest.raises(LabkitError, match="none of step in exact_match"):
        function(rows[rows["metric"] == NLL_NATS], outcomes[outcomes["ability"] == "step"])
    with pytest.raises(LabkitError, match="step: one"):
        function(rows[rows["rung"] == "r0"], outcomes[outcomes["ability"] == "step"])
