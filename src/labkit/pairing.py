"""Rows as tables: complete, each item once, the same items for every seed, and compressed beside dense."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import pandas as pd

from labkit.errors import LabkitError
from labkit.records import DENSE, ItemRow, columns
from labkit.scores import BEST, PRIMARY, judged, need

UNIT = BEST  # accuracies go from 0 to 1; what is best at 0 has no end that sums would be bounded by
"""How much one item's score changes at most, where it has an end: `unit` of `labkit.statistics.mean_interval`."""

ROUNDING = 1e-4
"""How far the same model's score of an item may differ: sums in float32 depend on the number of threads."""

UNCOMPRESSED = (DENSE, 0.0)
"""Compression and sparsity of dense rows: one condition, whatever few zeros training left in them."""

_KEYS = ("rung", "ability", "metric", "compression", "sparsity", "seed", "item")


class Group(NamedTuple):
    """What is judged at once: one ability of one compressed rung in one metric."""

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
class Block:
    """Scores of one metric under one compression: a full (seeds, items) table."""

    seeds: np.ndarray  # (seeds,)
    items: np.ndarray  # (items,)
    value: np.ndarray  # (seeds, items)
    chance: np.ndarray  # (seeds, items)

    def at(self, seeds: np.ndarray) -> Block:
        rows = np.searchsorted(self.seeds, seeds)
        return Block(seeds, self.items, self.value[rows], self.chance[rows])


Tables = dict[str, dict[tuple[str, float], Block]]
"""One ability of one rung: by metric, then by (compression, sparsity)."""


def pooled(*studies: pd.DataFrame) -> pd.DataFrame:
    """Rows of several studies of the same dense models as one frame, in which every pair is still a pair.

    An ability of a model that several studies scored counts once. Of an ability and metric only those items stay that
    all studies with it have scored (and none of what is not `labkit.scores.judged`), since a dense model of one study
    may be paired with a compressed one of another.

    Parameters
    ----------
    studies : frames with the columns of `labkit.records.ItemRow`.

    Raises
    ------
    LabkitError
        Columns missing, values that are not finite, no study; studies that score the same item of the same model
        differently, so that it is not the same model.
    """
    if not studies:
        raise LabkitError("a pool holds at least one study", "none", "Give the frames of their stores.")
    studies = tuple(map(_whole, studies))
    kind = ["ability", "metric"]
    model = ["rung", "seed", "compression", "sparsity", *kind]
    frames = [rows.assign(sparsity=rows["sparsity"].where(rows["compression"] != DENSE, 0.0)) for rows in studies]
    items = pd.concat([rows[[*kind, "item"]].drop_duplicates() for rows in frames]).value_counts().rename("scored")
    kinds = pd.concat([rows[kind].drop_duplicates() for rows in frames]).value_counts().rename("asked")
    shared = items.reset_index().merge(kinds.reset_index()).query("scored == asked")[[*kind, "item"]]
    pool: list[pd.DataFrame] = []
    for rows in frames:
        rows = rows.merge(shared)  # in the order of the rows
        for known in pool:
            both = rows.merge(known, on=list(_KEYS), suffixes=("", "_before"))
            differ = ~np.isclose(both["value"], both["value_before"], atol=ROUNDING)
            if differ.any():
                first = _name(both, int(differ.argmax()))
                raise LabkitError("studies that are pooled agree on a model", first, "Pool studies of one ladder.")
            again = rows[model].merge(known[model].drop_duplicates().assign(again=True), how="left")["again"].notna()
            rows = rows[~again.to_numpy()]
        pool.append(rows)
    return pd.concat(pool, ignore_index=True)


def tables(rows: pd.DataFrame) -> dict[tuple[str, str], Tables]:
    """Rows of `labkit.records.ItemRow` as tables, by (rung, ability); what is not `labkit.scores.judged` is passed over.

    Raises
    ------
    LabkitError
        Columns missing, values that are not finite, an item scored twice, seeds that score different items, or an
        ability with no metric to judge by.
    """
    found: dict[tuple[str, str], Tables] = {}
    for (rung, ability, metric), conditions in _blocks(rows).items():
        found.setdefault((rung, ability), {})[metric] = conditions
    for (rung, ability), metrics in found.items():
        if not any(metric in metrics for metric in PRIMARY):
            judged = f"an ability is judged by one of {', '.join(PRIMARY)}"
            raise LabkitError(judged, f"rung {rung}, ability {ability} without", "Evaluate one of them.")
    return found


def primary(metrics: Tables) -> str:
    """The metric that an ability is judged on."""
    return next(metric for metric in PRIMARY if metric in metrics)


def paired(metrics: Tables, group: Group) -> tuple[Block, Block]:
    """The compressed scores of a group, and the dense ones of the same seeds and items.

    Raises
    ------
    LabkitError
        Either is missing, for any of the compressed seeds, or they score other items or at another chance.
    """
    compressed, dense = (metrics[group.metric].get(condition) for condition in (group.condition, UNCOMPRESSED))
    if compressed is None:
        raise LabkitError(f"{group.ability} is judged on one metric", f"no rows for {group}", "Evaluate them.")
    lonely = compressed.seeds if dense is None else np.setdiff1d(compressed.seeds, dense.seeds)
    if lonely.size:
        rule = "compressed rows are paired with dense rows of the same rung and seed"
        raise LabkitError(rule, f"no dense rows for {group}, seed {lonely[0]}", "Evaluate the dense model too.")
    dense = dense.at(compressed.seeds)
    if not np.array_equal(compressed.items, dense.items) or not np.allclose(compressed.chance, dense.chance):
        rule = "compressed and dense models score the same items, at the same chance"
        raise LabkitError(rule, str(group), "Evaluate both with the same n and seed.")
    return compressed, dense


def having(dense: Block, metric: str, gate: float) -> tuple[np.ndarray, float]:
    """Seeds whose own dense model passes the gate, and the gain over chance that this takes."""
    headroom = BEST[metric] - dense.chance.mean()
    least, gain = gate * abs(headroom), np.sign(headroom) * (dense.value - dense.chance).mean(axis=1)
    return dense.seeds[(gain >= least) & (gain > 0)], least


def gains(metric: str, seeds: np.ndarray, *blocks: Block) -> np.ndarray:
    """Scores over the chance of the last block, the dense one, more being better: (blocks, seeds, items)."""
    values = np.stack([block.at(seeds).value for block in blocks])
    chance = blocks[-1].at(seeds).chance
    return np.sign(BEST[metric] - blocks[-1].chance.mean()) * (values - chance)


def _blocks(rows: pd.DataFrame) -> dict[tuple[str, str, str], dict[tuple[str, float], Block]]:
    """Tables by (rung, ability, metric), then by (compression, sparsity)."""
    rows = _whole(rows)
    if rows.empty:
        return {}
    rows = rows.assign(sparsity=np.where(rows["compression"] == DENSE, 0.0, rows["sparsity"]))
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
        block = Block(seeds, items, value[part].reshape(table), chance[part].reshape(table))
        blocks.setdefault((rung, ability, metric), {})[compression, float(sparsity)] = block
    return blocks


def _whole(rows: pd.DataFrame) -> pd.DataFrame:
    """Those that are `judged`. Refuses rows that are not whole."""
    need(rows, columns(ItemRow))
    rows = judged(rows)
    numbers = rows[["sparsity", "value", "chance"]].to_numpy(float)
    bad = ~np.isfinite(numbers).all(axis=1) | rows[list(columns(ItemRow))].isna().any(axis=1).to_numpy()
    if bad.any():
        raise LabkitError("every row is complete and finite", _name(rows, bad.argmax()), "Measure it again.")
    return rows


def _name(rows: pd.DataFrame, position: int) -> str:
    return ", ".join(f"{key} {rows[key].iloc[position]}" for key in _KEYS)
