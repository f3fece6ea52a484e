import numpy as np
import pytest
from scipy import optimize

from labkit import curves

X = np.repeat(np.log10([3376, 12640, 25248, 50368, 100672, 332448]), 4)


def noisy(curve, sd=0.02, seed=0):
    return curve + np.random.default_rng(seed).normal(0, sd, len(curve))


def test_logistic_agrees_with_curve_fit_of_scipy():
    y = noisy(0.1 + 0.8 * curves.logistic(X, 4.6, 0.2))
    found = curves.fit("logistic", X, y, floor=1e-6)

    def model(x, c, rise, middle, w):
        return c + rise / (1 + np.exp(-(x - middle) / w))

    (c, rise, middle, w), _ = optimize.curve_fit(model, X, y, p0=(0, 1, 4.5, 0.3))
    expected = [c, c + rise, middle, 2 * np.log(9) * w]
    assert [found.low, found.high, found.middle, found.width] == pytest.approx(expected, abs=2e-3)
    variance = ((y - model(X, c, rise, middle, w)) ** 2).mean()
    assert found.bic == pytest.approx(5 * np.log(24) + 24 * (np.log(2 * np.pi * variance) + 1), abs=1e-3)


def test_line_is_polyfit_and_flat_is_the_mean():
    y = noisy(0.3 * X)
    found = curves.fit("line", X, y, floor=1e-6)
    assert [found.low, found.high] == pytest.approx(np.polyval(np.polyfit(X, y, 1), [X.min(), X.max()]))
    assert curves.fit("flat", X, y, floor=1e-6).low == pytest.approx(y.mean())


def test_break_finds_where_a_line_starts():
    found = curves.fit("break", X, noisy(np.maximum(0, X - 4.55), sd=0.003), floor=1e-6)
    assert found.middle - found.width / 1.6 == pytest.approx(4.55, abs=0.02)
    assert found.width == pytest.approx(0.8 * (X.max() - 4.55), abs=0.02)


def test_two_states_are_told_from_noise_around_a_curve():
    up = np.random.default_rng(3).random(24) < curves.logistic(X, 4.6, 0.3)
    states, curve = noisy(1.0 * up), noisy(curves.logistic(X, 4.6, 0.3))
    assert curves.fit("two-state", X, states, 0.02).bic < curves.fit("logistic", X, states, 0.02).bic - 20
    assert curves.fit("two-state", X, curve, 0.02).bic > curves.fit("logistic", X, curve, 0.02).bic + 20
    found = curves.fit("two-state", X, states, 0.02)
    assert [found.low, found.high] == pytest.approx([0, 1], abs=0.05)


def test_a_curve_never_falls():
    assert curves.fit("logistic", X, -X, 0.05).high == pytest.approx(curves.fit("logistic", X, -X, 0.05).low)


def test_widths_are_kept():
    y = noisy(curves.logistic(X, 4.6, 0.02))
    assert curves.fit("logistic", X, y, 0.01, (0.5, np.inf)).width == pytest.approx(0.5, abs=1e-3)
    assert curves.fit("logistic", X, noisy(X - 3), 0.01, (0, 0.5)).width == pytest.approx(0.5, abs=1e-3)


def test_sampled_middles_fill_the_gap_in_which_nothing_was_measured():
    y = (X > 4.8) * 1.0
    drawn = curves.sample_logistics(X, y, np.ones((2000, 24)), 0.05, np.random.default_rng(0))
    low, high = np.quantile(drawn[:, 0], [0.025, 0.975])
    assert np.log10(50368) < low < 4.8 and 4.9 < high < np.log10(100672)


@pytest.mark.parametrize("y", [[1, 3, 2, 4], [4, 3, 2, 1], [0, 1, 1, 5], [3, 1, 2, 2]])
def test_rising_is_the_nearest_that_never_falls(y):
    weights = [1, 2, 1, 3]
    found = curves.rising([y, y], weights)[1]
    limits = optimize.LinearConstraint(np.diff(np.eye(4), axis=0), 0, np.inf)

    def squares(v):
        return (np.array(weights) * (np.array(y) - v) ** 2).sum()

    nearest = optimize.minimize(squares, np.full(4, np.mean(y)), constraints=limits, method="SLSQP", tol=1e-12).x
    assert found == pytest.approx(nearest, abs=1e-4)


@pytest.mark.parametrize(
    ("level", "near", "found"),
    [
        (0.25, 9, (0.5, 0)),
        (0.5, 9, (2, 0)),  # a level stretch from 1 to 2: its end nearest to 9 ...
        (0.5, 1.3, (1.3, 0)),  # ... or the place itself
        (0.75, 0, (2.5, 0)),
        (1.0, 0, (3, 0)),
        (-0.1, 2, (0, -1)),
        (1.1, 2, (3, 1)),
    ],
)
def test_reading_a_size_off_a_curve(level, near, found):
    x, side = curves.read_off([level], [0, 1, 2, 3], [[0, 0.5, 0.5, 1]], near)
    assert (x[0], side[0]) == (pytest.approx(found[0]), found[1])


def test_reading_off_undoes_interpolation():
    generator = np.random.default_rng(0)
    x, y = np.arange(6.0), generator.random((50, 6)).cumsum(axis=1)
    at = generator.uniform(0, 5, 50)
    level = curves.interpolate(at, x, y)
    np.testing.assert_allclose(level, [np.interp(a, x, row) for a, row in zip(at, y)])
    np.testing.assert_allclose(curves.read_off(level, x, y, 2.0)[0], at)
    assert np.isnan(curves.read_off([np.nan], x, y[:1], 2.0)[0][0])


def test_rivals_are_on_their_side_of_the_width_and_the_likeliest():
    for truth, smooth_wins in ((curves.logistic(X, 4.6, 0.02), False), (X - 3.5, True)):
        y = noisy(truth)
        smooth, sharp = curves.rivals(X, y, decades=0.5, scatter=0.01)
        assert (smooth.bic < sharp.bic) == smooth_wins
        assert np.isnan(smooth.width) or smooth.width >= 0.5 - 1e-9 or smooth.shape == "line"
        assert sharp.shape == "two-state" or sharp.width <= 0.5 + 1e-9
        anything = min(curves.fit(shape, X, y, 0.01).bic for shape in curves.SHAPES)
        assert min(smooth.bic, sharp.bic) == pytest.approx(anything, abs=0.01)


def test_a_fall_is_told_from_noise_by_the_bic_of_the_two_sets_of_means():
    means = np.array([0.0, 0.1, 0.9, 0.3, 0.95, 1.0]).repeat(4)
    y = noisy(means, sd=0.05)
    free = y.reshape(6, 4).mean(axis=1)
    level = np.r_[free[:2], free[2:4].mean().repeat(2), free[4:]]  # the two that fall, pooled: five levels
    rss = [((y - fitted.repeat(4)) ** 2).sum() for fitted in (level, free)]
    bic = [k * np.log(24) + 24 * (np.log(2 * np.pi * r / 24) + 1) for k, r in zip((6, 7), rss, strict=True)]
    assert curves.falling(X, y, 1e-6) == pytest.approx(bic[0] - bic[1]) and bic[0] - bic[1] > 20
    assert curves.falling(X, np.sort(y), 1e-6) == 0  # nothing to pool
    never = [curves.falling(X, noisy(np.full(24, 0.5), sd=0.05, seed=seed), 0.05) for seed in range(200)]
    assert np.mean(np.array(never) >= 6) <= 0.05
