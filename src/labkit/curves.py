"""Arithmetic of curves: steps and trends fitted to few points, and size read off a curve."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

SHAPES = ("flat", "line", "break", "logistic", "two-state")
"""Every family of `fit`. All but the last have Gaussian scatter around a curve that never falls."""

_WIDE = 2 * np.log(9)  # a logistic goes from 10 % to 90 % of its rise in this many w
_MIDDLES, _WIDTHS = 61, 24  # of the grid that a logistic is searched on
_CELLS = 4_000_000  # residuals held at once: 32 MB


@dataclasses.dataclass(frozen=True)
class Fit:
    """One curve through points (x, y), by maximum likelihood.

    Attributes
    ----------
    shape : one of `SHAPES`.
    low, high : levels of y: of a flat line (both), at the first and last x of a line, before the break and at the
        last x, the asymptotes of a logistic, the two states.
    middle, width : x halfway from low to high, and the distance in x over which 10 % to 90 % of the rise happen (of a
        two-state fit: of the chance of the high state). NaN of a flat line.
    scatter : standard deviation around the curve, or within a state, at least the floor that the fit was given.
    bic : Bayesian information criterion, k·ln n − 2·ln L (Schwarz 1978): less is better.
    """

    shape: str
    low: float
    high: float
    middle: float
    width: float
    scatter: float
    bic: float


def logistic(x: ArrayLike, middle: ArrayLike, w: ArrayLike) -> np.ndarray:
    """1 / (1 + e^(−(x − middle)/w)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * (np.asarray(x) - middle) / w))


def fit(shape: str, x: ArrayLike, y: ArrayLike, floor: float, widths: tuple[float, float] = (0.0, np.inf)) -> Fit:
    """The likeliest curve of one family.

    Parameters
    ----------
    shape : one of `SHAPES`; "logistic" is y = c + (A − c)/(1 + e^(−(x − x₀)/w)) with A ≥ c.
    x, y : (n,) arrays; several y may share an x.
    floor : the scatter is never taken to be less than this, in the unit of y, so that points that agree to the last
        digit do not make one curve infinitely better than another.
    widths : 10–90 % widths that a break or a logistic may have, in the unit of x.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    span = np.ptp(x)
    if shape == "flat":
        return Fit(shape, y.mean(), y.mean(), np.nan, np.nan, *_gaussian(((y - y.mean()) ** 2).sum(), len(y), 2, floor))
    if shape == "line":
        c, rise, rss = _levels((x - x.min())[None] / span, y)
        return Fit(shape, c[0], c[0] + rise[0], x.mean(), 0.8 * span, *_gaussian(rss[0], len(y), 3, floor))
    if shape == "break":
        breaks = np.linspace(x.min(), x.max(), 20 * _MIDDLES)[:-1]
        length = x.max() - breaks
        breaks = breaks[(0.8 * length >= widths[0]) & (0.8 * length <= widths[1])]
        basis = np.maximum(0, x - breaks[:, None]) / (x.max() - breaks)[:, None]
        c, rise, rss = _levels(basis, y)
        k = int(rss.argmin())
        length = x.max() - breaks[k]
        return Fit(
            shape, c[k], c[k] + rise[k], x.max() - length / 2, 0.8 * length, *_gaussian(rss[k], len(y), 4, floor)
        )
    if shape == "logistic":
        middle, w = _search(x, y, widths)
        c, rise, rss = _levels(logistic(x, middle, w)[None], y)
        return Fit(shape, c[0], c[0] + rise[0], middle, _WIDE * w, *_gaussian(rss[0], len(y), 5, floor))
    return _two_state(x, y, floor)


def rivals(x: ArrayLike, y: ArrayLike, decades: float = 0.5, scatter: float = 0.05) -> tuple[Fit, Fit]:
    """The best smooth and the best sharp curve by BIC, as `labkit.emergence.emergence` compares them.

    Smooth are a flat line, a line, and breaks and logistics whose 10–90 % width is at least `decades`; sharp are
    narrower ones, and two states.

    Parameters
    ----------
    x, y : (n,) log10 parameters and gain of each model.
    decades, scatter : of `labkit.emergence.Rule`.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    wide, narrow = (decades, np.inf), (0.0, decades)
    smooth = [fit(shape, x, y, scatter) for shape in ("flat", "line")]
    smooth += [fit(shape, x, y, scatter, wide) for shape in ("break", "logistic")]
    sharp = [fit("logistic", x, y, scatter, narrow)]
    if 0.8 * np.diff(np.unique(x)[-2:])[0] < decades:  # otherwise no break that narrow has a rung in it
        sharp.append(fit("break", x, y, scatter, narrow))
    sharp.append(fit("two-state", x, y, scatter))
    return min(smooth, key=lambda found: found.bic), min(sharp, key=lambda found: found.bic)


def grid(x: ArrayLike, widths: tuple[float, float] = (0.0, np.inf)) -> tuple[np.ndarray, np.ndarray]:
    """Middles and scales w of logistics that points at x can tell apart: (cells,), (cells,)."""
    x = np.asarray(x, float)
    span = np.ptp(x)
    least, most = max(widths[0], 0.04 * span), max(min(widths[1], 3 * span), 0.04 * span)
    # A wide curve may have its middle beyond the points: what is seen then is only its foot or its shoulder.
    beyond = 0.5 * span if least > 0.2 * span else 0.0
    middles = np.linspace(x.min() - beyond, x.max() + beyond, _MIDDLES)
    scales = np.geomspace(least, most, _WIDTHS) / _WIDE
    middle, w = np.meshgrid(middles, scales, indexing="ij")
    return middle.ravel(), w.ravel()


def sample_logistics(
    x: ArrayLike, y: ArrayLike, weights: ArrayLike, floor: float, generator: np.random.Generator
) -> np.ndarray:
    """Middle and 10–90 % width of the logistic, refitted to each resample: (draws, 2).

    Where sizes are far apart many logistics fit a resample alike, for nothing was measured in between. So each draw
    takes one of the curves with the odds of its likelihood at scatter `floor`, rather than always the very best.

    Parameters
    ----------
    x, y : (n,) arrays.
    weights : (draws, n), how often each point was drawn.
    """
    x, y, weights = np.asarray(x, float), np.asarray(y, float), np.asarray(weights, float)
    middle, w = grid(x)
    basis = logistic(x, middle[:, None], w[:, None])  # (cells, n)
    chosen = np.empty(len(weights), int)
    step = max(1, _CELLS // len(middle))
    for start in range(0, len(weights), step):
        part = weights[start : start + step]
        rss = _weighted_rss(basis, y, part)
        odds = np.exp(-(rss - rss.min(axis=1, keepdims=True)) / (2 * floor**2))
        total = odds.cumsum(axis=1)
        pick = generator.random((len(part), 1)) * total[:, -1:]
        chosen[start : start + step] = (total < pick).sum(axis=1)
    across, along = generator.uniform(-0.5, 0.5, (2, len(weights)))  # anywhere in the cell: no ties between draws
    ratio = w[1] / w[0]
    middles = middle[chosen] + across * (middle[_WIDTHS] - middle[0])
    return np.column_stack([np.clip(middles, x.min(), x.max()), _WIDE * w[chosen] * ratio**along])


def rising(y: ArrayLike, weights: ArrayLike) -> np.ndarray:
    """The never-falling sequences nearest to rows of y in weighted squares: y (..., n), weights (n,) -> (..., n).

    Isotonic regression by its max–min formula, the largest over starts i ≤ k of the least mean over ends j ≥ k (Barlow
    et al. 1972): cubic in n, and n is a number of rungs.
    """
    y, weights = np.asarray(y, float), np.asarray(weights, float)
    n = y.shape[-1]
    sums = np.concatenate([np.zeros((*y.shape[:-1], 1)), (y * weights).cumsum(axis=-1)], axis=-1)
    total = np.concatenate([[0.0], weights.cumsum()])
    best = np.full(y.shape, -np.inf)
    for i in range(n):
        means = (sums[..., i + 1 :] - sums[..., i : i + 1]) / (total[i + 1 :] - total[i])
        least = np.minimum.accumulate(means[..., ::-1], axis=-1)[..., ::-1]  # over the ends from k on
        best[..., i:] = np.maximum(best[..., i:], least)
    return best


def falling(x: ArrayLike, y: ArrayLike, floor: float) -> float:
    """BIC of means at each x that never fall (`rising`), less that of means that may: positive favours a fall.

    Every level of the means counts as one parameter; x, y and floor as in `fit`.
    """
    _, place, counts = np.unique(np.asarray(x, float), return_inverse=True, return_counts=True)
    means = np.bincount(place, y) / counts
    bic = []
    for levels in (rising(means, counts), means):
        parameters = 2 + np.count_nonzero(np.diff(levels))  # with the scatter
        bic.append(_gaussian(((y - levels[place]) ** 2).sum(), len(place), parameters, floor)[1])
    return bic[0] - bic[1]


def read_off(level: ArrayLike, x: ArrayLike, y: ArrayLike, near: float) -> tuple[np.ndarray, np.ndarray]:
    """The x nearest to `near` at which never-falling, piecewise linear curves have these levels.

    Parameters
    ----------
    level : (curves,). x : (n,), ascending. y : (curves, n), never falling.

    Returns
    -------
    (x, side), each (curves,): side is −1 where even the first point of the curve is above the level and 1 where even
    the last is below it, x being that end; else 0. NaN where the level is.
    """
    level, x, y = np.asarray(level, float), np.asarray(x, float), np.asarray(y, float)
    side = np.where(level < y[:, 0], -1, np.where(level > y[:, -1], 1, 0))
    inside = np.clip(level, y[:, 0], y[:, -1])[:, None]
    after = np.argmax(y >= inside, axis=1)  # the first point at the level or above, and the last at it or below
    before = y.shape[1] - 1 - np.argmax((y <= inside)[:, ::-1], axis=1)
    row = np.arange(len(y))
    y0, y1 = y[row, before], y[row, after]  # the same point, or a level stretch, or neighbours with the level between
    between = (after == before + 1) & (y1 > y0)
    part = np.divide(inside[:, 0] - y0, y1 - y0, out=np.zeros(len(y)), where=between)
    crossing = x[before] + part * (x[after] - x[before])
    found = np.where(between, crossing, np.clip(near, x[after], x[before]))
    found = np.where(side < 0, x[0], np.where(side > 0, x[-1], found))
    return np.where(np.isnan(level), np.nan, found), side


def interpolate(at: ArrayLike, x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Row by row, the piecewise linear curve y (curves, n) over x (n,) at `at` (curves,); its ends outside of x."""
    at, x, y = np.asarray(at, float), np.asarray(x, float), np.asarray(y, float)
    k = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    part = np.clip((at - x[k]) / (x[k + 1] - x[k]), 0, 1)
    row = np.arange(len(y))
    return (1 - part) * y[row, k] + part * y[row, k + 1]


def _gaussian(rss: float, n: int, parameters: int, floor: float) -> tuple[float, float]:
    """Scatter and BIC of n residuals."""
    variance = max(rss / n, floor**2)
    return float(np.sqrt(variance)), float(parameters * np.log(n) + n * np.log(2 * np.pi * variance) + rss / variance)


def _levels(basis: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares of y = c + rise·basis with rise ≥ 0, for each of (cells, n): c, rise and the squares left."""
    centred = basis - basis.mean(axis=1, keepdims=True)
    squares = (centred**2).sum(axis=1)
    rise = np.maximum(0, centred @ (y - y.mean()) / np.where(squares > 0, squares, 1.0))
    c = y.mean() - rise * basis.mean(axis=1)
    return c, rise, ((y - c[:, None] - rise[:, None] * basis) ** 2).sum(axis=1)


def _weighted_rss(basis: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The squares that `_levels` leaves, for weights (draws, n): (draws, cells)."""
    total = weights.sum(axis=1, keepdims=True)
    mean_y, mean_b = weights @ y[:, None] / total, weights @ basis.T / total
    cover = (weights * y) @ basis.T / total - mean_b * mean_y
    var_b = weights @ (basis**2).T / total - mean_b**2
    var_y = weights @ (y**2)[:, None] / total - mean_y**2
    explained = np.maximum(0, cover) ** 2 / np.where(var_b > 1e-12, var_b, np.inf)
    return np.maximum(0, total * (var_y - explained))


def _search(x: np.ndarray, y: np.ndarray, widths: tuple[float, float]) -> tuple[float, float]:
    """Middle and w of the least-squares logistic: the best of a grid, then downhill from there."""
    middle, w = grid(x, widths)
    start = int(_levels(logistic(x, middle[:, None], w[:, None]), y)[2].argmin())
    bounds = (middle.min(), middle.max()), (np.log(w.min()), np.log(w.max()))

    def rss(p: np.ndarray) -> float:
        return float(_levels(logistic(x, p[0], np.exp(p[1]))[None], y)[2][0])

    found = optimize.minimize(
        rss,
        (middle[start], np.log(w[start])),
        method="Nelder-Mead",
        bounds=bounds,
        options={"xatol": 1e-5, "fatol": 1e-9},
    )
    return float(found.x[0]), float(np.exp(found.x[1]))


def _two_state(x: np.ndarray, y: np.ndarray, floor: float) -> Fit:
    """Every point is in a low or a high state; the chance of the high one is a rising logistic of x."""
    middle, w = grid(x)
    chance = np.clip(logistic(x, middle[:, None], w[:, None]), 0.01, 0.99)  # a lapse, so that no point is impossible
    states = np.array([y.min(), y.max()])
    scatter, cell = max(np.ptp(y) / 4, floor), int(abs(middle - x.mean()).argmin())
    likelihood, last = -np.inf, -np.inf
    for _ in range(200):  # expectation–maximisation
        density = np.exp(-((y - states[:, None]) ** 2) / (2 * scatter**2)) / (np.sqrt(2 * np.pi) * scatter) + 1e-300
        joint = density * np.stack([1 - chance[cell], chance[cell]])
        likelihood = float(np.log(joint.sum(axis=0)).sum())
        if likelihood - last < 1e-9:
            break
        last, share = likelihood, joint / joint.sum(axis=0)
        states = (share @ y) / np.maximum(share.sum(axis=1), 1e-9)
        scatter = max(float(np.sqrt((share * (y - states[:, None]) ** 2).sum() / len(y))), floor)
        cell = int((np.log(chance) @ share[1] + np.log1p(-chance) @ share[0]).argmax())
    bic = 5 * np.log(len(y)) - 2 * likelihood
    return Fit("two-state", *map(float, states), float(middle[cell]), float(_WIDE * w[cell]), scatter, float(bic))
