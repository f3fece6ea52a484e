"""Is the judge right? Scores drawn with a known retention, judged by the rule that judges real ones."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from labkit.errors import LabkitError, unknown
from labkit.records import columns
from labkit.statistics import Spread, bootstrap_means, percentile_interval, ratio_interval
from labkit.verdict import Rule, outcomes

SHAPES = ("normal", "two-point", "skewed")
"""How retention differs between seeds: normally; half of the seeds high and half low; most near 1 and few far below."""

METHODS = ("interval", "bootstrap")
"""`labkit.statistics.ratio_interval`, by which verdicts are reached, and the percentile bootstrap it replaced."""

_CELLS = 4_000_000  # seeds · items drawn at once


@dataclasses.dataclass(frozen=True)
class CalibrationRow:
    """How one kind of experiment is judged, over many repetitions of it. Shares are of all repetitions."""

    method: str  # one of METHODS
    seeds: int
    items: int  # of each seed
    retention: float  # the truth
    dense: float  # score of the dense models
    chance: float
    between: float  # standard deviation of retention between seeds
    shape: str  # one of SHAPES
    shared: float  # share of the items that come out alike for every seed with the same scores
    repeats: int
    coverage: float  # 95 % interval holds the truth
    coverage90: float  # 90 % interval does
    below: float  # the whole 95 % interval lies below the truth
    above: float  # ... above it
    width: float  # median width of the 95 % interval
    kept: float  # 90 % interval within 1 ± margin: wrong where the truth is not
    lost: float  # upper 95 % bound below `lost`: wrong where the truth is not
    degraded: float
    undecided: float


def calibrate(
    seeds: Sequence[int] = (3, 5, 8, 20),
    items: Sequence[int] = (500, 2000),
    retentions: Sequence[float] = (0.20, 0.95, 1.0),
    between: Sequence[float] = (0.0, 0.03, 0.10),
    repeats: int = 1000,
    seed: int = 0,
    scene: Scene | None = None,
    rule: Rule = Rule(),
    method: str = "interval",
) -> pd.DataFrame:
    """Judge simulated experiments: how often does an interval hold the truth, and how often is a verdict wrong?

    A repetition draws seeds, their dense score and retention, and for every item whether the dense and the compressed
    model are right; then it is judged as real rows are, except that no minimum of seeds is asked for, and that nats
    count as kept (they are one more hurdle, so that real verdicts of "kept" are wrong at most as often). At a truth of
    ``1 − margin`` the column ``kept`` is the false-positive rate of kept, at a truth of ``lost`` the column ``lost``
    is that of lost; elsewhere both are power.

    Parameters
    ----------
    seeds, items, retentions, between : every combination of them is simulated.
    repeats : of each (the default grid takes under a minute on one core, and time grows with seeds · items);
        a share p has a Monte Carlo error of √(p·(1 − p)/repeats).
    seed : of the generator.
    scene : what else is fixed; by default a dense score of .9 ± .02, chance .1 and normally distributed retention.
    method : one of `METHODS`.

    Returns
    -------
    Frame with the columns of `CalibrationRow`. A combination that no scores can have (retention 1 and dense score 1,
    with seeds that differ) is left out.

    Raises
    ------
    LabkitError
        Fewer than two seeds or items, a standard deviation below 0, no repeats, or an unknown method.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if min(*seeds, *items) < 2:
        raise LabkitError("a simulation has two seeds and two items or more", min(*seeds, *items), "Give more.")
    if min(between) < 0 or repeats < 1:
        received = f"between {min(between)}, repeats {repeats}"
        raise LabkitError("seeds differ by 0 or more, and repeats are 1 or more", received, "Give such numbers.")
    scene = scene or Scene()
    told = [
        _row(np.random.default_rng([seed, place]), *combination, repeats, scene, rule, method)
        for place, combination in enumerate(itertools.product(seeds, items, retentions, between))
        if scene.possible(*combination[2:])
    ]
    return pd.DataFrame([dataclasses.asdict(row) for row in told], columns=columns(CalibrationRow))


@dataclasses.dataclass(frozen=True)
class Scene:
    """What simulated models and items are like.

    Attributes
    ----------
    dense : mean score of the dense models, in (chance, 1].
    dense_between : its standard deviation between seeds (drawn from a uniform distribution, cut off at 1).
    chance : score of a guesser, in [0, 1).
    shape : one of `SHAPES`.
    shared : share of the items that come out alike for every seed, in [0, 1].
    flips : share of the items that flip to wrong, and as many to right, besides those that retention asks for.
    """

    dense: float = 0.9
    dense_between: float = 0.02
    chance: float = 0.1
    shape: str = "normal"
    shared: float = 0.3
    flips: float = 0.01

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise unknown("shape", self.shape, SHAPES)
        if not 0 <= self.chance < self.dense <= 1:
            received = f"chance {self.chance}, dense {self.dense}"
            raise LabkitError("0 <= chance < dense <= 1", received, "Give a dense score above chance.")
        for name in ("dense_between", "shared", "flips"):
            if not 0 <= getattr(self, name) <= 1:
                raise LabkitError(f"{name} lies in [0, 1]", getattr(self, name), "Give a fraction, e.g. 0.02.")

    def room(self) -> float:
        """The largest retention that a compressed score of 1 allows in every seed."""
        return (1 - self.chance) / (min(1.0, self.dense + np.sqrt(3) * self.dense_between) - self.chance)

    def possible(self, retention: float, between: float) -> bool:
        """Whether seeds can differ so much, with scores between 0 and 1."""
        lowest = -self.chance / (1 - self.chance)
        reach = {"normal": 2.085, "two-point": 1.0, "skewed": 1.0}[self.shape] * between
        if self.shape == "skewed":  # nine seeds of ten a third of it above the mean, one three times below it
            return retention - 3 * between >= lowest and retention + between / 3 <= self.room() + 1e-9
        return retention - reach >= lowest and retention + reach <= self.room() + 1e-9

    def draw(
        self, generator: np.random.Generator, shape: tuple[int, int, int], retention: float, between: float
    ) -> np.ndarray:
        """Gains over chance, compressed and dense: (repeats, 2, seeds, items) float32."""
        repeats, seeds, items = shape
        uniform = np.sqrt(3) * (2 * generator.random((repeats, seeds)) - 1)
        dense = np.minimum(1.0, self.dense + self.dense_between * uniform)
        kept = retention + between * self._deviations(generator, (repeats, seeds))
        compressed = np.clip(self.chance + kept * (dense - self.chance), 0, 1)
        both = np.minimum(dense, compressed)
        both -= np.minimum(self.flips, np.minimum(both, 1 - np.maximum(dense, compressed)))
        toss = generator.random((repeats, seeds, items), dtype=np.float32)
        alike = round(self.shared * items)
        toss[:, :, :alike] = toss[:, :1, :alike]
        right = toss < dense[..., None]
        # Both are right below `both`, only dense from there to `dense`, only compressed for what it has beyond `both`.
        still = (toss < both[..., None]) | (~right & (toss < (dense + compressed - both)[..., None]))
        return np.stack([still, right], axis=1).astype(np.float32) - np.float32(self.chance)

    def _deviations(self, generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        """Mean 0, standard deviation 1."""
        if self.shape == "two-point":
            return generator.choice([-1.0, 1.0], size)
        if self.shape == "skewed":
            return np.where(generator.random(size) < 0.9, 1 / 3, -3.0)
        normal = generator.standard_normal(size)
        return np.clip(normal, -2, 2) / 0.95945  # scores end, so the tails do; that is the deviation they leave


def _row(
    generator: np.random.Generator, seeds: int, items: int, retention: float, between: float, repeats: int,
    scene: Scene, rule: Rule, method: str,
) -> CalibrationRow:  # fmt: skip
    step, parts = max(1, _CELLS // (seeds * items)), []
    for start in range(0, repeats, step):
        shape = (min(step, repeats - start), seeds, items)
        parts.append(_BOUNDS[method](scene.draw(generator, shape, retention, between)))
    outer, inner = np.concatenate(parts, axis=-1)  # each (2, repeats)
    verdicts = outcomes(outer, inner, np.ones_like(inner), rule)
    shares = {verdict: float((verdicts == verdict).mean()) for verdict in ("kept", "lost", "degraded", "undecided")}
    held, held90 = ((low <= retention) & (retention <= high) for low, high in (outer, inner))
    below, above = (outer[1] < retention).mean(), (outer[0] > retention).mean()
    measured = map(float, (held.mean(), held90.mean(), below, above, np.median(outer[1] - outer[0])))
    given = (retention, scene.dense, scene.chance, between, scene.shape, scene.shared, repeats)
    return CalibrationRow(method, seeds, items, *given, *measured, **shares)


def _interval(gains: np.ndarray) -> np.ndarray:
    """(repeats, 2, seeds, items) -> 95 and 90 % bounds: (2, 2, repeats)."""
    spread = Spread.of(gains)
    return np.stack([ratio_interval(spread, (1, 0), (0, 1), level, unit=1.0) for level in (0.95, 0.90)])


def _bootstrap(gains: np.ndarray, draws: int = 500) -> np.ndarray:
    repeats, _, seeds, items = gains.shape
    means = bootstrap_means(gains.reshape(2 * repeats, seeds, items), draws).reshape(draws, repeats, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(means[..., 1] > 0, means[..., 0] / means[..., 1], np.nan)
    return np.stack([percentile_interval(ratios, level) for level in (0.95, 0.90)])


_BOUNDS = {"interval": _interval, "bootstrap": _bootstrap}
