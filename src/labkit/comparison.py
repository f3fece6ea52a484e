"""Two models on the same items: by how much do they differ, and is it more than noise?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from labkit.errors import LabkitError, warn
from labkit.pairing import UNIT
from labkit.scores import BEST, judged, need, primary
from labkit.statistics import Spread, benjamini_hochberg, mean_interval, p_value

_SCORES = ("ability", "metric", "n_seeds", "n_items", "a", "b", "difference")
COLUMNS = (*_SCORES, "low", "high", "p", "p_adjusted", "beyond_noise")
"""Columns of a comparison. Scores are in the metric's unit; ``n_items`` counts the items of one seed."""

ANSWERS = ("more", "as much", "less", "undecided")
"""What one side has beside another."""

SIDES = (*ANSWERS, "neither")
"""Every value of the column ``answer``, of `has_more`."""

CONDITION = ("rung", "compression", "sparsity")
"""What two stores are matched by, in `compare_conditions`."""

_KEYS = ("ability", "metric", "item")
_PAIRED = ("ability", "metric", "seed", "item")


def compare(rows_a: pd.DataFrame, rows_b: pd.DataFrame) -> pd.DataFrame:
    """Item-paired comparison of two models, or of two runs over the same training seeds.

    The difference is b − a, in each item. Its 95 % interval (`labkit.statistics.mean_interval`) is for new items, and
    if both sides have the same two or more training seeds, for new seeds and new items. With one training seed the
    interval speaks of these two models on other items, not of models trained with other seeds.

    Parameters
    ----------
    rows_a, rows_b : frames of `labkit.evaluate` or of a store: columns ability, metric, item, value, and where there
        are several training seeds, seed. Where both have ``chance``, it has to agree.

    Returns
    -------
    One row per (ability, metric), in the order of `rows_a`, with the columns of `COLUMNS`. ``beyond_noise`` says that
    the interval excludes 0, which one in twenty does by chance where nothing differs; one item has no interval (NaN).
    ``p`` is that of no difference; ``p_adjusted`` is p after Benjamini and Hochberg over all rows of the frame: among
    those below .05, one in twenty is expected to be by chance.

    Raises
    ------
    LabkitError
        Columns missing, no rows, values that are not finite, an item scored twice, items or seeds that only one side
        has, chance that differs.
    """
    a, b = (_scores(rows, side) for rows, side in ((rows_a, "the first"), (rows_b, "the second")))
    _same_seeds(a, b)
    absent = a.index.difference(b.index), b.index.difference(a.index)
    for missing, side in zip(absent, ("the second", "the first"), strict=True):
        if len(missing):
            raise LabkitError("both sides score the same items", f"{side} without {_name(missing[0])}", "Score all.")
    b = b.reindex(a.index)
    if not np.allclose(a["chance"], b["chance"], equal_nan=True):
        first = _name(a.index[np.argmin(np.isclose(a["chance"], b["chance"], equal_nan=True))])
        raise LabkitError("both sides score the same items, at the same chance", first, "Evaluate with one n and seed.")
    paired = pd.DataFrame({"a": a["value"], "b": b["value"]})
    groups = {key: _table(group) for key, group in paired.groupby(level=["ability", "metric"], sort=False)}
    rows = []
    for key, pair in groups.items():
        means = [float(side.mean()) for side in pair]
        bounds, p = _noise(pair[1] - pair[0], UNIT.get(key[1], 0.0))
        beyond = bool(bounds[0] > 0 or bounds[1] < 0)
        rows.append((*key, *pair[0].shape, *means, means[1] - means[0], *map(float, bounds), p, np.nan, beyond))
    return _adjusted(pd.DataFrame(rows, columns=list(COLUMNS)))


def has_more(
    rows_a: pd.DataFrame, rows_b: pd.DataFrame, margin: float = 0.05, min_seeds: int = 5, gate: float = 0.20
) -> pd.DataFrame:
    """Has the second side more of each ability than the first? `compare`, in the metric that an ability is judged by.

    **neither**: on both sides the mean score is less than ``gate`` of the way from chance to perfect, so that there is
    nothing to have more of; **as much**: the 95 % interval of the difference lies within ± `margin`; **more**, **less**:
    it does not, and excludes 0 (in nats, less is more); **undecided**: all else, and fewer than `min_seeds` training
    seeds.

    Parameters
    ----------
    rows_a, rows_b : as for `compare`, with ``chance``.
    margin : a difference in the metric's unit that does not matter, > 0.
    min_seeds : seeds without which nothing is decided.
    gate : as in `labkit.verdict.Rule`.

    Returns
    -------
    One row per ability, sorted: the columns of `COLUMNS`, with p adjusted over these rows, and ``answer``.

    Raises LabkitError for a margin that is not positive, a gate outside (0, 1), and as `compare` does.
    """
    if not margin > 0:
        raise LabkitError("a margin is positive", margin, "Give a difference that does not matter, e.g. 0.05.")
    if not 0 < gate < 1:
        raise LabkitError("gate lies in (0, 1)", gate, "Give a fraction, e.g. 0.2.")
    for rows in (rows_a, rows_b):
        need(rows, ("metric", "chance"))
    frame = _adjusted(primary(compare(judged(rows_a), judged(rows_b))).sort_values("ability", ignore_index=True))
    sign = np.where(frame["metric"].map(BEST) == 0, -1, 1)
    low, high = np.sort([sign * frame["low"], sign * frame["high"]], axis=0)
    chance = judged(rows_a).groupby(["ability", "metric"], observed=True)["chance"].mean()
    chance = chance.reindex(pd.MultiIndex.from_frame(frame[["ability", "metric"]])).to_numpy()
    best = frame["metric"].map(BEST)
    gains = [(frame[side] - chance) / (best - chance) for side in ("a", "b")]
    lacking = np.maximum(*gains) < gate
    cases = [frame["n_seeds"] < min_seeds, lacking, (-margin < low) & (high < margin), low > 0, high < 0]
    return frame.assign(answer=np.select(cases, ["undecided", "neither", "as much", "more", "less"], "undecided"))


def compare_conditions(rows_a: pd.DataFrame, rows_b: pd.DataFrame) -> pd.DataFrame:
    """`compare` in every (rung, compression, sparsity) that both sides have: its rows, with those columns in front.

    Of each ability and metric the items that both have are compared, e.g. the first 200 of 500; a warning says how many
    others were left aside. ``p_adjusted`` is over all rows of the frame.

    Raises LabkitError as `compare` does, and where the two have nothing in common.
    """
    for rows in (rows_a, rows_b):
        need(rows, (*CONDITION, *_KEYS, "params"), numbers=("sparsity", "params"))
    rows_a, rows_b = _shared(rows_a, rows_b)
    sides = [dict(list(rows.groupby(list(CONDITION), observed=True))) for rows in (rows_a, rows_b)]
    common = [key for key in sides[0] if key in sides[1]]
    if not common:
        received = " and ".join("; ".join(" ".join(map(str, key)) for key in side) or "no rows" for side in sides)
        raise LabkitError("two stores share a rung and compression", received, "Run the same study on both.")
    size = rows_a.groupby("rung", observed=True)["params"].max()  # a compression may remove parameters: the parent's
    frames = []
    for key in sorted(common, key=lambda key: (size[key[0]], key)):
        frame = compare(sides[0][key], sides[1][key])
        frames.append(frame.assign(**dict(zip(CONDITION, key, strict=True)))[[*CONDITION, *COLUMNS]])
    return _adjusted(pd.concat(frames, ignore_index=True))


def _shared(*sides: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of items that both sides have scored, under whatever condition; warns of others."""
    keys = [pd.MultiIndex.from_frame(rows[list(_KEYS)].astype({"ability": str, "metric": str})) for rows in sides]
    kept = [mine.isin(other) for mine, other in zip(keys, reversed(keys), strict=True)]
    if not kept[0].any():
        received = " and ".join(", ".join(sorted(set(mine.get_level_values("ability")))) or "no rows" for mine in keys)
        raise LabkitError("two stores share some items", received, "Run studies with an ability in common.")
    if not all(keep.all() for keep in kept):
        a, b = (len(mine.unique()) for mine in keys)
        both = len(keys[0][kept[0]].unique())
        message = f"of {a:,} and {b:,} items (each ability and metric counted), the {both:,} that both have are compared"
        warn(message)
    return [rows[keep] for rows, keep in zip(sides, kept, strict=True)]


def _scores(rows: pd.DataFrame, side: str) -> pd.DataFrame:
    """Value and chance, by ability, metric, seed and item."""
    need(rows, (*_KEYS, "value"), numbers=("value",))  # items may have names
    if rows.empty:
        raise LabkitError("a comparison needs rows on both sides", f"{side} without rows", "Evaluate it first.")
    seed = rows["seed"] if "seed" in rows else np.zeros(len(rows), int)
    index = pd.MultiIndex.from_arrays(
        [np.asarray(seed if key == "seed" else rows[key]) for key in _PAIRED], names=_PAIRED
    )
    chance = rows["chance"] if "chance" in rows else np.nan
    scores = pd.DataFrame({"value": rows["value"], "chance": chance}).set_axis(index).astype(float)
    bad = ~np.isfinite(scores["value"].to_numpy()) | rows[list(_KEYS)].isna().any(axis=1).to_numpy()
    if bad.any():
        raise LabkitError("every value is finite", f"{side}: {_name(index[bad.argmax()])}", "Measure it again.")
    twice = index.duplicated()
    if twice.any():
        remedy = "Select one rung and one compression, and drop repeated rows."
        raise LabkitError("an item is scored once", f"{side}, twice: {_name(index[twice.argmax()])}", remedy)
    return scores


def _same_seeds(a: pd.DataFrame, b: pd.DataFrame) -> None:
    """Refuse seeds that do not pair; where each side has one, whichever it is, they are the pair."""
    seeds = [sorted(set(side.index.get_level_values("seed"))) for side in (a, b)]
    if all(len(each) == 1 for each in seeds):
        for side in (a, b):
            side.index = side.index.set_levels([0], level="seed")
    elif seeds[0] != seeds[1]:
        received = " and ".join(", ".join(map(str, each)) for each in seeds)
        raise LabkitError("both sides have the same training seeds, or one each", received, "Select those in common.")


def _table(group: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the two sides, each (seeds, items)."""
    wide = group.droplevel(["ability", "metric"]).unstack("item")
    if wide.isna().to_numpy().any():
        raise LabkitError("every seed scores the same items", _name(group.index[0]), "Score all of them.")
    return wide["a"].to_numpy(), wide["b"].to_numpy()


def _noise(differences: np.ndarray, unit: float) -> tuple[np.ndarray, float]:
    """95 % bounds and p of the mean of a (seeds, items) table of differences."""
    # One seed says nothing about others: its items take the place of seeds, each with a single value.
    table = differences.T if differences.shape[0] == 1 else differences
    spread = Spread.of(table[None])
    return mean_interval(spread, [1.0], unit=unit), float(p_value(spread, [1.0], unit))


def _adjusted(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(p_adjusted=benjamini_hochberg(frame["p"]))


def _name(key: tuple) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(_PAIRED, key, strict=True))
