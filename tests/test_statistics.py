import numpy as np
import pytest
from scipy import special

from labkit.statistics import bootstrap_means, jeffreys_interval, percentile_interval


def scores(groups=3, seeds=5, items=30):
    return np.random.default_rng(0).gamma(2.0, size=(groups, seeds, items)) + np.arange(seeds)[:, None]


def test_moments_are_those_of_two_stage_resampling():
    """A drawn seed's mean has the variance of seed means plus, on average, that of item means; a draw averages K."""
    values, draws = scores(), 20_000
    means = bootstrap_means(values, draws)
    variance = (values.mean(axis=2).var(axis=1) + values.var(axis=2).mean(axis=1) / 30) / 5
    np.testing.assert_allclose(means.var(axis=0), variance, rtol=0.05)
    assert (abs(means.mean(axis=0) - values.mean(axis=(1, 2))) < 4 * np.sqrt(variance / draws)).all()


def test_quantiles_agree_with_drawing_one_at_a_time():
    values, generator = scores(groups=1), np.random.default_rng(1)
    slow = [
        np.mean([generator.choice(values[0, drawn], 30) for drawn in generator.integers(5, size=5)])
        for _ in range(4000)
    ]
    fast = percentile_interval(bootstrap_means(values, 4000))[:, 0]
    np.testing.assert_allclose(fast, np.quantile(slow, [0.025, 0.975]), atol=0.1)


def test_groups_share_their_resamples():
    values = scores(groups=1)
    one, other = bootstrap_means(np.concatenate([values, 3 * values + 1])).T
    np.testing.assert_allclose(other, 3 * one + 1)
    np.testing.assert_allclose(bootstrap_means(values)[:, 0], one)


def test_same_seed_same_draws_other_seed_other_draws():
    assert np.array_equal(bootstrap_means(scores(), seed=3), bootstrap_means(scores(), seed=3))
    assert not np.array_equal(bootstrap_means(scores(), seed=3), bootstrap_means(scores(), seed=4))


def test_draws_are_made_in_chunks_with_the_weights_of_one_draw_adding_up():
    ones = np.ones((1, 3, 300_000))  # two draws a chunk
    np.testing.assert_allclose(bootstrap_means(ones, draws=5), 1.0)


@pytest.mark.parametrize("seeds", [0, 1])
def test_without_two_seeds_there_is_no_interval(seeds):
    means = bootstrap_means(scores(seeds=5)[:, :seeds], draws=200)
    assert means.shape == (200, 3)
    assert np.isnan(percentile_interval(means)).all()


def test_percentile_interval_leaves_half_of_the_rest_on_each_side():
    low, high = percentile_interval(np.arange(1001.0), level=0.9)
    assert (low, high) == pytest.approx((50, 950))


@pytest.mark.parametrize(("successes", "trials"), [(1, 5), (4, 5), (250, 1000)])
def test_jeffreys_bounds_cut_equal_tails_off_the_posterior(successes, trials):
    tails = special.betainc(successes + 0.5, trials - successes + 0.5, jeffreys_interval(successes, trials))
    assert tails == pytest.approx([0.025, 0.975])


def test_jeffreys_reaches_the_ends_and_mirrors():
    low, high = jeffreys_interval(0, 8)
    assert low == 0.0 and 0.2 < high < 0.3
    assert jeffreys_interval(8, 8) == pytest.approx((1 - high, 1.0))
