"""Damage or size? Compressed models beside smaller dense ones, and the seed question as one number."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy import stats

from labkit import curves
from labkit.dense_curve import Draws, Ladder, arranged, conditions, dense_curve, paired_scores, sizes
from labkit.errors import LabkitError
from labkit.records import DENSE, NLL_NATS, columns
from labkit.scores import need, primary, scores
from labkit.statistics import unpaired_ratio_interval

ANSWERS = ("emergence lost", "redundancy stripped", "undecided")
"""Every value of the column ``answer``."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is decided before the rows are read. Gains run from 0 (chance) to 1 (perfect).

    Attributes
    ----------
    gate : gain from which a dense model has an ability, in (0, 1); the same as in the verdict on retention.
    margin : difference in retention that matters, in (0, 1).
    resolution : gains closer than this count as equal where a size is read off the dense curve.
    control : the ability whose nats stand for language-model loss.
    min_seeds : seeds without which nothing is answered, ≥ 2.
    draws, seed : resamples of seeds, ≥ 100, and the seed of their generator.
    """

    gate: float = 0.20
    margin: float = 0.10
    resolution: float = 0.01
    control: str = "markov"
    min_seeds: int = 5
    draws: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("gate", "margin"):
            if not 0 < getattr(self, name) < 1:
                raise LabkitError(f"{name} lies in (0, 1)", getattr(self, name), "Give a fraction, e.g. 0.1.")
        if not self.resolution >= 0:
            raise LabkitError("resolution is at least 0", self.resolution, "Give e.g. 0.01.")
        for name, least in (("min_seeds", 2), ("draws", 100)):
            if getattr(self, name) < least:
                raise LabkitError(f"{name} is at least {least}", getattr(self, name), f"Give {least} or more.")


@dataclasses.dataclass(frozen=True)
class SizeMatched:
    """What training a smaller model on as many tokens gives: the gain of its rung over that of a larger one."""

    rung: str
    control: str  # the smaller rung
    params: int
    control_params: int
    ability: str
    metric: str
    ratio: float  # of mean gains, over all seeds of each rung; NaN where the larger rung is below the gate
    low: float  # 95 % interval over new seeds of both rungs, which are not paired
    high: float
    n_seeds: int  # of the smaller rung


@dataclasses.dataclass(frozen=True)
class EffectiveScale:
    """The size of the dense model that is as able as a compressed one. Intervals are 95 %, over resampled seeds."""

    rung: str
    compression: str
    sparsity: float
    ability: str
    metric: str
    params: int  # of the dense parent
    effective: float  # parameters of the dense model with the same gain; at an end of the ladder where `bounded`
    low: float
    high: float
    share: float  # effective / params
    bounded: str  # "" or "at most" / "at least": even the smallest / largest rung is as able or better / worse
    n_seeds: int  # compressed seeds
    reason: str  # why there is no size or no interval, in words


@dataclasses.dataclass(frozen=True)
class SeedQuestion:
    """One compression of one rung: do emergent abilities lose more than always-there ones? Losses are 1 − retention."""

    rung: str
    compression: str
    sparsity: float
    abilities: str  # that the contrast is between: "addition, recall | facts", emergent ones first
    emergent: float  # mean loss over the emergent abilities that the dense parents have
    always: float  # mean loss over the always-there ones
    contrast: float  # emergent − always, with its 95 % interval
    low: float
    high: float
    nats: float  # language-model loss of the compressed models, nats per token
    matched_params: float  # size at which dense models have this loss
    matched_bounded: str  # "" or "at most" / "at least": no dense model has this loss, and an end of the ladder is shown
    matched_contrast: float  # the same contrast for dense models of that size, with its 95 % interval
    matched_low: float
    matched_high: float
    beyond: float  # contrast − matched_contrast: what size does not explain; NaN where nothing has this loss
    beyond_low: float
    beyond_high: float
    n_seeds: int
    answer: str  # one of ANSWERS
    reason: str


def size_matched(dense: pd.DataFrame, share: float = 0.5, rule: Rule = Rule()) -> pd.DataFrame:
    """Beside every rung but the smallest, the smaller rung whose parameters come nearest to ``share`` of its own.

    Parameters
    ----------
    dense : frame with the columns of `labkit.records.ItemRow`; only the dense rows are read.
    share : of the parameters that a compression leaves, in (0, 1).
    rule : `gate` is used.

    Returns
    -------
    Frame with the columns of `SizeMatched`, rungs by size. The interval is `unpaired_ratio_interval` of
    `labkit.statistics`. Raises LabkitError as `labkit.scores.scores`, and for a share outside (0, 1).
    """
    if not 0 < share < 1:
        raise LabkitError("the share of parameters that is left lies in (0, 1)", share, "Give a fraction, e.g. 0.5.")
    need(dense, ["compression"])
    first = primary(scores(dense[dense["compression"] == DENSE]))
    params = first.groupby("rung")["params"].max().sort_values()
    told = []
    for rung, size in params[params > params.min()].items():
        control = (params[params < size] - share * size).abs().idxmin()
        for ability, of_ability in first.groupby("ability"):
            small, large = (of_ability.loc[of_ability["rung"] == name, "gain"] for name in (control, rung))
            known = len(small) > 0 and large.mean() >= rule.gate
            numbers = (small.mean() / large.mean(), *unpaired_ratio_interval(small, large)) if known else [np.nan] * 3
            sizes = round(size), round(params[control])
            told.append(SizeMatched(rung, control, *sizes, ability, of_ability["metric"].iloc[0], *numbers, len(small)))
    return pd.DataFrame([dataclasses.asdict(row) for row in told], columns=columns(SizeMatched))


def effective_scale(dense: pd.DataFrame, compressed: pd.DataFrame, rule: Rule = Rule()) -> pd.DataFrame:
    """For every compression and ability, the size on the dense curve that has the same ability.

    The dense curve is piecewise linear in log10 parameters through the mean gain of each rung, after the nearest
    never-falling sequence has been taken (weighted by seeds). Where it is level, many sizes have the same ability, and
    the one nearest to the parent's is given, as a bound if even the smallest rung has it. Seeds are resampled within
    rungs, a compressed model together with its dense parent; intervals are log10 size ± t(seeds − 1)·standard error of
    this bootstrap·√(n/(n − 1)), cut off at the ends of the ladder. An ability whose dense parents are below the gate has
    no effective scale.

    Parameters
    ----------
    dense, compressed : frames with the columns of `labkit.records.ItemRow`; of `dense` only the dense rows are read, of
        `compressed` only the others, so that one store's frame may be given twice.
    rule : `gate`, `resolution`, `draws` and `seed` are used.

    Returns
    -------
    Frame with the columns of `EffectiveScale`, rungs by size.

    Raises
    ------
    LabkitError
        As `labkit.scores.scores`; fewer than two dense rungs; a compressed model without its dense parent, or that
        scored other items.
    """
    means = paired_scores(dense, compressed)
    first = primary(means)
    told, metric = [], first.drop_duplicates("ability").set_index("ability")["metric"]
    ladder, draws = arranged(first), Draws(first, rule.draws, rule.seed)
    for key, n_seeds in conditions(first).items():
        for ability in sorted({k[3] for k in ladder.gains if k[:3] == key}):
            told.append(_effective(ladder, draws, (*key, ability), metric[ability], n_seeds[ability], rule))
    return pd.DataFrame([dataclasses.asdict(row) for row in told], columns=columns(EffectiveScale))


def seed_question(rows: pd.DataFrame, outcomes: pd.DataFrame, rule: Rule = Rule()) -> pd.DataFrame:
    """How much more an emergent ability loses than an always-there one, and whether a smaller dense model does too.

    Retention of an ability is the mean gain of the compressed models over that of their dense parents, over the seeds
    whose parent reaches the gate, and no less than 0: below chance nothing more is lost. The loss is 1 − retention.
    The contrast is the mean loss of emergent abilities less that of always-there ones (the control itself is not among
    them). The matched contrast replaces the compressed models by the dense curve at the size that has the same
    language-model loss, with the same parents. Intervals are estimate ± t(seeds − 1)·standard error of the bootstrap
    over seeds·√(n/(n − 1)): with few seeds plain percentiles are too narrow.

    Abilities that fewer than `min_seeds` of the parents have (of fewer: not all) are left aside, and said in ``reason``.

    - undecided: fewer than `min_seeds` seeds, or no ability of one of the two kinds that as many parents have;
    - emergence lost: the contrast's lower bound exceeds `margin`;
    - redundancy stripped: the contrast's bounds lie within ± `margin`, and emergent abilities lose no more than
      `margin` (upper bound);
    - undecided: everything else. Losing both kinds alike is damage, but not this one.

    Parameters
    ----------
    rows : frame with the columns of `labkit.records.ItemRow`, dense and compressed.
    outcomes : frame with the columns ability and outcome, as `labkit.emergence.emergence` returns. Which abilities are
        emergent was read off the dense rows alone.
    rule : what was fixed beforehand.

    Returns
    -------
    Frame with the columns of `SeedQuestion`, rungs by size. Raises LabkitError as `effective_scale`, and where
    `outcomes` lacks its columns or names an ability twice.
    """
    kinds = _kinds(outcomes, rule)
    means = paired_scores(rows, rows)
    nats = means[(means["ability"] == rule.control) & (means["metric"] == NLL_NATS)]
    first = primary(means)
    first = first[first["ability"] != rule.control]
    loss = nats.assign(gain=-nats["value"])
    ladder, draws = arranged(first), Draws(first, rule.draws, rule.seed)
    control = arranged(loss, ladder.seeds) if len(loss) else None
    told = []
    for key, n_seeds in conditions(first).items():
        told.append(_question(ladder, control, draws, key, kinds, max(n_seeds.values()), rule))
    return pd.DataFrame([dataclasses.asdict(row) for row in told], columns=columns(SeedQuestion))


def _effective(ladder: Ladder, draws: Draws, key: tuple, metric: str, n_seeds: int, rule: Rule) -> EffectiveScale:
    parent = 10 ** ladder.x[ladder.rungs.index(key[0])]
    row = EffectiveScale(*key, metric, round(parent), np.nan, np.nan, np.nan, np.nan, "", n_seeds, "")
    measured = ~np.isnan(ladder.gains[key])
    dense = float(draws.means(key[0], ladder.gains[key[0], DENSE, 0.0, key[3]], measured)[0])
    if dense < rule.gate:
        return dataclasses.replace(row, reason=f"the dense parents' gain {dense:.2f} is below the gate {rule.gate:g}")
    x, curve = dense_curve(ladder, draws, key[3])
    size, side = sizes(ladder, draws, key, x, curve, rule.resolution)
    low, high = 10 ** np.clip(_interval(size, n_seeds)[1:], x[0], x[-1])
    level, smallest = float(draws.means(key[0], ladder.gains[key])[0]), float(curve[0, 0])
    beyond = int(side[0]) or (-1 if level <= smallest + rule.resolution and dense - level > rule.resolution else 0)
    reason = "" if not np.isnan(low) else "one seed gives no interval" if n_seeds < 2 else "most resamples lack a seed"
    return dataclasses.replace(
        row,
        effective=float(10 ** size[0]),
        low=float(low),
        high=float(high),
        share=float(10 ** size[0] / parent),
        bounded={-1: "at most", 0: "", 1: "at least"}[beyond],
        reason=reason,
    )


def _kinds(outcomes: pd.DataFrame, rule: Rule) -> dict[str, list[str]]:
    missing = [name for name in ("ability", "outcome") if name not in outcomes]
    if missing:
        raise LabkitError("outcomes say which abilities are emergent", f"no {', '.join(missing)}", "Run emergence.")
    twice = outcomes["ability"].duplicated()
    if twice.any():
        raise LabkitError("an ability has one outcome", f"two of {outcomes['ability'][twice].iloc[0]}", "Drop one.")
    kind = outcomes.set_index("ability")["outcome"]
    return {name: [a for a in kind.index[kind == name] if a != rule.control] for name in ("emergent", "always there")}


def _had(ladder: Ladder, key: tuple, abilities: Iterable[str], rule: Rule) -> dict[str, np.ndarray]:
    """Of each ability that a dense parent of this condition has, and that was measured after it, which seeds: (seeds,)."""
    paired = {a: (ladder.gains.get((key[0], DENSE, 0.0, a)), ladder.gains.get((*key, a))) for a in abilities}
    both = {a: pair for a, pair in paired.items() if pair[0] is not None and pair[1] is not None}
    uses = {a: (parent >= rule.gate) & ~np.isnan(own) for a, (parent, own) in both.items()}
    return {a: use for a, use in uses.items() if use.any()}


def _losses(
    ladder: Ladder, draws: Draws, key: tuple, had_by: dict[str, np.ndarray], at: np.ndarray | None
) -> np.ndarray:
    """Mean loss over abilities per draw, of a condition, or with `at` of dense models of those log10 sizes."""
    lost = []
    for ability, use in had_by.items():
        parent, own = ladder.gains[key[0], DENSE, 0.0, ability], ladder.gains[*key, ability]
        had = draws.means(key[0], parent, use)
        if at is None:
            left = draws.means(key[0], own, use)
        else:
            x, curve = dense_curve(ladder, draws, ability)
            left = curves.interpolate(at, x, curve)
        lost.append(1 - np.maximum(0, left / had))
    if not lost:
        return np.full(draws.count, np.nan)
    known = ~np.isnan(lost)
    total = np.where(known, lost, 0).sum(axis=0)
    return np.divide(total, known.sum(axis=0), out=np.full(draws.count, np.nan), where=known.any(axis=0))


def _interval(samples: np.ndarray, n_seeds: int) -> tuple[float, float, float]:
    """Estimate and t-interval with the bootstrap's standard error."""
    estimate, drawn = float(samples[0]), samples[1:][~np.isnan(samples[1:])]
    if n_seeds < 2 or np.isnan(estimate) or drawn.size < len(samples) / 2:
        return estimate, np.nan, np.nan
    half = stats.t.ppf(0.975, n_seeds - 1) * drawn.std() * np.sqrt(n_seeds / (n_seeds - 1))
    return estimate, float(estimate - half), float(estimate + half)


def _question(
    ladder: Ladder, control: Ladder | None, draws: Draws, key: tuple, kinds: dict, n_seeds: int, rule: Rule
) -> SeedQuestion:
    had = [_had(ladder, key, kinds[name], rule) for name in ("emergent", "always there")]
    least = min(rule.min_seeds, n_seeds)
    rare = {ability: int(use.sum()) for uses in had for ability, use in uses.items() if use.sum() < least}
    had = [{ability: use for ability, use in uses.items() if ability not in rare} for uses in had]
    n_seeds = min((int(use.sum()) for uses in had for use in uses.values()), default=n_seeds)
    emergent, always = (_losses(ladder, draws, key, uses, None) for uses in had)
    contrast = _interval(emergent - always, n_seeds)
    nats, size, bounded, matched, beyond = np.nan, np.nan, "", (np.nan,) * 3, (np.nan,) * 3
    if control is not None and (*key, rule.control) in control.gains:
        where = (*key, rule.control)
        nats = -float(draws.means(key[0], control.gains[where])[0])
        x, curve = dense_curve(control, draws, rule.control)
        at, side = sizes(control, draws, where, x, curve, rule.resolution)
        size, bounded = float(10 ** at[0]), {-1: "at most", 0: "", 1: "at least"}[int(side[0])]
        smaller = [_losses(ladder, draws, key, uses, at) for uses in had]
        matched = _interval(smaller[0] - smaller[1], n_seeds)
        if not bounded:
            beyond = _interval(emergent - always - (smaller[0] - smaller[1]), n_seeds)
    answer, reason = _answer(contrast, _interval(emergent, n_seeds), kinds, n_seeds, rule)
    if not np.isnan(nats) and bounded:
        reason += f"; no dense rung has the language-model loss {nats:.3f} nats"
    if rare:
        reason += f"; without {', '.join(f'{ability} ({n} parents have it)' for ability, n in rare.items())}"
    used = (", ".join(uses) for uses in had)
    losses = float(emergent[0]), float(always[0])
    return SeedQuestion(
        *key, " | ".join(used), *losses, *contrast, nats, size, bounded, *matched, *beyond, n_seeds, answer, reason
    )


def _answer(contrast: tuple, emergent: tuple, kinds: dict, n_seeds: int, rule: Rule) -> tuple[str, str]:
    estimate, low, high = contrast
    if np.isnan(estimate):
        without = "emergent" if np.isnan(emergent[0]) else "always-there"
        return "undecided", f"the dense parents have no {without} ability, or too few of them have it"
    if n_seeds < rule.min_seeds or np.isnan(low):
        return "undecided", f"{n_seeds} of the {rule.min_seeds} seeds the rule asks for"
    span = f"95 % interval {low:.2f} to {high:.2f}"
    if low > rule.margin:
        return "emergence lost", f"{span} of the contrast is above {rule.margin:g}"
    if -rule.margin <= low and high <= rule.margin and emergent[2] <= rule.margin:
        return "redundancy stripped", f"{span} of the contrast lies within ±{rule.margin:g}; emergent abilities are kept"
    if high < 0:
        return "undecided", f"{span} of the contrast is below 0: emergent abilities lose less than always-there ones"
    told = f"{span} of the contrast neither exceeds {rule.margin:g} nor shows that emergent abilities are kept"
    return "undecided", told
