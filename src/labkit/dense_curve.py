"""The dense ladder as curves, with its seeds resampled: what a compressed model's size is read off."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from labkit import curves
from labkit.errors import LabkitError
from labkit.records import DENSE
from labkit.scores import need, same_items, scores

CONDITION = ["rung", "compression", "sparsity"]
"""What was done to which rung."""


@dataclasses.dataclass(frozen=True)
class Ladder:
    """Gains as arrays, ready to be resampled: one (seeds,) array per rung, ability and condition."""

    x: np.ndarray  # log10 parameters of the dense rungs, ascending
    rungs: tuple[str, ...]
    seeds: dict[str, np.ndarray]  # rung -> its dense seeds
    gains: dict[tuple, np.ndarray]  # (rung, compression, sparsity, ability) -> gain per dense seed, NaN where missing


class Draws:
    """Positions of resampled seeds, the same for every ability; draw 0 is the data as they are."""

    def __init__(self, means: pd.DataFrame, draws: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.count = draws + 1
        self.at: dict[str, np.ndarray] = {}
        for rung, group in means[means["compression"] == DENSE].groupby("rung"):
            n = group["seed"].nunique()
            self.at[rung] = np.vstack([np.arange(n), generator.integers(n, size=(draws, n))])

    def means(self, rung: str, gains: np.ndarray, use: np.ndarray | None = None) -> np.ndarray:
        """Mean gain per draw over the seeds that have one (and are used): (draws + 1,); NaN where none was drawn."""
        picked = gains if use is None else np.where(use, gains, np.nan)
        picked = picked[self.at[rung]]
        known = ~np.isnan(picked)
        total = np.where(known, picked, 0).sum(axis=1)
        return np.divide(total, known.sum(axis=1), out=np.full(len(picked), np.nan), where=known.any(axis=1))


def paired_scores(dense: pd.DataFrame, compressed: pd.DataFrame) -> pd.DataFrame:
    """`labkit.scores.scores` of the dense rows of one frame and the others of another, if every one has its parent."""
    for rows in (dense, compressed):
        need(rows, ["compression"])
    dense, compressed = dense[dense["compression"] == DENSE], compressed[compressed["compression"] != DENSE]
    means = scores(pd.concat([dense.assign(sparsity=0.0), compressed], ignore_index=True))
    rungs = means.loc[means["compression"] == DENSE, "rung"].nunique()
    if rungs < 2:
        raise LabkitError("a dense curve has at least two rungs", f"{rungs}", "Evaluate more of the dense ladder.")
    parents = pd.MultiIndex.from_frame(means.loc[means["compression"] == DENSE, ["rung", "seed", "ability", "metric"]])
    others = means[means["compression"] != DENSE]
    lonely = ~pd.MultiIndex.from_frame(others[["rung", "seed", "ability", "metric"]]).isin(parents)
    if lonely.any():
        row = others[lonely].iloc[0]
        received = f"rung {row['rung']}, seed {row['seed']}, {row['ability']}, {row['metric']} without"
        raise LabkitError("a compressed model has its dense parent's rows", received, "Evaluate the dense model too.")
    same_items(means)
    return means


def arranged(means: pd.DataFrame, seeds: dict[str, np.ndarray] | None = None) -> Ladder:
    """Scores of one metric per ability as a `Ladder`, with the seeds of another where both are resampled together."""
    dense = means[means["compression"] == DENSE]
    params = dense.groupby("rung")["params"].max().sort_values()
    seeds = seeds or {rung: np.sort(group["seed"].unique()) for rung, group in dense.groupby("rung")}
    gains = {}
    for key, group in means.groupby([*CONDITION, "ability"]):
        gains[key] = group.set_index("seed")["gain"].reindex(seeds[key[0]]).to_numpy()
    return Ladder(np.log10(params.to_numpy(float)), tuple(params.index), seeds, gains)


def conditions(means: pd.DataFrame) -> dict[tuple, dict[str, int]]:
    """(rung, compression, sparsity) -> seeds of each ability, rungs by size."""
    size = means[means["compression"] == DENSE].groupby("rung")["params"].max()
    others = means[means["compression"] != DENSE]
    counts = {key: group.groupby("ability")["seed"].nunique().to_dict() for key, group in others.groupby(CONDITION)}
    return {key: counts[key] for key in sorted(counts, key=lambda key: (size[key[0]], key))}


def dense_curve(ladder: Ladder, draws: Draws, ability: str) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and never-falling mean gains of an ability on the dense ladder: (rungs,), (draws + 1, rungs)."""
    rungs = [rung for rung in ladder.rungs if (rung, DENSE, 0.0, ability) in ladder.gains]
    x = ladder.x[[ladder.rungs.index(rung) for rung in rungs]]
    weights = [len(ladder.seeds[rung]) for rung in rungs]
    raw = np.column_stack([draws.means(rung, ladder.gains[rung, DENSE, 0.0, ability]) for rung in rungs])
    return x, curves.rising(raw, weights)


def sizes(
    ladder: Ladder, draws: Draws, key: tuple, x: np.ndarray, curve: np.ndarray, resolution: float
) -> tuple[np.ndarray, np.ndarray]:
    """Log10 size with the gain of `key`, and on which side of the ladder it lies, per draw."""
    parent = ladder.x[ladder.rungs.index(key[0])]
    level = draws.means(key[0], ladder.gains[key])
    own = draws.means(key[0], ladder.gains[key[0], DENSE, 0.0, key[3]], ~np.isnan(ladder.gains[key]))
    size, side = curves.read_off(level, x, curve, parent)
    as_able = abs(level - own) <= resolution  # as its own parents, wherever the smoothed curve passes
    return np.where(as_able, parent, size), np.where(as_able, 0, side)
