"""Arithmetic of uncertainty on arrays: a hierarchical bootstrap over seeds and items, and the Jeffreys interval."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

_CHUNK = 2_000_000  # weights held at once: 16 MB of float64


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
    with 3 seeds, 85 % with 5 and 90 % with 8 (90 % intervals: 73, 81 and 85 %).
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
