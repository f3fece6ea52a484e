from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from labkit.breakpoints import BreakPointRow, break_point
from labkit.errors import LabkitError
from labkit.records import EXACT_MATCH, ItemRow, columns

SPARSITIES = (0.0, 0.3, 0.5, 0.7, 0.9)
ROW = ItemRow("run", "m", "64x2", 99_000, 0, "wanda", 0.5, "recall", EXACT_MATCH, 0, 0.0, 0.0)


def study(scores, sparsities=SPARSITIES, items=400, seed=0, **others):
    """Rows of (sparsities, seeds) mean scores, the dense ones first; every sparsity shares its tosses."""
    scores = np.asarray(scores, float)
    toss = np.random.default_rng(seed).random((scores.shape[1], items))
    parts = []
    for sparsity, means in zip(sparsities, scores, strict=True):
        kid, item = np.divmod(np.arange(toss.size), items)
        value = (toss < means[:, None]).ravel() * 1.0
        what = {"compression": "wanda" if sparsity else "dense", "sparsity": sparsity, "seed": kid, "item": item}
        parts.append(pd.DataFrame({**dataclasses.asdict(ROW), **what, "value": value, **others}))
    return pd.concat(parts, ignore_index=True)


def falling(seeds=6, spread=0.0):
    """A straight fall from 1 at .3 to 0 at .9: half of it is left at .6."""
    curve = np.interp(SPARSITIES, [0.3, 0.9], [0.96, 0.0])
    shifts = spread * np.random.default_rng(1).standard_normal(seeds)
    return curve[:, None] + shifts * (np.array(SPARSITIES) > 0)[:, None]


def one(rows, **options):
    frame = break_point(rows, **options)
    assert tuple(frame.columns) == columns(BreakPointRow) and len(frame) == 1
    return frame.iloc[0]


def test_a_straight_fall_breaks_half_way():
    row = one(study(falling()))
    assert row["break_point"] == pytest.approx(0.6, abs=0.02) and row["low"] < row["break_point"] < row["high"]
    assert tuple(row[["n_seeds", "n_items", "n_sparsities", "reason"]]) == (6, 400, 4, "")
    assert one(study(falling()), retention=0.9)["break_point"] == pytest.approx(0.36, abs=0.02)


def test_seeds_that_differ_widen_the_interval():
    narrow, wide = (one(study(falling(spread=spread))) for spread in (0.0, 0.1))
    assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])


def test_intervals_cover_a_known_break_point():
    held = [0] * 60
    for number in range(60):
        shifts = 0.05 * np.random.default_rng(number).standard_normal(5) * (np.array(SPARSITIES) > 0)[:, None]
        row = one(study(np.clip(falling(5) + shifts, 0, 1), seed=number, items=200))
        held[number] = row["low"] <= 0.6 <= row["high"]
    assert 0.85 < np.mean(held)


def test_below_the_first_sparsity_it_says_what_it_rests_on():
    row = one(study(np.repeat([[0.96], [0.24], [0.1], [0.0], [0.0]], 6, axis=1)))  # 1 to .25 over .3: half at .2
    assert row["break_point"] == pytest.approx(0.2, abs=0.02)
    assert row["reason"] == "below the least sparsity measured, 0.3: rests on a straight line from 1 at 0"


def test_what_does_not_break_says_so():
    row = one(study(np.full((5, 5), 0.9)))
    assert row[["break_point", "low", "high"]].isna().all()
    assert row["reason"] == "retention stays above 0.5 up to sparsity 0.9"


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (study(falling()[:2], SPARSITIES[:2]), "one sparsity shows no curve"),
        (study(falling()[:, :1]), "1 seeds with the ability at every sparsity give no interval"),
        (study(np.zeros((5, 4))), "0 seeds with the ability at every sparsity give no interval"),
    ],
)
def test_no_interval_says_why(rows, reason):
    row = one(rows)
    assert row[["break_point", "low", "high"]].isna().all() and row["reason"] == reason


def test_bad_input_is_refused():
    with pytest.raises(LabkitError, match=r"retention lies in \(0, 1\); got 1.5"):
        break_point(study(falling()), retention=1.5)
    with pytest.raises(LabkitError, match="compressed rows are paired with dense rows"):
        break_point(study(falling()).query("compression != 'dense'"))
