"""From item rows to one score per model: what curves over size are fitted to."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Number

import numpy as np
import pandas as pd

from labkit.errors import LabkitError
from labkit.records import BRIER, CHOICE_ACCURACY, DENSE, EXACT_MATCH, NLL_NATS, TOKEN_ACCURACY

BEST = {EXACT_MATCH: 1.0, TOKEN_ACCURACY: 1.0, CHOICE_ACCURACY: 1.0, NLL_NATS: 0.0, BRIER: 0.0}
"""The score of a perfect model, by metric."""

PRIMARY = (EXACT_MATCH, TOKEN_ACCURACY, CHOICE_ACCURACY, NLL_NATS)
"""An ability is judged on the first of these that it has."""

MODEL = ["rung", "seed", "compression", "sparsity"]
"""The columns that tell one measured model from another."""

_KEYS = [*MODEL, "ability", "metric"]

NUMBERS = ("params", "seed", "sparsity", "item", "value", "chance")
"""Columns that hold numbers."""


def need(rows: pd.DataFrame, names: Iterable[str], numbers: Iterable[str] = NUMBERS) -> None:
    """Raise LabkitError unless rows have these columns of `labkit.records.ItemRow`, and numbers in those of ``numbers``."""
    missing = [name for name in names if name not in rows]
    if missing:
        raise LabkitError("rows have the columns of ItemRow", f"rows without {', '.join(missing)}", "Add them.")
    for name in (name for name in numbers if name in names and len(rows)):
        if pd.api.types.is_numeric_dtype(rows[name]):
            continue
        # Numbers among objects will do, and what nothing is computed of may be a category.
        wrong = ~rows[name].astype(object).map(lambda value: value is None or isinstance(value, Number)).to_numpy(bool)
        if isinstance(rows[name].dtype, pd.CategoricalDtype) and name not in ("seed", "item"):
            wrong[:] = True
        if wrong.any():
            remedy = "Convert it, e.g. with astype(float)."
            raise LabkitError(f"the column {name} holds numbers", rows[name][wrong].iloc[0], remedy)


def judged(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows without those of metrics that were asked in addition: these have no chance level, and judge no ability."""
    return rows[rows["metric"].isin(BEST) | rows["chance"].notna()]


def scores(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per model, ability and metric.

    Parameters
    ----------
    rows : frame with the columns of `labkit.records.ItemRow`, in any order; what is not `judged` is passed over.

    Returns
    -------
    Frame with the columns rung, seed, compression, sparsity, ability, metric, then params (of the model itself), value
    and chance (means over items, in the metric's unit), n_items, items (a number that tells which they are), and
    gain = (value − chance) / (best − chance): 0 for a guesser, 1 for a perfect model, whichever way the metric points.

    Raises
    ------
    LabkitError
        Columns missing, no rows, a value that is not finite, an item that is scored twice, a metric without headroom.
    """
    need(rows, [*_KEYS, "params", "item", "value", "chance"])
    rows = judged(rows)
    if rows.empty:
        raise LabkitError("scores are means over rows", "no rows", "Evaluate some models first.")
    bad = ~np.isfinite(rows[["params", "sparsity", "value", "chance"]].to_numpy(float)).all(axis=1)
    if bad.any():
        raise LabkitError("every score is finite", _name(rows, bad.argmax()), "Measure it again.")
    unnamed = rows[[*_KEYS, "item"]].isna().any(axis=1).to_numpy()
    if unnamed.any():
        raise LabkitError("every row tells what was scored", _name(rows, unnamed.argmax()), "Measure it again.")
    codes, _ = zip(*(pd.factorize(rows[key]) for key in [*_KEYS, "item"]), strict=True)
    place = np.ravel_multi_index(codes, [code.max() + 1 for code in codes])
    order = np.argsort(place, kind="stable")
    twice = np.flatnonzero(place[order][1:] == place[order][:-1])
    if twice.size:
        raise LabkitError("an item is scored once", f"two of {_name(rows, order[twice[0]])}", "Drop the duplicates.")
    rows = rows.assign(items=pd.util.hash_array(rows["item"].to_numpy(float)))
    groups = rows.groupby(_KEYS, observed=True, sort=True)
    means = groups[["params", "value", "chance"]].mean().assign(n_items=groups.size(), items=groups["items"].sum())
    means = means.reset_index()
    means = means.astype({"rung": str, "compression": str, "ability": str, "metric": str})
    headroom = means["metric"].map(BEST) - means["chance"]
    if (headroom == 0).any() or headroom.isna().any():
        first = means[(headroom == 0) | headroom.isna()].iloc[0]
        known = f"chance lies below a perfect score, in one of {', '.join(BEST)}"
        raise LabkitError(known, f"{first['ability']}, {first['metric']}", "Leave it out.")
    return means.assign(gain=(means["value"] - means["chance"]) / headroom)


def same_items(means: pd.DataFrame) -> None:
    """Raise LabkitError unless compressed models have scored the items of their dense parents: of what `scores` returns."""
    keys = ["rung", "seed", "ability", "metric"]
    dense, others = (means[(means["compression"] == DENSE) == own] for own in (True, False))
    both = others.merge(dense[[*keys, "items"]], on=keys, suffixes=("", "_dense"))
    differ = both[both["items"] != both["items_dense"]]
    if len(differ):
        received = ", ".join(f"{key} {differ[key].iloc[0]}" for key in _KEYS)
        remedy = "Score all with one n and seed, or pool the frames of their studies (labkit.pairing.pooled)."
        raise LabkitError("compressed and dense models score the same items", received, remedy)


def primary(means: pd.DataFrame) -> pd.DataFrame:
    """Of what `scores` returns, each ability in the first of `PRIMARY` that it has."""
    rank = means["metric"].map({metric: place for place, metric in enumerate(PRIMARY)})
    return means[rank.notna() & (rank == rank.groupby(means["ability"]).transform("min"))]


def _name(rows: pd.DataFrame, position: int) -> str:
    return ", ".join(f"{key} {rows[key].iloc[position]}" for key in [*_KEYS, "item"])
