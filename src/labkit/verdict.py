"""The question: which abilities of a compressed model are kept, degraded or lost, and where can nobody say?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from labkit.errors import LabkitError
from labkit.records import BRIER, DENSE, EXACT_MATCH, NLL_NATS, TOKEN_ACCURACY, ItemRow, columns
from labkit.statistics import bootstrap_means, jeffreys_interval, percentile_interval

VERDICTS = ("kept", "degraded", "lost", "undecided", "absent")
"""Every value of the column ``verdict``."""

_PRIMARY = (EXACT_MATCH, TOKEN_ACCURACY, NLL_NATS)  # an ability is judged on the first of these that it has
_BEST = {EXACT_MATCH: 1.0, TOKEN_ACCURACY: 1.0, NLL_NATS: 0.0, BRIER: 0.0}
_DENSE = (DENSE, 0.0)  # dense rows have one condition, whatever few zeros training left in them
_KEYS = ("rung", "ability", "metric", "compression", "sparsity", "seed", "item")


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is decided before the rows are read.

    Attributes
    ----------
    margin : retention within 1 ± margin counts as equal to dense, in (0, 1).
    lost : retention below it counts as lost, in (0, 1 − margin).
    gate : part of the way from chance to a perfect score that a dense model must go to have an ability, in (0, 1).
    min_seeds : seeds without which nothing is decided, at least 2.
    draws, seed : resamples of the bootstrap, at least 100, and the seed of its generator.
    """

    margin: float = 0.05
    lost: float = 0.20
    gate: float = 0.20
    min_seeds: int = 5
    draws: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("margin", "lost", "gate"):
            if not 0 < getattr(self, name) < 1:
                raise LabkitError(f"{name} lies in (0, 1)", getattr(self, name), "Give a fraction, e.g. 0.05.")
        if self.lost >= 1 - self.margin:
            raise LabkitError("lost lies below 1 - margin", self.lost, f"Give less than {1 - self.margin:g}.")
        for name, least in (("min_seeds", 2), ("draws", 100)):
            if getattr(self, name) < least:
                raise LabkitError(f"{name} is at least {least}", getattr(self, name), f"Give {least} or more.")


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
    verdict: str  # one of VERDICTS
    reason: str  # why, in words


class _Group(NamedTuple):
    rung: str
    compression: str
    sparsity: float
    ability: str
    metric: str

    @property
    def condition(self) -> tuple[str, float]:
        return self.compression, self.sparsity

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self._asdict().items())


@dataclasses.dataclass(frozen=True)
class _Block:
    """Scores of one metric under one compression: a full (seeds, items) table."""

    seeds: np.ndarray  # (seeds,)
    items: np.ndarray  # (items,)
    value: np.ndarray  # (seeds, items)
    chance: np.ndarray  # (seeds, items)

    def at(self, seeds: np.ndarray) -> _Block:
        rows = np.searchsorted(self.seeds, seeds)
        return _Block(seeds, self.items, self.value[rows], self.chance[rows])


@dataclasses.dataclass(frozen=True)
class _Case:
    """One group to be judged: paired gains over chance, oriented so that more is better."""

    group: _Group
    dense: float  # mean scores
    compressed: float
    chance: float
    gains: np.ndarray  # (4, seeds used, items): compressed, dense, compressed in nats, dense in nats
    gate: float  # gain that a dense model must reach
    seeds_with: int
    seeds_all: int


def judge(rows: pd.DataFrame, margin: float | None = None, rule: Rule = Rule()) -> pd.DataFrame:
    """Judge every compressed ability against the same seeds' dense models.

    Retention R = (s − c)/(t − c), with s, t, c the mean compressed, dense and chance score, paired by rung, seed and
    item. Its intervals resample seeds, then items (`labkit.statistics.bootstrap_means`), and recompute R in each draw.

    Seeds whose own dense score is below the gate c + gate·(best − c) are left aside and counted (`seeds_with` of
    `seeds_all`): a model cannot lose what it never had. Then, in this order:

    - absent: no seed passes the gate, or the lower 95 % bound of the dense mean does not;
    - undecided: fewer than `min_seeds` seeds are left;
    - kept: the 90 % interval of R lies within 1 ± margin, and so does that of R on nats;
    - lost: the upper 95 % bound is below `lost`;
    - degraded: the upper 95 % bound is below 1 − margin;
    - undecided: everything else.

    Parameters
    ----------
    rows : frame with the columns of `labkit.records.ItemRow`, in any order; dense rows have compression "dense".
    margin : replaces ``rule.margin``; the column ``reason`` states the bounds that a verdict was reached with.
    rule : everything else that is fixed beforehand.

    Returns
    -------
    Frame with the columns of `VerdictRow`, rungs by size.

    Raises
    ------
    LabkitError
        Columns missing, values that are not finite, duplicated rows, seeds that score different items, compressed rows
        without the dense rows they are paired with, or an ability with no metric to judge by.
    """
    rule = rule if margin is None else dataclasses.replace(rule, margin=margin)
    cases = list(_cases(_blocks(_complete(rows)), rule))
    verdicts = [_verdict(case, samples, rule) for case, samples in zip(cases, _bootstrap(cases, rule), strict=True)]
    params = rows[rows["compression"] == DENSE].groupby("rung")["params"].min()
    verdicts.sort(key=lambda row: (params[row.rung], row.rung, row.compression, row.sparsity, row.ability))
    return pd.DataFrame([dataclasses.asdict(row) for row in verdicts], columns=columns(VerdictRow))


def _complete(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, if every one is whole."""
    names = list(columns(ItemRow))
    missing = [name for name in names if name not in rows.columns]
    if missing:
        raise LabkitError("rows have every column of ItemRow", f"rows without {', '.join(missing)}", "Add them.")
    numbers = rows[["sparsity", "value", "chance"]].to_numpy(float)
    bad = ~np.isfinite(numbers).all(axis=1) | rows[names].isna().any(axis=1).to_numpy()
    if bad.any():
        raise LabkitError("every row is complete and finite", _name(rows, bad.argmax()), "Measure it again.")
    return rows.assign(sparsity=np.where(rows["compression"] == DENSE, 0.0, rows["sparsity"]))


def _blocks(rows: pd.DataFrame) -> dict[tuple[str, str, str], dict[tuple[str, float], _Block]]:
    """Complete rows as tables: by (rung, ability, metric), then by (compression, sparsity)."""
    if rows.empty:
        return {}
    codes, levels = zip(*(pd.factorize(rows[key], sort=True) for key in _KEYS), strict=True)
    *_, n_seeds, n_items = shape = tuple(map(len, levels))
    place = np.ravel_multi_index(codes, shape)
    order = np.argsort(place)
    place, (value, chance) = place[order], rows[["value", "chance"]].to_numpy(float)[order].T
    twice = np.flatnonzero(place[1:] == place[:-1])
    if twice.size:
        raise LabkitError("an item is scored once", f"two of {_name(rows, order[twice[0]])}", "Drop the duplicates.")
    group, cell = np.divmod(place, n_seeds * n_items)
    edges = np.flatnonzero(np.r_[True, group[1:] != group[:-1], True])
    blocks: dict = {}
    for part in map(slice, edges[:-1], edges[1:]):
        seeds, items = np.divmod(cell[part], n_items)
        seeds, counts = np.unique(seeds, return_counts=True)
        table = (len(seeds), counts[0])
        if (counts != counts[0]).any() or (items.reshape(table) != items[: counts[0]]).any():
            raise LabkitError("every seed scores the same items", _name(rows, order[part][0]), "Score all of them.")
        keys = np.unravel_index(place[part][0], shape)[:-2]
        rung, ability, metric, compression, sparsity = (level[key] for level, key in zip(levels, keys, strict=False))
        seeds, items = np.asarray(levels[-2])[seeds], np.asarray(levels[-1])[items[: counts[0]]]
        block = _Block(seeds, items, value[part].reshape(table), chance[part].reshape(table))
        blocks.setdefault((rung, ability, metric), {})[compression, float(sparsity)] = block
    return blocks


def _name(rows: pd.DataFrame, position: int) -> str:
    return ", ".join(f"{key} {rows[key].iloc[position]}" for key in _KEYS)


def _cases(blocks: dict, rule: Rule) -> Iterator[_Case]:
    for rung, ability in sorted({key[:2] for key in blocks}):
        tables = {metric: blocks[rung, ability, metric] for metric in _BEST if (rung, ability, metric) in blocks}
        metric = next((metric for metric in _PRIMARY if metric in tables), None)
        if metric is None:
            judged = f"an ability is judged by one of {', '.join(_PRIMARY)}"
            raise LabkitError(judged, f"rung {rung}, ability {ability} without", "Evaluate one of them.")
        for condition in sorted({key for table in tables.values() for key in table if key != _DENSE}):
            yield _case(tables, _Group(rung, *condition, ability, metric), rule)


def _case(tables: dict[str, dict], group: _Group, rule: Rule) -> _Case:
    compressed, paired = _paired(tables, group)
    dense = tables[group.metric][_DENSE]
    headroom = _BEST[group.metric] - dense.chance.mean()
    gate, gain = rule.gate * abs(headroom), np.sign(headroom) * (dense.value - dense.chance).mean(axis=1)
    have = dense.seeds[(gain >= gate) & (gain > 0)]
    used = np.intersect1d(have, compressed.seeds)
    gains = np.full((4, len(used), len(compressed.items)), np.nan)
    gains[:2] = np.sign(headroom) * _gains(compressed, paired, used)
    if all(key in tables.get(NLL_NATS, ()) for key in (_DENSE, group.condition)):
        nats, dense_nats = _paired(tables, group._replace(metric=NLL_NATS))
        if not np.array_equal(nats.items, compressed.items):
            raise LabkitError("all metrics of an ability score the same items", str(group), "Score them again.")
        if np.isin(used, nats.seeds).all():
            gains[2:] = -_gains(nats, dense_nats, used)
    shown = used if used.size else compressed.seeds
    paired, compressed = paired.at(shown), compressed.at(shown)
    scores = (float(scores.mean()) for scores in (paired.value, compressed.value, paired.chance))
    return _Case(group, *scores, gains, gate, len(have), len(dense.seeds))


def _paired(tables: dict[str, dict], group: _Group) -> tuple[_Block, _Block]:
    """The compressed scores of a group, and the dense ones of the same seeds and items."""
    compressed, dense = tables[group.metric].get(group.condition), tables[group.metric].get(_DENSE)
    if compressed is None:
        raise LabkitError(f"{group.ability} is judged on one metric", f"no rows for {group}", "Evaluate them.")
    lonely = compressed.seeds if dense is None else np.setdiff1d(compressed.seeds, dense.seeds)
    if lonely.size:
        paired = "compressed rows are paired with dense rows of the same rung and seed"
        raise LabkitError(paired, f"no dense rows for {group}, seed {lonely[0]}", "Evaluate the dense model too.")
    dense = dense.at(compressed.seeds)
    if not np.array_equal(compressed.items, dense.items) or not np.allclose(compressed.chance, dense.chance):
        paired = "compressed and dense models score the same items, at the same chance"
        raise LabkitError(paired, str(group), "Evaluate both with the same n and seed.")
    return compressed, dense


def _gains(compressed: _Block, dense: _Block, seeds: np.ndarray) -> np.ndarray:
    """Scores over chance, compressed then dense: (2, seeds, items)."""
    compressed, dense = compressed.at(seeds), dense.at(seeds)
    return np.stack([compressed.value - dense.chance, dense.value - dense.chance])


def _bootstrap(cases: list[_Case], rule: Rule) -> list[np.ndarray]:
    """Resampled means of every case's gains, each (4, draws). Cases of one shape share their weights."""
    samples: dict[int, np.ndarray] = {}
    for shape in {case.gains.shape for case in cases}:
        members = [number for number, case in enumerate(cases) if case.gains.shape == shape]
        stacked = np.concatenate([cases[number].gains for number in members])
        means = bootstrap_means(stacked, rule.draws, rule.seed).T.reshape(len(members), 4, rule.draws)
        samples.update(zip(members, means, strict=True))
    return [samples[number] for number in range(len(cases))]


def _verdict(case: _Case, samples: np.ndarray, rule: Rule) -> VerdictRow:
    n_seeds, n_items = case.gains.shape[1:]
    if not n_seeds or percentile_interval(samples[1])[0] < case.gate:
        retained = nats = (np.nan,) * 5
        verdict = "absent"
        reason = f"dense score {case.dense:.3g} is not reliably {case.gate:.3g} better than chance {case.chance:.3g}"
    else:
        retained, nats = (_retained(case.gains[i : i + 2], samples[i : i + 2]) for i in (0, 2))
        verdict, reason = _decide(retained, nats, n_seeds, rule)
    if 0 < case.seeds_with < case.seeds_all:
        low, high = jeffreys_interval(case.seeds_with, case.seeds_all)
        reason += f"; {case.seeds_with} of {case.seeds_all} dense seeds have it (95 % interval {low:.2f} to {high:.2f})"
    scores = (case.dense, case.compressed, case.chance)
    counts = (n_seeds, n_items, case.seeds_with, case.seeds_all)
    rung, compression, sparsity, ability, metric = case.group
    return VerdictRow(
        rung, compression, sparsity, ability, metric, *scores, *retained, nats[0], *nats[3:], *counts, verdict, reason
    )


def _retained(gains: np.ndarray, samples: np.ndarray) -> tuple[float, ...]:
    """Retention and its 95 % and 90 % bounds; NaN where the dense gain, even of one draw, is not positive."""
    compressed, dense = gains.mean(axis=(1, 2))
    # A denominator that reaches zero leaves the ratio without bounds: dropping such draws would feign an interval.
    draws = np.divide(samples[0], samples[1], out=np.full(samples.shape[1], np.nan), where=samples[1] > 0)
    bounds = (*percentile_interval(draws, 0.95), *percentile_interval(draws, 0.90))
    return (float(compressed / dense) if dense > 0 else np.nan, *map(float, bounds))


def _decide(retained: tuple[float, ...], nats: tuple[float, ...], n_seeds: int, rule: Rule) -> tuple[str, str]:
    """The rule, for an ability that the dense models have."""
    (_, low, high, *inner), inner_nats = retained, nats[3:]
    if n_seeds < rule.min_seeds:
        alone = ", and one seed gives no interval" if n_seeds == 1 else ""
        return "undecided", f"{n_seeds} of the {rule.min_seeds} seeds the rule asks for{alone}"
    if np.isnan(low):
        return "undecided", "no interval: in some resamples the dense models are at chance"
    band = f"{1 - rule.margin:g} to {1 + rule.margin:g}"
    if _within(inner, rule.margin):
        if _within(inner_nats, rule.margin):
            return "kept", f"90 % intervals {_span(inner)}, and on nats {_span(inner_nats)}, lie within {band}"
        if np.isnan(inner_nats).any():
            return "undecided", f"90 % interval {_span(inner)} lies within {band}, but on nats there is none"
        return "undecided", f"90 % interval {_span(inner)} lies within {band}, but on nats {_span(inner_nats)} does not"
    if high < rule.lost:
        return "lost", f"upper 95 % bound {high:.3f} is below {rule.lost:g}"
    if high < 1 - rule.margin:
        return "degraded", f"upper 95 % bound {high:.3f} is below {1 - rule.margin:g}"
    return "undecided", f"95 % interval {_span((low, high))} neither shows retention of {band} nor excludes it"


def _within(bounds: tuple[float, ...], margin: float) -> bool:
    return 1 - margin <= bounds[0] and bounds[1] <= 1 + margin


def _span(bounds: tuple[float, ...]) -> str:
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}"
