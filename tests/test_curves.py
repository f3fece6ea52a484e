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


# Values and p of diptest 0.12.0 (an independent implementation, with its own table of p-values).
DIPS = [
    ([0.0, 0.0, 0.08, 0.98, 0.99, 0.99, 1.0, 1.0], 0.17219387755102042, 0.0111),
    ([1, 2, 3, 4, 5, 6, 7, 8], 0.0625, 0.998),
    ([0, 0, 1, 1], 0.25, 0.0),
]


@pytest.mark.parametrize(("values", "dip", "p"), DIPS)
def test_dip_agrees_with_another_implementation(values, dip, p):
    assert curves.dip(values) == pytest.approx(dip, abs=1e-8)
    if len(values) == 8:
        assert curves.dip_p(values) == pytest.approx(p, abs=0.01)


def test_dip_agrees_with_diptest_on_random_samples():
    diptest = pytest.importorskip("diptest")
    generator = np.random.default_rng(0)
    for n in (4, 7, 12, 40):
        for decimals in (1, 8):
            values = np.round(generator.normal(size=n), decimals)
            assert curves.dip(values) == pytest.approx(diptest.dipstat(values), abs=1e-8)


def test_dip_is_between_its_bounds_and_does_not_mind_scale():
    values = np.random.default_rng(1).normal(size=20)
    assert 1 / 40 <= curves.dip(values) <= 1 / 4
    assert curves.dip(3 * values - 5) == pytest.approx(curves.dip(values))
    assert curves.dip(-values) == pytest.approx(curves.dip(values))
    assert curves.dip([2.0] * 6) == pytest.approx(1 / 12)


def test_sarle_is_five_ninths_of_a_uniform_and_a_third_of_a_normal():
    generator = np.random.default_rng(0)
    assert curves.sarle(generator.random(200_000)) == pytest.approx(5 / 9, abs=0.005)
    assert curves.sarle(generator.normal(size=200_000)) == pytest.approx(1 / 3, abs=0.005)
    assert curves.sarle([0] * 20 + [1] * 20) > 0.8
    assert np.isnan(curves.sarle([1, 2, 3])) and np.isnan(curves.sarle([1, 1, 1, 1]))
