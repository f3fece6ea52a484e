"""One mode or two: whether the seeds of one size fall into two groups."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import ArrayLike


def dip(values: ArrayLike) -> float:
    """Hartigan's dip: the distance from the empirical distribution to the nearest one with a single mode.

    Between 1/(2n) and 1/4. Source: Hartigan & Hartigan (1985), The Dip Test of Unimodality, Ann. Statist. 13:70–84.
    """
    x = np.sort(np.asarray(values, float))
    n, low, high, found = len(x), 0, len(x) - 1, 1.0
    lower, upper = np.arange(n), np.arange(1, n + 1)
    spread = np.ptp(x)
    x = x + 1e-9 * spread * lower / n  # ties: the limit of values ever closer
    while high > low and spread > 0:
        below, above = _hull(x, lower, low, high, 1), _hull(x, upper, low, high, -1)
        at_above = upper[above] - np.interp(x[above], x[below], lower[below])  # from the convex minorant to the
        at_below = np.interp(x[below], x[above], upper[above]) - lower[below]  # concave majorant, at their corners
        if max(at_above.max(), at_below.max()) <= found:
            break
        if at_above.max() > at_below.max():
            right = int(above[at_above.argmax()])
            left = int(below[below <= right].max())
        else:
            left = int(below[at_below.argmax()])
            right = int(above[above >= left].min())
        head, tail = slice(low, left + 1), slice(right, high + 1)
        rise = upper[head] - np.interp(x[head], x[below], lower[below])
        fall = np.interp(x[tail], x[above], upper[above]) - lower[tail]
        found = max(found, rise.max(), fall.max())
        if (left, right) == (low, high):
            break
        low, high = left, right
    return float(found / (2 * n))


def dip_p(values: ArrayLike) -> float:
    """How often as many uniform values dip as deep: 2,000 samples from a fixed generator, the least favourable case."""
    return float((_uniform_dips(len(np.asarray(values))) >= dip(values) - 1e-12).mean())


def sarle(values: ArrayLike) -> float:
    """Sarle's bimodality coefficient, corrected for n; above 5/9 (a uniform's) suggests two modes. NaN below 4 values.

    (g₁² + 1) / (g₂ + 3(n − 1)²/((n − 2)(n − 3))), sample skewness and excess kurtosis. Source: SAS/STAT, PROC CLUSTER;
    Freeman & Dale (2012), Assessing bimodality, Behav. Res. Methods, doi 10.3758/s13428-012-0225-x.
    """
    from scipy import stats

    x = np.asarray(values, float)
    n = len(x)
    if n < 4 or np.ptp(x) == 0:
        return np.nan
    skew, kurtosis = stats.skew(x, bias=False), stats.kurtosis(x, bias=False)
    return float((skew**2 + 1) / (kurtosis + 3 * (n - 1) ** 2 / ((n - 2) * (n - 3))))


def _hull(x: np.ndarray, height: np.ndarray, low: int, high: int, sign: int) -> np.ndarray:
    """Positions of the corners of the greatest convex minorant (sign 1) or the least concave majorant (−1)."""
    corners: list[int] = []
    for k in range(low, high + 1):
        while len(corners) > 1:
            i, j = corners[-2:]
            if sign * ((height[j] - height[i]) * (x[k] - x[j]) - (height[k] - height[j]) * (x[j] - x[i])) < 0:
                break
            corners.pop()
        corners.append(k)
    return np.array(corners)


@functools.cache
def _uniform_dips(n: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    return np.array([dip(sample) for sample in generator.random((2000, n))])
