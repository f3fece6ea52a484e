"""The question: which abilities are always there, which grow, which jump, and which jumps does the metric make?"""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import pandas as pd
from scipy import stats

from labkit import curves, modality
from labkit.errors import LabkitError
from labkit.records import BRIER, DENSE, EXACT_MATCH, NLL_NATS, TOKEN_ACCURACY, columns
from labkit.scores import primary, scores
from labkit.statistics import jeffreys_interval, percentile_interval

OUTCOMES = ("always there", "smooth", "emergent", "metric artefact", "never", "undecided")
"""Every value of the column ``outcome``."""

CONTROL = "markov"
"""The ability whose nats stand for language-model loss."""

_PROPER = (NLL_NATS, BRIER)  # continuous, and least for the true probabilities: a jump that is real shows in them
_POWERS = np.geomspace(1, 32, 200)


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is decided before the rows are read. Gains run from 0 (chance) to 1 (perfect).

    Attributes
    ----------
    gate : gain from which a model has an ability, in (0, 1); the same as in the verdict on retention.
    there : share of the largest rung's gain that the smallest rung of an always-there ability has, in (0, 1).
    decades : 10–90 % width in log10 parameters below which a rise is sharp, above 0.
    jump : share of the range that the largest step between neighbouring rungs of a sharp rise is, in (0, 1).
    evidence : difference in BIC that decides between two shapes; 6 is "strong" (Kass & Raftery 1995).
    scatter : least standard deviation of gains over seeds that any shape assumes.
    min_rungs, min_seeds : rungs, and seeds on each of them, without which nothing is decided, ≥ 4 and ≥ 2.
    min_dip : seeds of one rung from which the dip is tested there, ≥ 4.
    draws, seed : resamples of seeds, ≥ 100, and the seed of their generator.
    """

    gate: float = 0.20
    there: float = 0.50
    decades: float = 0.5
    jump: float = 0.5
    evidence: float = 6.0
    scatter: float = 0.05
    min_rungs: int = 4
    min_seeds: int = 2
    min_dip: int = 8
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("gate", "there", "jump"):
            if not 0 < getattr(self, name) < 1:
                raise LabkitError(f"{name} lies in (0, 1)", getattr(self, name), "Give a fraction, e.g. 0.5.")
        for name in ("decades", "evidence", "scatter"):
            if not getattr(self, name) > 0:
                raise LabkitError(f"{name} is above 0", getattr(self, name), "Leave the default if in doubt.")
        for name, least in (("min_rungs", 4), ("min_seeds", 2), ("min_dip", 4), ("draws", 100)):
            if getattr(self, name) < least:
                raise LabkitError(f"{name} is at least {least}", getattr(self, name), f"Give {least} or more.")


@dataclasses.dataclass(frozen=True)
class Emergence:
    """One ability along the dense ladder. Intervals are 95 %, over resampled seeds; NaN: nothing to say."""

    ability: str
    metric: str  # the primary one
    outcome: str  # one of OUTCOMES
    threshold: float  # log10 parameters at which the mean over seeds is halfway up; NaN unless it rises
    threshold_low: float
    threshold_high: float
    threshold_params: float  # 10 ** threshold, and its bounds
    params_low: float
    params_high: float
    width: float  # decades of parameters in which 10 % to 90 % of the rise happen
    width_low: float
    width_high: float
    shape: str  # of curves.SHAPES, the one with the least BIC, "step" for a sharp logistic
    sharper: float  # BIC of the best smooth shape less that of the best sharp one: positive favours a jump
    sharper_continuous: float  # the same on nats or Brier, whichever is sharper
    power: float  # k for which exact match comes closest to (token accuracy) ** k, over all models
    power_r2: float  # share of the variance of exact match that it explains
    loss_better: float  # BIC over parameters less that of a break over language-model loss: positive favours loss
    loss_threshold: float  # nats per token at which that break is
    n_rungs: int
    n_seeds: int  # on the rung that has fewest
    reason: str  # why, in words


@dataclasses.dataclass(frozen=True)
class Appearance:
    """One ability on one rung: how many seeds have it, and whether the seeds fall into two groups."""

    ability: str
    rung: str
    params: int
    n_seeds: int
    n_with: int  # seeds whose gain reaches the gate
    p: float  # P(appears), with its 95 % Jeffreys interval
    low: float
    high: float
    mean: float  # mean gain over all seeds ...
    mean_with: float  # ... and over those that have it
    dip: float  # Hartigan's dip of the gains; NaN below 4 seeds
    dip_p: float  # its p-value against a uniform; NaN below min_dip seeds
    sarle: float  # bimodality coefficient, above .555 suggests two groups; NaN below 4 seeds


@dataclasses.dataclass(frozen=True)
class _Shapes:
    """How one metric of one ability rises."""

    best: str
    sharper: float
    rung_jump: float  # largest step between neighbouring rungs, as a share of the range of rung means


def emergence(rows: pd.DataFrame, rule: Rule = Rule()) -> pd.DataFrame:
    """Classify every ability of the dense rows by how its gain over chance depends on log10 parameters.

    Each model (rung, seed) is one point. Smooth shapes are a flat line, a line, and logistics and breaks whose 10–90 %
    width is at least ``decades``; sharp ones are narrower logistics (steps) and breaks, and two states between which
    only the chance of the higher one changes with size. They are compared by BIC. Then, in this order:

    - undecided: fewer than `min_rungs` rungs, or fewer than `min_seeds` seeds on one of them;
    - never: no seed of any rung reaches the gate;
    - always there: the smallest rung's lower 95 % bound (t over seeds) reaches the gate, and its mean is at least
      `there` of the largest rung's;
    - undecided: fewer than two seeds in all reach the gate;
    - emergent: a sharp shape is better by `evidence`, the largest step between rungs (or the distance between the two
      states) is at least `jump` of the range, and the smallest rung is below the gate (upper 95 % bound, one-sided),
      *and* nats or Brier are sharp by the same evidence;
    - metric artefact: all of these but the last, and on nats and Brier a smooth shape is better by `evidence`;
    - smooth: a smooth shape is better by `evidence`, or a sharp one is not followed by such a step;
    - undecided: everything else.

    No shape falls. Where rung means that may fall are better than the nearest that never do by `evidence`, `reason`
    says that the ability is not monotone in size; its outcome and threshold describe the rise alone.

    Parameters
    ----------
    rows : frame with the columns of `labkit.records.ItemRow`; only dense rows are read. Scores that were published
        without items are rows with one item.
    rule : what was fixed beforehand.

    Returns
    -------
    Frame with the columns of `Emergence`, by ability.

    Raises
    ------
    LabkitError
        As `labkit.scores.scores`; no dense rows.

    Source: Wei et al. (2022), arXiv 2206.07682; Schaeffer et al. (2023), arXiv 2304.15004 (metrics); Du et al. (2024),
    arXiv 2403.15796 (loss); Zhao et al. (2025), arXiv 2502.17356 (seeds).
    """
    means = _dense(rows)
    first = primary(means)
    nats = means[(means["ability"] == CONTROL) & (means["metric"] == NLL_NATS)].set_index(["rung", "seed"])["value"]
    told = [
        _classify(str(a), points, means[means["ability"] == a], nats, rule) for a, points in first.groupby("ability")
    ]
    return pd.DataFrame([dataclasses.asdict(row) for row in told], columns=columns(Emergence))


def appearance(rows: pd.DataFrame, rule: Rule = Rule()) -> pd.DataFrame:
    """For every ability and rung of the dense rows: P(appears) over seeds, and whether seeds fall into two groups.

    Returns a frame with the columns of `Appearance`, by ability and size. Raises LabkitError as `emergence`.
    """
    told = []
    for (ability, params, rung), points in primary(_dense(rows)).groupby(["ability", "params", "rung"]):
        gains = points["gain"].to_numpy()
        have = gains[gains >= rule.gate]
        share = len(have) / len(gains), *jeffreys_interval(len(have), len(gains))
        two = (modality.dip(gains), modality.sarle(gains)) if len(gains) >= 4 else (np.nan, np.nan)
        p = modality.dip_p(gains) if len(gains) >= rule.min_dip else np.nan
        mean_with = float(have.mean()) if have.size else np.nan
        counts = str(ability), str(rung), int(params), len(gains), len(have)
        told.append(Appearance(*counts, *share, float(gains.mean()), mean_with, two[0], p, two[1]))
    return pd.DataFrame([dataclasses.asdict(row) for row in told], columns=columns(Appearance))


def _dense(rows: pd.DataFrame) -> pd.DataFrame:
    if "compression" not in rows:
        raise LabkitError("rows have the columns of ItemRow", "rows without compression", "Add it.")
    rows = rows[rows["compression"] == DENSE]
    if rows.empty:
        raise LabkitError("emergence is read off dense rows", "none", "Evaluate the dense ladder.")
    means = scores(rows.assign(sparsity=0.0))  # dense models are one condition, whatever zeros training left in them
    return means.assign(x=np.log10(means["params"]))


def _classify(ability: str, points: pd.DataFrame, means: pd.DataFrame, nats: pd.Series, rule: Rule) -> Emergence:
    """The outcome of one ability. `points`: its models in the primary metric; `means`: in every metric."""
    metric = points["metric"].iloc[0]
    counts = points.groupby("x")["seed"].size()
    told = {field.name: np.nan for field in dataclasses.fields(Emergence) if field.type == "float"}
    told |= {"ability": ability, "metric": metric, "shape": "", "n_rungs": len(counts), "n_seeds": int(counts.min())}
    reason = None
    if len(counts) < rule.min_rungs:
        reason = f"{len(counts)} of the {rule.min_rungs} rungs the rule asks for"
    elif counts.min() < rule.min_seeds:
        alone = points.loc[points["x"] == counts.idxmin(), "rung"].iloc[0]
        reason = f"{counts.min()} of the {rule.min_seeds} seeds the rule asks for on rung {alone}: no spread over seeds"
    if reason:
        return Emergence(**told | {"outcome": "undecided", "reason": reason})
    told |= _power(means)
    shapes = _shapes(points, rule)
    told |= {"shape": shapes.best, "sharper": shapes.sharper}
    continuous = {m: _shapes(group, rule).sharper for m, group in means.groupby("metric") if m in _PROPER}
    told["sharper_continuous"] = max(continuous.values(), default=np.nan)
    outcome, reason = _level(points, rule)
    if outcome is None or outcome == "undecided":
        told |= _threshold(ability, points, rule) | _over_loss(points, nats, rule)
    if outcome is None:
        outcome, reason = _decide(points, shapes, continuous, rule)
    return Emergence(**told | {"outcome": outcome, "reason": reason + _falls(points, rule)})


def _level(points: pd.DataFrame, rule: Rule) -> tuple[str | None, str]:
    """Abilities for which the shape does not matter; None for those for which it does."""
    gains = {x: group["gain"].to_numpy() for x, group in points.groupby("x")}
    smallest, largest = gains[min(gains)], gains[max(gains)]
    have = int((points["gain"] >= rule.gate).sum())
    if not have:
        most = jeffreys_interval(0, len(largest))[1]
        return "never", (
            f"no model of {len(points)} is {rule.gate:g} of the way from chance to perfect "
            f"(best {points['gain'].max():.2f}); "
            f"with {len(largest)} seeds on the largest rung, P(appears) there may still be up to {most:.2f}"
        )
    low = smallest.mean() - stats.t.ppf(0.975, len(smallest) - 1) * stats.sem(smallest)
    share = smallest.mean() / largest.mean()
    if low >= rule.gate and share >= rule.there:
        return "always there", (
            f"the smallest rung already has {share:.0%} of the largest one's gain (lower 95 % bound {low:.2f})"
        )
    if have < 2:
        return "undecided", f"one model of {len(points)} reaches the gate {rule.gate:g}: it may be chance"
    return None, ""


def _decide(points: pd.DataFrame, shapes: _Shapes, continuous: dict[str, float], rule: Rule) -> tuple[str, str]:
    """Smooth, emergent or made by the metric, for an ability that comes with size."""
    better = f"BIC favours {shapes.best} by {abs(shapes.sharper):.1f}"
    if shapes.sharper <= -rule.evidence:
        return "smooth", better
    if shapes.sharper < rule.evidence:
        return (
            "undecided",
            f"{better}, less than {rule.evidence:g} over the best {'smooth' if shapes.sharper > 0 else 'sharp'} shape",
        )
    if shapes.rung_jump < rule.jump:
        return "smooth", f"{better}, but the largest step is {shapes.rung_jump:.0%} of the range"
    smallest = points.loc[points["x"] == points["x"].min(), "gain"]
    bound = smallest.mean() + stats.t.ppf(0.95, len(smallest) - 1) * stats.sem(smallest)
    if bound >= rule.gate:
        return "undecided", f"{better}, but the smallest rung is not shown to lack it: upper 95 % bound {bound:.2f}"
    values = ", ".join(f"{metric} {value:+.1f}" for metric, value in continuous.items())
    if not continuous:
        return "undecided", f"{better}, but there are neither nats nor Brier to show that the metric does not make it"
    if max(continuous.values()) >= rule.evidence:
        return "emergent", f"{better}; continuous metrics jump too ({values})"
    if max(continuous.values()) <= -rule.evidence:
        return (
            "metric artefact",
            f"{better} on {points['metric'].iloc[0]}, while continuous metrics are smooth ({values})",
        )
    return "undecided", f"{better}, but continuous metrics do not say whether they jump ({values})"


def _shapes(points: pd.DataFrame, rule: Rule) -> _Shapes:
    smooth, sharp = curves.rivals(points["x"], points["gain"], rule.decades, rule.scatter)
    sharper = smooth.bic - sharp.bic
    best = sharp if sharper > 0 else smooth
    if best.shape == "two-state":
        step = abs(best.high - best.low) / np.ptp(points["gain"])
    else:
        means = points.groupby("x")["gain"].mean()
        step = float(means.diff().max() / (np.ptp(means) or np.inf))
    name = "step" if best is sharp and best.shape == "logistic" else best.shape
    return _Shapes(name, float(sharper), float(step))


def _falls(points: pd.DataFrame, rule: Rule) -> str:
    """Where the ability gets worse with size, in words to end a reason with; empty where that is not shown."""
    if curves.falling(points["x"], points["gain"], rule.scatter) < rule.evidence:
        return ""
    means = points.groupby(["x", "rung"])["gain"].mean()
    fall = means.cummax() - means
    low = int(fall.argmax())
    high, names = int(means.iloc[: low + 1].argmax()), means.index.get_level_values("rung")
    return f"; not monotone in size: falls by {fall.max():.2f} from {names[high]} to {names[low]}"


def _threshold(ability: str, points: pd.DataFrame, rule: Rule) -> dict[str, float]:
    """Threshold and width with their intervals, seeds resampled within rungs."""
    # A generator of the ability's own: its interval does not depend on which others were measured.
    generator = np.random.default_rng([rule.seed, zlib.crc32(ability.encode())])
    x = points["x"].to_numpy()
    weights = np.zeros((rule.draws, len(points)))
    for size in np.unique(x):
        members = np.flatnonzero(x == size)
        drawn = members[generator.integers(len(members), size=(rule.draws, len(members)))]
        np.add.at(weights, (np.arange(rule.draws)[:, None], drawn), 1)
    drawn = curves.sample_logistics(x, points["gain"], weights, rule.scatter, generator)
    middle, width = np.median(drawn, axis=0)
    (low, width_low), (high, width_high) = percentile_interval(drawn)
    names = ("threshold", "threshold_low", "threshold_high")
    told = dict(zip(names, map(float, (middle, low, high)), strict=True))
    told |= dict(zip(("threshold_params", "params_low", "params_high"), (10**v for v in told.values()), strict=True))
    return told | {"width": float(width), "width_low": float(width_low), "width_high": float(width_high)}


def _over_loss(points: pd.DataFrame, nats: pd.Series, rule: Rule) -> dict[str, float]:
    """Is a break over language-model loss better than the best shape over parameters?"""
    loss = nats.reindex(pd.MultiIndex.from_frame(points[["rung", "seed"]])).to_numpy()
    if np.isnan(loss).any() or np.ptp(loss) == 0:
        return {}
    x, y = points["x"].to_numpy(), points["gain"].to_numpy()
    over_size = min(curves.fit(shape, x, y, rule.scatter).bic for shape in curves.SHAPES)
    broken = curves.fit("break", -loss, y, rule.scatter)
    onset = broken.middle - broken.width / 1.6  # the middle is half of the rise's length after its start
    return {"loss_better": over_size - broken.bic, "loss_threshold": float(-onset)}


def _power(means: pd.DataFrame) -> dict[str, float]:
    """The k for which exact match is (token accuracy)^k, as for k tokens that are right independently."""
    wide = means.pivot_table(index=["rung", "seed"], columns="metric", values="value")
    if not {EXACT_MATCH, TOKEN_ACCURACY} <= set(wide) or np.ptp(wide[EXACT_MATCH]) == 0:
        return {}
    exact, token = wide[EXACT_MATCH].to_numpy(), wide[TOKEN_ACCURACY].to_numpy()
    left = ((exact - token ** _POWERS[:, None]) ** 2).sum(axis=1)
    r2 = 1 - left.min() / ((exact - exact.mean()) ** 2).sum()
    return {"power": float(_POWERS[left.argmin()]), "power_r2": float(r2)}
