"""From item rows to one score per model: what curves over size are fitted to."""

from __future__ import annotations

import numpy as np
import pandas as pd

from labkit.errors import LabkitError
from labkit.records import BRIER, CHOICE_ACCURACY, EXACT_MATCH, NLL_NATS, TOKEN_ACCURACY

BEST = {EXACT_MATCH: 1.0, TOKEN_ACCURACY: 1.0, CHOICE_ACCURACY: 1.0, NLL_NATS: 0.0, BRIER: 0.0}
"""The score of a perfect model, by metric."""

PRIMARY = (EXACT_MATCH, TOKEN_ACCURACY, CHOICE_ACCURACY, NLL_NATS)
"""An ability is judged on the first of these that it has."""

MODEL = ["rung", "seed", "compression", "sparsity"]
"""The columns that tell one measured model from another."""

_KEYS = [*MODEL, "ability", "metric"]


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
    and chance (means over items, in the metric's unit), n_items, and gain = (value − chance) / (best − chance): 0 for a
    guesser, 1 for a perfect model, whichever way the metric points.

    Raises
    ------
    LabkitError
        Columns missing, no rows, a value that is not finite, an item that is scored twice, a metric without headroom.
    """
    needed = [*_KEYS, "params", "item", "value", "chance"]
    missing = [name for name in needed if name not in rows]
    if missing:
        raise LabkitError("rows have the columns of ItemRow", f"rows without {', '.join(missing)}", "Add them.")
    rows = judged(rows)
    if rows.empty:
        raise LabkitError("scores are means over rows", "no rows", "Evaluate some models first.")
    bad = ~np.isfinite(rows[["params", "sparsity", "value", "chance"]].to_numpy(float)).all(axis=1)
    if bad.any():
        raise LabkitError("every score is finite", _name(rows, bad.argmax()), "Measure it again.")
    codes, _ = zip(*(pd.factorize(rows[key]) for key in [*_KEYS, "item"]), strict=True)
    place = np.ravel_multi_index(codes, [code.max() + 1 for code in codes])
    order = np.argsort(place, kind="stable")
    twice = np.flatnonzero(place[order][1:] == place[order][:-1])
    if twice.size:
        raise LabkitError("an item is scored once", f"two of {_name(rows, order[twice[0]])}", "Drop the duplicates.")
    groups = rows.groupby(_KEYS, observed=True, sort=True)
    means = groups[["params", "value", "chance"]].mean().assign(n_items=groups.size()).reset_index()
    means = means.astype({"rung": str, "compression": str, "ability": str, "metric": str})
    headroom = means["metric"].map(BEST) - means["chance"]
    if (headroom == 0).any() or headroom.isna().any():
        first = means[(headroom == 0) | headroom.isna()].iloc[0]
        known = f"chance lies below a perfect score, in one of {', '.join(BEST)}"
        raise LabkitError(known, f"{first['ability']}, {first['metric']}", "Leave it out.")
    return means.assign(gain=(means["value"] - means["chance"]) / headroom)


def primary(means: pd.DataFrame) -> pd.DataFrame:
    """Of what `scores` returns, each ability in the first of `PRIMARY` that it has."""
    rank = means["metric"].map({metric: place for place, metric in enumerate(PRIMARY)})
    return means[rank.notna() & (rank == rank.groupby(means["ability"]).transform("min"))]


def _name(rows: pd.DataFrame, position: int) -> str:
    return ", ".join(f"{key} {rows[key].iloc[position]}" for key in [*_KEYS, "item"])
