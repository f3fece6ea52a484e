"""From rows of ablated, patched and looked-into models to estimates with intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd

from labkit.errors import LabkitError, unknown
from labkit.inside.sites import Part
from labkit.pairing import BEST, UNIT
from labkit.statistics import Spread, mean_interval, ratio_interval

INTACT, DONOR = "none", "everything"
"""Values of ``part`` in rows: the model with nothing replaced, and the model that activations are taken from."""


def effects(rows: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """What replacing each part did, with intervals.

    Parameters
    ----------
    rows
        Of `ablate` or `patch`; of several models with a column ``seed``, all with the same parts and items. A head's
        number means nothing across models: give it a name that does, such as "induction head".

    Returns
    -------
    One row per (part, ability, metric), `INTACT` left out: the mean ``value``, beside that of ``intact``; the mean
    ``change`` with ``low`` and ``high``; and ``share`` with ``share_low`` and ``share_high``: after `ablate` what is
    left, (value − chance) / (intact − chance), after `patch` what came back, (value − intact) / (donor − intact). A
    share is NaN where the denominator is not told from zero. Intervals are paired, and for new items (of one model: t
    over its ``n_items``) or for new seeds and items (of ``n_seeds``); ``resampled`` says which.

    Raises
    ------
    LabkitError
        Rows without `INTACT`; models or parts that were not scored on the same items.
    """
    found = []
    for (ability, metric), group in rows.groupby(["ability", "metric"], sort=False, observed=True):
        values = _tables(group, f"{ability}, {metric}")
        if INTACT not in values:
            remedy = "Keep the rows of the model as it is."
            raise LabkitError(f"effects are told from rows of part {INTACT!r}", ", ".join(values), remedy)
        sign, unit = (1 if BEST.get(metric, 1) else -1), UNIT.get(metric, 0.0)
        intact = values.pop(INTACT)
        chance = _tables(group[group["part"] == INTACT], "chance", "chance")[INTACT]
        floor, ceiling = (intact, values[DONOR]) if DONOR in values else (chance, intact)
        value = np.stack(list(values.values()))  # (parts, seeds, items)
        change = _means(value - intact, level, unit)
        share = _ratios(sign * (value - floor), sign * (ceiling - floor), level, unit)
        columns = {"intact": intact.mean(), **dict(zip(("change", "low", "high"), change, strict=True))}
        columns |= dict(zip(("share", "share_low", "share_high"), share, strict=True))
        known = {"part": list(values), "ability": ability, "metric": metric, "value": value.mean(axis=(1, 2))}
        found.append(pd.DataFrame({**known, **columns, **_sizes(value)}))
    places = rows.groupby("part", sort=False)[["layer", "head"]]
    places = places.agg(lambda x: x.iloc[0] if x.nunique(dropna=False) == 1 else pd.NA)
    return places.astype("Int64").reset_index().merge(pd.concat(found), on="part")


def earliest(effects: pd.DataFrame, least: float = 0.5) -> pd.DataFrame:
    """From where on the damage is mended: the first part whose patch surely brings back enough of each ability.

    Parameters
    ----------
    effects
        What `effects` makes of the rows of `patch`, with `DONOR`. "First" is first in these rows, so they should hold
        parts in the order in which a model computes them, such as ``parts(model, "attention", "mlp")``.
    least
        Share of the loss that the interval's lower end has to reach, in (0, 1).

    Returns
    -------
    One row per (ability, metric): ``broken``, the mean score with nothing replaced, and ``donor``, that of the donor;
    the ``part`` with its ``share``, ``share_low``, ``share_high``; ``n_seeds``; ``outcome``: *mended* there, *nothing
    lost* (the donor is not surely better, so there is nothing to bring back), or *by no part*.

    Raises
    ------
    LabkitError
        Effects without `DONOR`; ``least`` out of range.
    """
    if not 0 < least < 1:
        raise LabkitError("least is a share of what was lost, in (0, 1)", least, "Give e.g. 0.5.")
    found = []
    for (ability, metric), group in effects.groupby(["ability", "metric"], sort=False, observed=True):
        donor = group[group["part"] == DONOR]
        if donor.empty:
            received = ", ".join(group["part"])
            raise LabkitError(f"damage is mended by a donor, part {DONOR!r}", received, "Take effects of a patch.")
        better = (donor["low"] > 0 if BEST.get(metric, 1) else donor["high"] < 0).item()
        able = group[(group["part"] != DONOR) & (group["share_low"] >= least)] if better else group[:0]
        told = {"ability": ability, "metric": metric, "broken": donor["intact"].item(), "donor": donor["value"].item()}
        first = able.iloc[0] if len(able) else pd.Series({"part": ""}, dtype=object)
        told |= {name: first.get(name, np.nan) for name in ("part", "share", "share_low", "share_high")}
        outcome = "mended" if len(able) else "by no part" if better else "nothing lost"
        found.append({**told, "n_seeds": donor["n_seeds"].item(), "outcome": outcome})
    return pd.DataFrame(found)


def looks(rows: pd.DataFrame, before: pd.DataFrame | None = None, level: float = 0.95) -> pd.DataFrame:
    """Mean of each head's scores, with intervals; with ``before`` also how far they moved from there, paired.

    Parameters
    ----------
    rows, before
        Of `head_scores`, on the same sequences; of several models with a column ``seed``, as for `effects`.

    Returns
    -------
    One row per (part, score): ``value`` with ``low`` and ``high``; with ``before`` also the ``change`` with
    ``change_low`` and ``change_high``; ``even``; ``n_seeds``, ``n_items`` (sequences) and ``resampled``.

    Raises
    ------
    LabkitError
        Heads, models or ``before`` that were not scored on the same sequences.
    """
    found = []
    for score, group in rows.groupby("score", sort=False):
        values = _tables(group, score)
        value = np.stack(list(values.values()))  # (heads, seeds, sequences)
        middle, low, high = _means(value, level, 0.0)
        columns = {"value": middle, "low": np.maximum(low, 0), "high": np.minimum(high, 1)}
        if before is not None:
            earlier = before[before["score"] == score]
            others = _tables(earlier, score) if len(earlier) else {}
            if others.keys() != values.keys() or _cells(earlier) != _cells(group):
                received = f"{score}: {_spoken(values)} and {_spoken(others) if others else 'none'}, or other ones"
                rule = "scores are compared on the same heads, seeds and sequences"
                raise LabkitError(rule, received, "Score both models on the same tokens.")
            change = _means(value - np.stack([others[part] for part in values]), level, 0.0)
            columns |= dict(zip(("change", "change_low", "change_high"), change, strict=True))
        known = {"part": list(values), "score": score}
        found.append(pd.DataFrame({**known, **columns, "even": group["even"].mean(), **_sizes(value)}))
    return pd.concat(found, ignore_index=True)


def ranking(rows: pd.DataFrame, score: str) -> dict[Part, float]:
    """Head -> mean of a score in the rows of `head_scores` of one model, highest first, of equals in the model's order.

    Raises LabkitError for a score that the rows lack.
    """
    means = rows[rows["score"] == score].groupby(["layer", "head"])["value"].mean()
    if means.empty:
        raise unknown("score of heads", score, rows["score"].unique())
    means = means.sort_values(ascending=False, kind="stable")
    return {Part("head", int(layer), int(head)): float(value) for (layer, head), value in means.items()}


def _tables(rows: pd.DataFrame, what: str, column: str = "value") -> dict[str, np.ndarray]:
    """Part -> (seeds, items), in the order of the rows; without a column ``seed`` there is one."""
    rows = rows if "seed" in rows else rows.assign(seed=0)
    seeds, items = rows["seed"].nunique(), rows["item"].nunique()
    cells = rows.set_index(["part", "seed", "item"])[column]
    if cells.index.has_duplicates or len(rows) != rows["part"].nunique() * seeds * items:
        received = f"{len(rows)} rows of {what}: {rows['part'].nunique()} parts, {seeds} seeds, {items} items"
        rule = "every part of every seed is scored once on the same items"
        raise LabkitError(rule, received, "Use the same parts, n and seed for all, and tell models apart by seed.")
    wide = cells.unstack(["seed", "item"]).sort_index(axis=1).astype(float)
    return {part: wide.loc[part].to_numpy().reshape(seeds, items) for part in rows["part"].unique()}


def _cells(rows: pd.DataFrame) -> set[tuple[int, int]]:
    """(seed, item) of all rows."""
    return set(zip(rows["seed"] if "seed" in rows else np.zeros(len(rows), int), rows["item"], strict=True))


def _spoken(tables: dict[str, np.ndarray]) -> str:
    seeds, items = next(iter(tables.values())).shape
    return f"{len(tables)} heads of {seeds} seeds on {items} sequences"


def _units(values: np.ndarray) -> np.ndarray:
    """(..., seeds, items) for `Spread`; of one seed the items are what another sample would draw anew."""
    return values.swapaxes(-1, -2) if values.shape[-2] == 1 else values


def _sizes(values: np.ndarray) -> dict[str, int | str]:
    _, seeds, items = values.shape
    return {"n_seeds": seeds, "n_items": items, "resampled": "items" if seeds == 1 else "seeds and items"}


def _means(values: np.ndarray, level: float, unit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, low and high, (parts,) each, of (parts, seeds, items)."""
    spread = Spread.of(_units(values[:, None]))
    return values.mean(axis=(1, 2)), *mean_interval(spread, [1], level, unit)


def _ratios(over: np.ndarray, under: np.ndarray, level: float, unit: float) -> tuple[np.ndarray, ...]:
    """The same of ratios of means: ``over`` (parts, seeds, items), ``under`` (seeds, items)."""
    spread = Spread.of(_units(np.stack([over, np.broadcast_to(under, over.shape)], axis=1)))
    low, high = ratio_interval(spread, [1, 0], [0, 1], level, unit)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = over.mean(axis=(1, 2)) / under.mean()
    return np.where(np.isnan(low), np.nan, ratio), low, high
