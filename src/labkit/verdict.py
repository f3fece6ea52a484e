"""The question: which abilities of a compressed model are kept, degraded or lost, and where can nobody say?"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from labkit.errors import LabkitError
from labkit.pairing import UNCOMPRESSED, UNIT, Group, Tables, gains, having, paired, primary, tables
from labkit.records import DENSE, NLL_NATS, columns
from labkit.statistics import Spread, jeffreys_interval, mcnemar, mean_interval, one_sided, p_value, ratio_interval

VERDICTS = ("kept", "degraded", "lost", "undecided", "absent")
"""Every value of the column ``verdict``."""

_COMPRESSED, _DENSE = np.eye(2)  # weights of the two gains of a case


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is decided before the rows are read.

    Attributes
    ----------
    margin : retention within 1 ± margin counts as equal to dense, in (0, 1).
    lost : retention below it counts as lost, in (0, 1 − margin).
    gate : part of the way from chance to a perfect score that a dense model must go to have an ability, in (0, 1).
    min_seeds : seeds without which nothing is decided, at least 2.
    """

    margin: float = 0.05
    lost: float = 0.20
    gate: float = 0.20
    min_seeds: int = 5

    def __post_init__(self) -> None:
        for name in ("margin", "lost", "gate"):
            if not 0 < getattr(self, name) < 1:
                raise LabkitError(f"{name} lies in (0, 1)", getattr(self, name), "Give a fraction, e.g. 0.05.")
        if self.lost >= 1 - self.margin:
            raise LabkitError("lost lies below 1 - margin", self.lost, f"Give less than {1 - self.margin:g}.")
        if self.min_seeds < 2:
            raise LabkitError("min_seeds is at least 2", self.min_seeds, "Give 2 or more.")


@dataclasses.dataclass(frozen=True)
class VerdictRow:
    """One ability of one compressed rung. Scores and intervals are over the `n_seeds` seeds that were used."""

    rung: str
    compression: str
    sparsity: float
    ability: str
    metric: str  # the primary one: exact match, else token accuracy, else nats
    dense: float  # mean score of the dense models
    compressed: float  # mean score of the compressed models, same seeds and items
    chance: float  # mean score of a guesser
    retention: float  # (compressed - chance) / (dense - chance); NaN where absent
    low: float  # 95 % interval of retention
    high: float
    low90: float  # 90 % interval of retention
    high90: float
    nats_retention: float  # the same on nll_nats: (chance - compressed) / (chance - dense)
    nats_low90: float
    nats_high90: float
    n_seeds: int  # seeds used: those whose own dense model has the ability
    n_items: int  # items per seed
    seeds_with: int  # dense seeds that have the ability ...
    seeds_all: int  # ... of all dense seeds of this rung
    right_to_wrong: float  # share of all items that only the dense model gets wholly right; NaN in nats
    wrong_to_right: float  # share of all items that only the compressed model gets wholly right
    p_flips: float  # exact McNemar test that these models flip items both ways alike
    p_kept: float  # TOST: the retention, and that on nats, lies outside of 1 ± margin
    p_lost: float  # one-sided: retention is `lost` or more
    verdict: str  # one of VERDICTS
    reason: str  # why, in words


@dataclasses.dataclass(frozen=True)
class _Case:
    """One group to be judged: paired gains over chance, oriented so that more is better."""

    group: Group
    scores: tuple[float, float, float]  # means: dense, compressed, chance
    gains: np.ndarray  # (2, seeds used, items): compressed, dense
    nats: np.ndarray  # the same on nll_nats; NaN where these seeds have none
    flips: tuple[int, int] | None  # right to wrong, wrong to right, of all items of all seeds used
    gate: float  # gain that a dense model must reach
    seeds_with: int
    seeds_all: int
    remarks: tuple[str, ...]  # what a reader has to know about these rows


def judge(rows: pd.DataFrame, margin: float | None = None, rule: Rule = Rule()) -> pd.DataFrame:
    """Judge every compressed ability against the same seeds' dense models.

    Retention R = (s − c)/(t − c), with s, t, c the mean compressed, dense and chance score, paired by rung, seed and
    item. Its intervals are for new seeds and new items (`labkit.statistics.ratio_interval`, which says how often they
    hold the truth; `labkit.simulation.calibrate` shows it, and how often a verdict is wrong).

    Seeds whose own dense score is below the gate c + gate·(best − c) are left aside and counted (`seeds_with` of
    `seeds_all`): a model cannot lose what it never had. Then, in this order:

    - absent: no seed passes the gate, or the lower 95 % bound of the dense mean does not;
    - undecided: fewer than `min_seeds` seeds are left;
    - kept: the 90 % interval of R lies within 1 ± margin, and so does that of R on nats;
    - lost: the upper 95 % bound is below `lost`;
    - degraded: the upper 95 % bound is below 1 − margin;
    - undecided: everything else.

    Verdicts are of one group each. For a statement about many, adjust ``p_kept`` or ``p_lost`` with
    `labkit.statistics.holm` (hypotheses named beforehand) or `benjamini_hochberg` (a search through a grid).

    Parameters
    ----------
    rows : frame with the columns of `labkit.records.ItemRow`, in any order; dense rows have compression "dense".
    margin : replaces ``rule.margin``; the column ``reason`` states the bounds that a verdict was reached with.
    rule : everything else that is fixed beforehand.

    Returns
    -------
    Frame with the columns of `VerdictRow`, rungs by size. ``reason`` also names what is odd about the rows: dense seeds
    that were not compressed, and scores that are all the same.

    Raises
    ------
    LabkitError
        Columns missing, values that are not finite, duplicated rows, seeds that score different items, compressed rows
        without the dense rows they are paired with, or an ability with no metric to judge by.
    """
    rule = rule if margin is None else dataclasses.replace(rule, margin=margin)
    verdicts = [
        _verdict(_case(metrics, Group(rung, *condition, ability, primary(metrics)), rule), rule)
        for (rung, ability), metrics in sorted(tables(rows).items())
        for condition in sorted({key for table in metrics.values() for key in table if key != UNCOMPRESSED})
    ]
    params = rows[rows["compression"] == DENSE].groupby("rung", observed=True)["params"].min()
    verdicts.sort(key=lambda row: (params[row.rung], row.rung, row.compression, row.sparsity, row.ability))
    return pd.DataFrame([dataclasses.asdict(row) for row in verdicts], columns=columns(VerdictRow))


def outcomes(bounds: np.ndarray, inner: np.ndarray, inner_nats: np.ndarray, rule: Rule) -> np.ndarray:
    """Verdicts of abilities that the dense models have, from (2, ...) bounds: 95 %, 90 %, and 90 % on nats."""
    kept = within(inner, rule.margin) & within(inner_nats, rule.margin)
    lost, degraded = bounds[1] < rule.lost, bounds[1] < 1 - rule.margin
    # An interval within the margin on the score alone is no degradation, whatever the nats say: it stays undecided.
    degraded = degraded & ~within(inner, rule.margin)
    return np.select([kept, lost, degraded], ["kept", "lost", "degraded"], "undecided")


def within(bounds: np.ndarray, margin: float) -> np.ndarray:
    """Whether (2, ...) bounds lie within 1 ± margin; NaN does not."""
    return (1 - margin <= bounds[0]) & (bounds[1] <= 1 + margin)


def _case(metrics: Tables, group: Group, rule: Rule) -> _Case:
    compressed, dense = paired(metrics, group)
    whole = metrics[group.metric][UNCOMPRESSED]
    have, gate = having(whole, group.metric, rule.gate)
    used = np.intersect1d(have, compressed.seeds)
    both = gains(group.metric, used, compressed, dense)
    in_nats = np.full_like(both, np.nan)
    if all(key in metrics.get(NLL_NATS, ()) for key in (UNCOMPRESSED, group.condition)):
        nats, dense_nats = paired(metrics, group._replace(metric=NLL_NATS))
        if not np.array_equal(nats.items, compressed.items):
            raise LabkitError("all metrics of an ability score the same items", str(group), "Score them again.")
        if np.isin(used, nats.seeds).all():
            in_nats = gains(NLL_NATS, used, nats, dense_nats)
    missing = np.setdiff1d(have, compressed.seeds)
    remarks = [f"dense seeds {_listed(missing)} have it and were not compressed"] if missing.size else []
    shown = used if used.size else compressed.seeds
    dense, compressed = dense.at(shown), compressed.at(shown)
    for name, block in (("dense", dense), ("compressed", compressed)):
        if block.value.size > 1 and (block.value == block.value.flat[0]).all():
            remarks.append(f"all {name} scores are {block.value.flat[0]:g}")
    scores = tuple(float(part.mean()) for part in (dense.value, compressed.value, dense.chance))
    right, still = dense.value == 1, compressed.value == 1
    flips = (int((right & ~still).sum()), int((still & ~right).sum())) if UNIT[group.metric] and used.size else None
    return _Case(group, scores, both, in_nats, flips, gate, len(have), len(whole.seeds), tuple(remarks))


def _verdict(case: _Case, rule: Rule) -> VerdictRow:
    n_seeds, n_items = case.gains.shape[1:]
    unit, spread = UNIT[case.group.metric], Spread.of(case.gains) if n_seeds else None
    if spread is None or mean_interval(spread, _DENSE, unit=unit)[0] < case.gate:
        dense, _, chance = case.scores
        retained, nats, tests = (np.nan,) * 5, (np.nan,) * 5, (np.nan,) * 2
        verdict = "absent"
        reason = f"dense score {dense:.3g} is not reliably {case.gate:.3g} better than chance {chance:.3g}"
    else:
        spread_nats = Spread.of(case.nats)
        retained, nats = _retained(spread, unit), _retained(spread_nats, 0.0)
        tests = _tests(spread, spread_nats, rule, unit)
        verdict, reason = _decide(retained, nats, n_seeds, rule)
    if 0 < case.seeds_with < case.seeds_all:
        low, high = jeffreys_interval(case.seeds_with, case.seeds_all)
        reason += f"; {case.seeds_with} of {case.seeds_all} dense seeds have it (95 % interval {low:.2f} to {high:.2f})"
    reason = "; ".join((reason, *case.remarks))
    flips = (np.nan,) * 3
    if case.flips is not None:
        flips = (*(count / (n_seeds * n_items) for count in case.flips), float(mcnemar(*case.flips)))
    counts = (n_seeds, n_items, case.seeds_with, case.seeds_all)
    rung, compression, sparsity, ability, metric = case.group
    described = (rung, compression, sparsity, ability, metric, *case.scores)
    return VerdictRow(*described, *retained, nats[0], *nats[3:], *counts, *flips, *tests, verdict, reason)


def _retained(spread: Spread, unit: float) -> tuple[float, ...]:
    """Retention and its 95 % and 90 % bounds; NaN where the dense gain is not told from zero."""
    compressed, dense = spread.mean
    bounds = [ratio_interval(spread, _COMPRESSED, _DENSE, level, unit) for level in (0.95, 0.90)]
    return (float(compressed / dense) if dense > 0 else np.nan, *map(float, np.concatenate(bounds)))


def _tests(spread: Spread, nats: Spread, rule: Rule, unit: float) -> tuple[float, float]:
    """p of kept (the largest of four one-sided tests) and of lost."""

    def above(scores: Spread, bound: float, of: float) -> float:
        weights = _COMPRESSED - bound * _DENSE
        return float(one_sided(p_value(scores, weights, of), scores.mean @ weights > 0))

    low, high = 1 - rule.margin, 1 + rule.margin
    kept = [p for each, of in ((spread, unit), (nats, 0.0)) for p in (above(each, low, of), 1 - above(each, high, of))]
    return float(np.max(kept)), 1 - above(spread, rule.lost, unit)


def _decide(retained: tuple[float, ...], nats: tuple[float, ...], n_seeds: int, rule: Rule) -> tuple[str, str]:
    """The rule, for an ability that the dense models have."""
    (_, low, high, *inner), inner_nats = retained, nats[3:]
    if n_seeds < rule.min_seeds:
        alone = ", and one seed gives no interval" if n_seeds == 1 else ""
        return "undecided", f"{n_seeds} of the {rule.min_seeds} seeds the rule asks for{alone}"
    if np.isnan(low):
        return "undecided", "no interval: the dense models cannot be told from chance"
    verdict = str(outcomes(*map(np.asarray, ((low, high), inner, inner_nats)), rule))
    band = f"{1 - rule.margin:g} to {1 + rule.margin:g}"
    if verdict == "kept":
        return verdict, f"90 % intervals {_span(inner)}, and on nats {_span(inner_nats)}, lie within {band}"
    if verdict != "undecided":
        return verdict, f"upper 95 % bound {high:.3f} is below {rule.lost if verdict == 'lost' else 1 - rule.margin:g}"
    if not within(np.asarray(inner), rule.margin):
        return verdict, f"95 % interval {_span((low, high))} neither shows retention of {band} nor excludes it"
    told = "there is none" if np.isnan(inner_nats).any() else f"{_span(inner_nats)} does not"
    return verdict, f"90 % interval {_span(inner)} lies within {band}, but on nats {told}"


def _span(bounds: tuple[float, ...]) -> str:
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def _listed(seeds: np.ndarray) -> str:
    return ", ".join(map(str, seeds))
