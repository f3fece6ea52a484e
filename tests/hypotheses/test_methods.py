"""H5, H6 and H9 on rows whose truth is known."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from labkit.hypotheses import Evidence, examine, retained
from labkit.hypotheses.methods import H5, H6, H9
from labkit.records import DENSE, EXACT_MATCH

ABILITIES = [f"a{n}" for n in range(8)]
KINDS = pd.DataFrame({"ability": ABILITIES, "outcome": "smooth"})
DEPTH, WIDTH = "drop-layers 1 + full 1M", "shrink heads 50% ffn 50% + full 1M"


def rows_of(depth, width, params=(50, 50), names=(DEPTH, WIDTH)):
    """Retention (seeds, abilities) after each of two ways."""
    seed, ability = np.indices(depth.shape).reshape(2, -1)
    parts = []
    for name, value, size in zip((DENSE, *names), (1.0, depth.ravel(), width.ravel()), (100, *params), strict=True):
        part = pd.DataFrame({"seed": seed, "ability": np.array(ABILITIES)[ability], "value": value})
        parts.append(part.assign(compression=name, params=size))
    constant = {"run": "r", "model": "m", "rung": "64x2", "sparsity": 0.0, "metric": EXACT_MATCH, "item": 0}
    return pd.concat(parts, ignore_index=True).assign(chance=0.0, **constant)


def one(rows):
    return examine(Evidence(rows, KINDS), [H6]).iloc[0]


def noise(seed, sd=0.01, shape=(5, 8)):
    return np.random.default_rng(seed).normal(0, sd, shape)


TILT = np.linspace(-0.3, 0.3, 8)


@pytest.mark.parametrize(
    ("outcome", "depth"),
    [
        ("supported", 0.5 + TILT),
        ("refuted", np.full(8, 0.5)),
        ("refuted", np.full(8, 0.8)),  # better at everything alike is no interaction
    ],
)
def test_an_interaction_is_an_order_of_the_abilities_that_dense_models_share(outcome, depth):
    depth, width = depth + noise(0), 0.5 + noise(1)
    found = one(rows_of(depth, width))
    assert found["outcome"] == outcome and found["n_models"] == 5
    expected = stats.friedmanchisquare(*(depth - width).T)
    assert found["p"] == pytest.approx(expected.pvalue)
    assert found["estimate"] == pytest.approx(expected.statistic / (5 * 7))
    if outcome == "supported":
        assert f"R({DEPTH}) − R({WIDTH}) of rung 64x2: from -0.3" in found["reason"] and "(a7)" in found["reason"]


def test_noise_is_seldom_called_an_interaction():
    """Of 40 draws at the level of 0.05, more than 5 would be a one-in-a-hundred chance."""
    hits = [one(rows_of(0.5 + noise(2 * n, 0.2), 0.5 + noise(2 * n + 1, 0.2)))["p"] < 0.05 for n in range(40)]
    assert sum(hits) <= 5


def test_what_is_below_chance_is_lost_once():
    depth = np.where(np.arange(8) < 4, -1.0 * np.arange(8), 0.5) + np.zeros((5, 1))
    assert one(rows_of(depth, np.where(np.arange(8) < 4, 0.0, 0.5) + np.zeros((5, 1))))["p"] == 1


@pytest.mark.parametrize(
    ("changes", "outcome", "reason"),
    [
        ({"params": (50, 56)}, "no rows", "needs drop-layers and shrink with equal parameters left"),
        ({"names": ("drop-layers 1", WIDTH)}, "no rows", "needs drop-layers and shrink"),  # healed differently
        ({"names": ("drop-layers 1 by random", "shrink ffn 50%")}, "no rows", "needs drop-layers and shrink"),
        ({"seeds": 4}, "undecided", "4 of the 5 dense models"),
        ({"abilities": 2}, "undecided", "2 abilities that every dense model has"),
    ],
)
def test_what_is_missing_is_said(changes, outcome, reason):
    depth, width = 0.5 + TILT + noise(0), 0.5 + noise(1)
    seeds, abilities = changes.pop("seeds", 5), changes.pop("abilities", 8)
    found = one(rows_of(depth[:seeds, :abilities], width[:seeds, :abilities], **changes))
    assert found["outcome"] == outcome and reason in found["reason"]


def test_an_ability_that_one_dense_model_lacks_is_not_compared():
    rows = rows_of(0.5 + TILT + noise(0), 0.5 + noise(1))
    rows.loc[(rows["compression"] == DENSE) & (rows["seed"] == 2) & (rows["ability"] == "a7"), "value"] = 0.1
    assert "over 7 abilities" in one(rows)["reason"]


# --- H9: at equal bytes ------------------------------------------------------------------------------------------------


def at_equal_bytes(quantised, pruned, sparsity=0.78125, names=("int4", "wanda")):
    rows = rows_of(quantised, pruned, names=names)
    rows.loc[rows["compression"] == names[1], "sparsity"] = sparsity
    return examine(Evidence(rows, KINDS), [H9]).iloc[0]


@pytest.mark.parametrize(("outcome", "apart"), [("supported", 0.2), ("refuted", -0.2), ("undecided", 0.0)])
def test_quantised_beside_pruned_models_of_the_same_dense_one(outcome, apart):
    quantised, pruned = 0.6 + apart / 2 + noise(0), 0.6 - apart / 2 + noise(1)
    found = at_equal_bytes(quantised, pruned)
    assert found["outcome"] == outcome and found["n_models"] == 5
    each = (quantised - pruned).mean(axis=1)
    assert (found["estimate"], found["p"]) == pytest.approx((each.mean(), stats.ttest_1samp(each, 0, alternative="greater").pvalue))
    assert f"R(quantised) − R(wanda), mean over abilities: int4 {each.mean():+.2f}" in found["reason"]


@pytest.mark.parametrize(
    ("sparsity", "names"),
    [
        (0.5, ("int4", "wanda")),  # 9 bits per weight are not 4.5
        (0.78125, ("int8", "wanda")),
        (0.78125, ("int4", "random")),
        (0.78125, ("int4", "wanda + full 1M")),
        (0.78125, ("wanda", "magnitude")),
    ],
)
def test_other_bytes_random_masks_and_healed_models_are_no_such_pair(sparsity, names):
    found = at_equal_bytes(0.9 + noise(0), 0.5 + noise(1), sparsity, names)
    assert found["outcome"] == "no rows" and "equal bytes" in found["reason"]


def test_less_than_nothing_is_not_lost():
    found = at_equal_bytes(np.zeros((5, 8)), -1.0 + noise(1))
    assert found["estimate"] == 0


@pytest.mark.parametrize(("seeds", "exact"), [(10, True), (30, False)])
def test_the_signs_of_many_teachers_are_drawn_and_of_few_counted(seeds, exact):
    """H5: of 2^30 orders nobody waits for all."""
    generator, parts = np.random.default_rng(0), []
    teachers = pd.DataFrame({"seed": range(seeds), "value": 1.0, "compression": "dense", "params": 300})
    for ability in ("recall", "facts"):
        parts.append(teachers.assign(ability=ability))
        for name, share in (("64x2 distil forward-kl 6M", 0.7), ("64x2 scratch 6M", 0.5)):
            there = (generator.random(seeds) < share) * 1.0
            parts.append(teachers.assign(value=there, compression=name, ability=ability, params=100))
    rows = pd.concat(parts, ignore_index=True).assign(rung="96x3", run="r", model="m", sparsity=0.0, item=0, chance=0.0, metric=EXACT_MATCH)
    found = examine(Evidence(rows, KINDS), [H5]).iloc[0]
    values = retained(rows).pivot_table(index="seed", columns=["compression", "ability"], values="gain")
    pairs = (values["64x2 distil forward-kl 6M"] - values["64x2 scratch 6M"]).mean(axis=1).to_numpy()
    signs = np.random.default_rng(1).choice([-1, 1], (200_000, seeds))
    if exact:
        signs = np.array(list(itertools.product([-1, 1], repeat=seeds)))
    expected = ((signs * pairs).mean(axis=1) >= pairs.mean() - 1e-12).mean()
    assert found["p"] == pytest.approx(expected, abs=1e-12 if exact else 0.01)
