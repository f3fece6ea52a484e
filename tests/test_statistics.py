import numpy as np
import pytest
from scipy import special, stats

from labkit.statistics import (
    Spread,
    benjamini_hochberg,
    bootstrap_means,
    holm,
    jeffreys_interval,
    mcnemar,
    mean_interval,
    p_value,
    percentile_interval,
    ratio_interval,
    unpaired_ratio_interval,
    tost,
)


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


def two_way(seeds=4, items=50, groups=2):
    generator = np.random.default_rng(2)
    shared = generator.normal(size=(groups, 1, items)) + generator.normal(size=(groups, seeds, 1))
    return shared + generator.normal(size=(groups, seeds, items)) + 3


def test_spread_is_the_two_way_analysis_of_variance():
    """Sums of squares written out for one variable."""
    values = two_way()
    spread, table = Spread.of(values), values[0]
    between = 50 * table.mean(axis=1).var(ddof=1)
    items = 4 * table.mean(axis=0).var(ddof=1)
    rest = (table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()) ** 2
    assert spread.seeds[0, 0] == pytest.approx(between / 200)
    assert spread.items[0, 0] == pytest.approx((items - rest.sum() / (3 * 49)) / 200)
    assert spread.mean == pytest.approx(values.mean(axis=(1, 2)))


def test_the_interval_of_a_mean_over_seeds_alone_is_the_t_interval():
    values = np.random.default_rng(0).normal(1, 1, size=6)
    values = np.r_[values, 2 * values.mean() - values]  # without skew
    spread, expected = Spread.of(values[None, :, None]), stats.ttest_1samp(values, 0)
    assert mean_interval(spread, [1.0]) == pytest.approx(expected.confidence_interval(0.95), rel=1e-6)
    assert p_value(spread, [1.0]) == pytest.approx(expected.pvalue, rel=1e-6)


@pytest.mark.parametrize("unit", [0.0, 1.0])
def test_p_is_the_level_at_which_the_interval_reaches_zero(unit):
    spread = Spread.of(two_way())
    weights = (1.0, -0.6)
    p = float(p_value(spread, weights, unit))
    assert 1e-6 < p < 1
    assert abs(mean_interval(spread, weights, 1 - p, unit)).min() == pytest.approx(0, abs=1e-6)


def test_a_denominator_not_told_from_zero_leaves_no_bounds():
    values = two_way()
    values[1] -= values[1].mean()
    assert np.isnan(ratio_interval(Spread.of(values), (1, 0), (0, 1))).all()


def test_seeds_that_agree_on_every_item_still_have_an_interval():
    """None of 5 × 400 items flips: the exact one-sided limit of the share that would is 1 − .025^(1/2000)."""
    right = np.tile((np.arange(400) % 10 > 0).astype(float), (2, 5, 1))
    low, high = ratio_interval(Spread.of(right), (1, 0), (0, 1), unit=1.0)
    limit = stats.binomtest(0, 2000).proportion_ci(0.95, method="exact").high
    assert (1 - low, high - 1) == pytest.approx((limit / 0.9, limit / 0.9), rel=2e-3)


def test_one_seed_gives_no_interval_and_no_p():
    spread = Spread.of(two_way()[:, :1])
    assert np.isnan(ratio_interval(spread, (1, 0), (0, 1))).all()
    assert np.isnan(mean_interval(spread, (1, 0))).all() and np.isnan(p_value(spread, (1, 0)))


def test_skew_moves_an_interval_towards_the_long_tail():
    long_tail = np.random.default_rng(0).exponential(size=(1, 5, 200))
    spread = Spread.of(long_tail)
    assert spread.shift([1.0], 0.95) > 0
    assert Spread.of(-long_tail).shift([1.0], 0.95) == pytest.approx(-spread.shift([1.0], 0.95))


def test_equivalence_agrees_with_two_t_tests():
    values = np.random.default_rng(0).normal(0.02, 0.1, 12)
    error = values.std(ddof=1) / np.sqrt(12)
    expected = max(
        stats.ttest_1samp(values, -0.1, alternative="greater").pvalue,
        stats.ttest_1samp(values, 0.1, alternative="less").pvalue,
    )
    assert tost(values.mean(), error, 11, -0.1, 0.1) == pytest.approx(expected)


def test_equivalence_mcnemar_and_adjustments_agree_with_statsmodels():
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    from statsmodels.stats.contingency_tables import mcnemar as reference
    from statsmodels.stats.multitest import multipletests

    a, b = np.random.default_rng(0).normal(0, 0.1, (2, 12))
    error = (a - b).std(ddof=1) / np.sqrt(12)
    assert tost((a - b).mean(), error, 11, -0.1, 0.1) == pytest.approx(weightstats.ttost_paired(a, b, -0.1, 0.1)[0])
    for one_way, other in ((0, 0), (3, 12), (7, 7), (40, 61)):
        assert mcnemar(one_way, other) == pytest.approx(reference([[5, one_way], [other, 9]], exact=True).pvalue)
    p = np.random.default_rng(1).random(20) ** 3
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1])


def test_mcnemar_on_the_published_table():
    """Agresti (1990), Categorical Data Analysis, p. 350: approval ratings, 86 against 150 changed their mind."""
    assert mcnemar(86, 150) == pytest.approx(stats.binomtest(86, 236).pvalue)
    assert mcnemar(86, 150) == pytest.approx(3.716e-5, rel=1e-3)


def test_adjusted_p_values_of_a_worked_example():
    """Holm and Benjamini-Hochberg by hand, with a NaN that is left out."""
    p = [0.01, np.nan, 0.04, 0.03]
    assert holm(p)[[0, 2, 3]] == pytest.approx([0.03, 0.06, 0.06]) and np.isnan(holm(p)[1])
    assert benjamini_hochberg(p)[[0, 2, 3]] == pytest.approx([0.03, 0.04, 0.04]) and np.isnan(benjamini_hochberg(p)[1])
    assert np.isnan(benjamini_hochberg([np.nan])).all()


# -- two samples that are not paired ----------------------------------------------------------------------------------


def test_an_unpaired_ratio_over_a_fixed_number_is_a_t_interval():
    over = np.array([0.4, 0.7, 0.5, 0.9])
    found = unpaired_ratio_interval(over, [2.0, 2.0, 2.0], 0.9)
    t = stats.t.interval(0.9, 3, over.mean(), stats.sem(over))
    np.testing.assert_allclose(found, np.array(t) / 2, rtol=1e-12)


@pytest.mark.parametrize("sizes", [(3, 5), (5, 5), (5, 3)])
def test_unpaired_ratios_hold_the_truth_as_often_as_they_say(sizes):
    generator, held, n = np.random.default_rng(0), 0, 4000
    for _ in range(n):
        over, under = generator.normal(0.4, 0.15, sizes[0]), generator.normal(0.9, 0.05, sizes[1])
        low, high = unpaired_ratio_interval(over, under)
        held += low <= 0.4 / 0.9 <= high
    assert 0.94 <= held / n <= 0.97


def test_an_unpaired_ratio_without_seeds_or_a_denominator_has_no_interval():
    assert np.isnan(unpaired_ratio_interval([0.5], [1.0, 0.9])).all()
    assert np.isnan(unpaired_ratio_interval([0.5, 0.6], [-1.0, 1.2])).all()
