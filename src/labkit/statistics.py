"""Arithmetic of uncertainty on arrays of (seeds, items): intervals, tests of equivalence, and many tests at once."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

_CHUNK = 2_000_000  # weights held at once: 16 MB of float64


@dataclasses.dataclass(frozen=True)
class Spread:
    """Means of some variables over seeds × items, and how uncertain they are.

    Attributes
    ----------
    mean : (..., variables).
    seeds : (..., variables, variables) covariance of the means between seeds, the noise of their own items included;
        it has n_seeds − 1 degrees of freedom.
    items : the same size, what items that are hard for every seed add to it; negative where they add nothing.
    noise : the same size, variance from items that no seed shares, estimated over all of them.
    skew : (..., variables, variables, variables) third cumulant of the means that comes from items.
    n_seeds, n_items : seeds, and items of each.
    """

    mean: np.ndarray
    seeds: np.ndarray
    items: np.ndarray
    noise: np.ndarray
    skew: np.ndarray
    n_seeds: int
    n_items: int

    @classmethod
    def of(cls, values: ArrayLike) -> Spread:
        """Spread of (..., variables, seeds, items) scores, item i being the same question to every seed.

        The sums of squares of the two-way table with random seeds and random items: with mean squares S between seeds,
        I between items and E of what is left, the variance of the mean is (S + I − E) / (seeds · items), S for `seeds`
        and I − E for `items`. Fewer than two seeds give NaN: what seeds differ by cannot be known from one.

        Source: Searle, Casella & McCulloch (1992), Variance Components, §4.3.
        """
        values = np.asarray(values, dtype=float)
        seeds, items = values.shape[-2:]
        mean = values.mean(axis=(-2, -1))
        if seeds < 2:
            unknown = np.full((*mean.shape, mean.shape[-1]), np.nan)
            return cls(mean, unknown, unknown, unknown, unknown[..., None] * mean[..., None, None, :], seeds, items)
        of_seeds, of_items = (values.mean(axis=axis) - mean[..., None] for axis in (-1, -2))
        between = _products(of_seeds) / (seeds * (seeds - 1))
        units = of_items if items > 1 else of_seeds  # what is many: with a single item each, the seeds
        skew = np.einsum("...ai,...bi,...ci->...abc", units, units, units, optimize=True) / units.shape[-1] ** 3
        if items < 2:
            return cls(mean, between, np.zeros_like(between), between, skew, seeds, items)
        rest = values - of_seeds[..., None] - of_items[..., None, :] - mean[..., None, None]
        noise = _products(rest.reshape(*mean.shape, -1)) / (seeds * items * (seeds - 1) * (items - 1))
        return cls(mean, between, _products(of_items) / (items * (items - 1)) - noise, noise, skew, seeds, items)

    def along(self, weights: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean of a weighted sum of the variables, its variance between seeds, and what items add (at least 0)."""
        weights = np.asarray(weights, dtype=float)
        seeds, items = (np.einsum("...i,...ij,...j->...", weights, part, weights) for part in (self.seeds, self.items))
        return (self.mean * weights).sum(axis=-1), np.maximum(seeds, 0), np.maximum(items, 0)

    def shift(self, weights: ArrayLike, level: float | np.ndarray) -> np.ndarray:
        """How far skewed items move an interval of a weighted sum to the side of their long tail.

        Where few items flip, the sample that shows fewest also shows the least variance, and an interval that is even
        on both sides is too sure of them: κ₃·(2z² + 1)/(6V) is the first term that mends it, for the third cumulant κ₃
        and the variance V of the mean. Source: Johnson (1978), J. Am. Stat. Assoc. 73, 536; Hall (1992), §3.5.

        Seeds that lose more also spread more. If the variance κ₂ that items give grows with the mean as it does for
        counts, κ₂' = κ₃/κ₂ (Morris 1982, Ann. Stat. 10, 65), seeds that differ by a variance B add 3·B·κ₃/κ₂ to κ₃.
        """
        weights = np.asarray(weights, dtype=float)
        _, seeds, items = self.along(weights)
        noise = np.einsum("...i,...ij,...j->...", weights, self.noise, weights)
        cubed = np.einsum("...abc,...a,...b,...c->...", self.skew, weights, weights, weights)
        z = special.ndtri((1 + np.asarray(level)) / 2)
        variance = items + np.maximum(seeds, noise)  # few seeds may agree by chance, which is no reason to shift far
        by_item = items + noise
        apart = np.maximum(seeds - noise, 0) / np.where(by_item > 0, by_item, np.inf)
        return cubed * (1 + 3 * apart) * (2 * z**2 + 1) / (6 * np.where(variance > 0, variance, np.inf))

    def quantiles(self, level: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Two-sided t quantiles, for the variance between seeds and for that of items."""
        upper = (1 + np.asarray(level)) / 2
        seeds = special.stdtrit(max(self.n_seeds - 1, 1), upper)
        return seeds, special.stdtrit(max(self.n_items - 1, 1), upper)


def _products(deviations: np.ndarray) -> np.ndarray:
    """(..., variables, n) -> sums of products (..., variables, variables)."""
    return deviations @ deviations.swapaxes(-1, -2)


def _unseen(spread: Spread, level: float | np.ndarray, unit: float) -> np.ndarray:
    """How far a mean may be off through items of which there was not one: −ln(α/2) of seeds · items, each of `unit`.

    This is the exact limit of a proportion after no success, 1 − (α/2)^(1/n) ≈ −ln(α/2)/n: without it, seeds that agree
    on every item would have an interval of no width. Next to a few dozen flips it vanishes.
    """
    return unit * -np.log((1 - np.asarray(level)) / 2) / _count(spread)


def mean_interval(spread: Spread, weights: ArrayLike, level: float = 0.95, unit: float = 0.0) -> np.ndarray:
    """Interval of the mean of a weighted sum of the variables, over new seeds and new items: (2, ...), low then high.

    The half-width is √(t²·V_seeds + z²·V_items + u²), each variance with the quantile of its own degrees of freedom.

    Parameters
    ----------
    weights : (..., variables). level : in (0, 1).
    unit : how much one item's score may change at most, 1 for a fraction; 0 leaves out u, the allowance for what none
        of the items has shown (scores without bounds, and those that are never exactly equal).

    Notes
    -----
    Squares of half-widths are added, after Graybill & Wang (1980, J. Am. Stat. Assoc. 75, 869), because one t with the
    degrees of freedom of Satterthwaite covers too little (91 % for 95) when both parts matter and there are 3 seeds.
    """
    mean, seeds, items = spread.along(weights)
    t, z = spread.quantiles(level)
    half = np.sqrt(t**2 * seeds + z**2 * items + _unseen(spread, level, unit) ** 2)
    middle = mean + spread.shift(weights, level)
    return np.stack([middle - half, middle + half])


def ratio_interval(
    spread: Spread, over: ArrayLike, under: ArrayLike, level: float = 0.95, unit: float = 0.0
) -> np.ndarray:
    """Interval of a ratio of two means, paired by seed and item: (2, ...), low then high.

    Fieller's: all ratios ρ for which the mean of (numerator − ρ · denominator) is within its `mean_interval` of 0.
    Where the denominator itself is not told from 0, such ratios have no bounds, and both are NaN.

    Simulated (`labkit.simulation`; 3 to 20 seeds, 500 items, dense scores .4 to 1, retention normal over seeds with a
    deviation of 0 to .1), its 95 % interval held the truth in 93 to 98 % of cases; more often where nearly no item
    flips. The percentile bootstrap over seeds, then items, had 73, 85 and 90 % with 3, 5 and 8 seeds. Where seeds have
    two modes, three of them agree by chance one time in four and cover 71 to 85 %, five 93 %. Where nothing but a
    few items changes, and the same ones for every seed, their number is what counts, not that of their answers: with one
    flip in 1000 each way, a third of them shared, it held 92, 84 and 78 % with 3, 5 and 8 seeds (all shared: about 50 %);
    what is called kept is not touched by it. Where one seed in ten fails, no interval knows it from seeds that did not
    (40 to 89 %): report how often an ability survives, too.

    Parameters
    ----------
    over, under : (..., variables) weights of the numerator and of the denominator.
    level, unit : as in `mean_interval`.

    Source: Fieller (1954), J. R. Stat. Soc. B 16, 175; Franz (2007), arXiv:0710.2024.
    """
    over, under = np.broadcast_arrays(np.asarray(over, float), np.asarray(under, float))
    t, z = spread.quantiles(level)
    top, bottom = ((spread.mean * weights).sum(axis=-1) for weights in (over, under))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.asarray(top / bottom)
        residual = over - np.nan_to_num(ratio)[..., None] * under
        _, _, shared = spread.along(residual)
        squares = t**2 * spread.seeds + z**2 * spread.items * (shared > 0)[..., None, None]
        xx, xy, yy = (
            np.einsum("...i,...ij,...j->...", left, squares, right)
            for left, right in ((over, over), (over, under), (under, under))
        )
        a, b = bottom**2 - yy, top * bottom - xy
        c = top**2 - xx - _unseen(spread, level, unit) ** 2
        root = np.sqrt(np.maximum(b**2 - a * c, 0))
        bounds = np.stack([(b - root) / a, (b + root) / a]) + spread.shift(residual, level) / bottom
    return np.where((a > 0) & (bottom > 0), bounds, np.nan)


def unpaired_ratio_interval(over: ArrayLike, under: ArrayLike, level: float = 0.95) -> np.ndarray:
    """Interval of the ratio of the means of two independent samples, (n,) and (m,) numbers: (2,), low then high.

    Fieller's as in `ratio_interval`, each variance with the t quantile of its own degrees of freedom. Both are NaN where
    a sample has fewer than two numbers, and where the mean of `under` is not told from 0. ``level`` lies in (0, 1).
    """
    samples = [np.asarray(sample, float) for sample in (over, under)]
    if min(map(len, samples)) < 2:
        return np.full(2, np.nan)
    top, bottom = (sample.mean() for sample in samples)
    xx, yy = (special.stdtrit(len(s) - 1, (1 + level) / 2) ** 2 * s.var(ddof=1) / len(s) for s in samples)
    a, b, c = bottom**2 - yy, top * bottom, top**2 - xx
    if a <= 0 or bottom <= 0:
        return np.full(2, np.nan)
    root = np.sqrt(max(b**2 - a * c, 0))
    return np.array([b - root, b + root]) / a


def p_value(spread: Spread, weights: ArrayLike, unit: float = 0.0) -> np.ndarray:
    """Two-sided p of a mean of 0 for a weighted sum of the variables: the level at which `mean_interval` reaches 0.

    NaN where there is no interval; never below 1e-12, where its quantiles end.
    """
    mean, seeds, items = spread.along(weights)
    low, high, side = np.full(mean.shape, np.log(1e-12)), np.zeros(mean.shape), np.sign(mean)
    shift = spread.shift(weights, 0.0)
    for _ in range(48):  # halving: the half-width falls as p rises
        middle = (low + high) / 2
        level = -np.expm1(middle)
        t, z = spread.quantiles(level)
        half = np.sqrt(t**2 * seeds + z**2 * items + (unit * (np.log(2) - middle) / _count(spread)) ** 2)
        reached = half > side * (mean + shift * (2 * special.ndtri((1 + level) / 2) ** 2 + 1))
        low, high = np.where(reached, middle, low), np.where(reached, high, middle)
    return np.where(np.isnan(seeds), np.nan, np.where(mean == 0, 1.0, np.exp(high)))


def _count(spread: Spread) -> int:
    return spread.n_seeds * spread.n_items


def one_sided(p: ArrayLike, above: ArrayLike) -> np.ndarray:
    """The one-sided p of a two-sided one: half of it where the estimate is on the side of the alternative (`above`)."""
    p = np.asarray(p, float)
    return np.where(above, p / 2, 1 - p / 2)


def tost(estimate: ArrayLike, error: ArrayLike, df: ArrayLike, low: float, high: float) -> np.ndarray:
    """p of two one-sided t-tests: small where the estimate is shown to lie within (low, high).

    p < α exactly where the interval of level 1 − 2α lies within. Source: Schuirmann (1987), J. Pharmacokinet.
    Biopharm. 15, 657.
    """
    estimate, error = np.asarray(estimate, float), np.asarray(error, float)
    return np.maximum(stats.t.sf((estimate - low) / error, df), stats.t.cdf((estimate - high) / error, df))


def mcnemar(one_way: ArrayLike, other_way: ArrayLike) -> np.ndarray:
    """Exact two-sided p that items flip both ways alike, from the counts of each; 1 where none flips.

    Source: McNemar (1947), Psychometrika 12, 153: a binomial test of the flips at ½.
    """
    one_way, other_way = np.asarray(one_way), np.asarray(other_way)
    return np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(one_way, other_way), one_way + other_way, 0.5))


def holm(p: ArrayLike) -> np.ndarray:
    """Adjusted p-values that keep the chance of any false rejection at the level; NaNs are left out and stay.

    Source: Holm (1979), Scand. J. Stat. 6, 65.
    """
    p = np.asarray(p, dtype=float)
    told = np.flatnonzero(~np.isnan(p))
    order = told[np.argsort(p[told])]
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted


def benjamini_hochberg(p: ArrayLike) -> np.ndarray:
    """Adjusted p-values that keep the share of false rejections among all at the level; NaNs are left out and stay.

    Source: Benjamini & Hochberg (1995), J. R. Stat. Soc. B 57, 289 (independent or positively dependent tests).
    """
    p = np.asarray(p, dtype=float)
    told = ~np.isnan(p)
    adjusted = np.full(p.shape, np.nan)
    adjusted[told] = stats.false_discovery_control(p[told], method="bh") if told.any() else []
    return adjusted


def bootstrap_means(values: ArrayLike, draws: int = 2000, seed: int = 0) -> np.ndarray:
    """Means of resampled groups: seeds with replacement, then items with replacement within each drawn seed.

    Every draw weighs all groups with the same counts (common random numbers). That keeps pairs together: row `d` of two
    groups is the same resample of both, so a difference or a ratio of columns is a paired one, recomputed in each draw.
    It also makes the whole bootstrap one matrix product, ``(draws, seeds·items) @ (seeds·items, groups)``.

    With fewer than two seeds the spread between seeds is unknown, and every mean is NaN rather than falsely certain.

    Parameters
    ----------
    values : (groups, seeds, items) array, in any unit. Items of different seeds need not correspond.
    draws : number of resamples.
    seed : of the generator; the same shape, draws and seed give the same resamples.

    Returns
    -------
    (draws, groups) array in the unit of `values`.

    Notes
    -----
    Two-stage bootstrap of clustered data: Davison & Hinkley (1997), Bootstrap Methods and their Application, §3.8.
    Seeds are few, and the bootstrap's variance between K seeds is short by the factor (K − 1)/K, with no allowance for
    estimating it: where seeds differ more than items do, simulated 95 % intervals covered the truth in 79 % of cases
    with 3 seeds, 85 % with 5 and 90 % with 8 (90 %: 73, 81 and 85 %). Verdicts therefore use `ratio_interval`,
    and `labkit.simulation.calibrate` shows the two side by side.
    """
    values = np.asarray(values, dtype=float)
    groups, seeds, items = values.shape
    if seeds < 2:
        return np.full((draws, groups), np.nan)
    generator = np.random.default_rng(seed)
    flat = values.reshape(groups, seeds * items).T
    means = np.empty((draws, groups))
    step = max(1, _CHUNK // (seeds * items))
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        drawn = generator.integers(seeds, size=(rows, seeds, 1)) + seeds * np.arange(rows)[:, None, None]
        cells = drawn * items + generator.integers(items, size=(rows, seeds, items))
        weights = np.bincount(cells.ravel(), minlength=rows * seeds * items).reshape(rows, seeds * items)
        means[start : start + rows] = weights.astype(float) @ flat
    return means / (seeds * items)


def percentile_interval(samples: ArrayLike, level: float = 0.95) -> np.ndarray:
    """Central percentile interval of bootstrap samples along the first axis: ``(2, ...)``, low then high.

    A NaN among a column's samples makes both of its bounds NaN.
    """
    return np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)


def jeffreys_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Jeffreys interval of a proportion: quantiles of Beta(k + ½, n − k + ½), with 0 and 1 reached at k = 0 and k = n.

    Source: Brown, Cai & DasGupta (2001), Interval Estimation for a Binomial Proportion, §4.3.
    """
    posterior = stats.beta(successes + 0.5, trials - successes + 0.5)
    low = 0.0 if successes == 0 else float(posterior.ppf((1 - level) / 2))
    high = 1.0 if successes == trials else float(posterior.ppf((1 + level) / 2))
    return low, high
