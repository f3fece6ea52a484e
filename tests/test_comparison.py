from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from labkit.comparison import ANSWERS, COLUMNS, CONDITION, SIDES, compare, compare_conditions, has_more
from labkit.errors import LabkitError


def rows(values, ability="recall", metric="exact_match", **extra):
    values = np.asarray(values, float)
    given = {"ability": ability, "metric": metric, "item": np.arange(len(values)), "value": values, "chance": 0.1}
    return pd.DataFrame({**given, **extra})


def seeded(table, **extra):
    """Rows of a (seeds, items) table."""
    return pd.concat([rows(values, seed=seed, **extra) for seed, values in enumerate(table)], ignore_index=True)


def stored(table, rung="64x2", compression="dense", params=100, **extra):
    return seeded(table, rung=rung, compression=compression, sparsity=0.0, params=params, **extra)


def only(frame):
    assert tuple(frame.columns) == COLUMNS and len(frame) == 1
    return frame.iloc[0]


# -- what it computes --------------------------------------------------------------------------------------------------


def test_means_and_difference_by_hand():
    row = only(compare(rows([1, 0, 0, 1]), rows([1, 1, 1, 1])))
    assert (row.ability, row.metric, row.n_seeds, row.n_items) == ("recall", "exact_match", 1, 4)
    assert (row.a, row.b, row.difference) == (0.5, 1.0, 0.5)


def test_a_constant_difference_has_no_spread():
    """Pairing takes the items' own spread away, however large it is."""
    values = np.random.default_rng(0).normal(0, 100, 50)
    row = only(compare(rows(values, metric="nll_nats"), rows(values + 0.25, metric="nll_nats")))
    assert np.allclose([row.difference, row.low, row.high], 0.25) and row.beyond_noise


def test_a_model_does_not_differ_from_itself():
    row = only(compare(rows([0, 1, 1]), rows([0, 1, 1])))
    assert (row.difference, row.p, row.beyond_noise) == (0, 1, False)
    assert -row.low == row.high == pytest.approx(-np.log(0.025) / 3)  # three items cannot show that none differ


def test_the_interval_over_items_is_near_the_paired_t_interval():
    generator = np.random.default_rng(1)
    a = generator.normal(size=400)
    b = a + generator.normal(0.05, 1, 400)
    row = only(compare(rows(a), rows(b)))
    expected = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert np.allclose([row.low, row.high], expected, atol=0.08 * (expected.high - expected.low))
    assert row.beyond_noise == (expected.low > 0 or expected.high < 0)


def test_the_interval_over_seeds_holds_the_spread_between_seeds():
    """Where seeds alone differ, it is the t-interval of their means."""
    shifts = np.array([-0.3, 0.1, 0.0, 0.4, 0.2, -0.1, 0.3, 0.0])
    a = np.zeros((8, 40))
    row = only(compare(seeded(a, metric="brier"), seeded(a + shifts[:, None], metric="brier")))
    expected = stats.ttest_1samp(shifts, 0)
    assert np.allclose([row.low, row.high], expected.confidence_interval(0.95))
    assert row.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert (row.n_seeds, row.n_items, row.beyond_noise) == (8, 40, False)


def test_swapping_the_sides_turns_the_sign():
    generator = np.random.default_rng(2)
    a, b = (seeded(generator.random((3, 30))) for _ in range(2))
    one, other = only(compare(a, b)), only(compare(b, a))
    assert np.allclose([one.difference, one.low, one.high], [-other.difference, -other.high, -other.low])


def test_intervals_cover_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(3)
    sides = [pd.concat([rows(generator.normal(size=60), f"ability {i}") for i in range(300)]) for _ in range(2)]
    noise = compare(*sides)["beyond_noise"].sum()
    assert stats.binomtest(int(noise), 300, 0.05).pvalue > 0.01


def test_order_of_rows_does_not_matter_and_the_first_side_orders_the_result():
    generator = np.random.default_rng(4)
    a, b = (
        pd.concat([rows(generator.random(20), "shift", metric="brier"), rows(generator.random(9), "add")])
        for _ in range(2)
    )
    frame = compare(a, b)
    assert list(frame["ability"]) == ["shift", "add"] and list(frame["n_items"]) == [20, 9]
    pd.testing.assert_frame_equal(frame, compare(a, b.sample(frac=1, random_state=0)))


def test_one_item_has_no_interval():
    row = only(compare(rows([0]), rows([1])))
    assert row.difference == 1 and np.isnan(row.low) and np.isnan(row.high) and not row.beyond_noise


def test_one_training_seed_each_is_a_pair_whichever_it_is():
    assert only(compare(rows([0, 1], seed=3), rows([1, 1], seed=4))).difference == 0.5
    assert only(compare(rows([0, 1], seed=3), rows([1, 1]))).difference == 0.5


def test_categories_are_compared_like_strings():
    a = rows([0, 1, 1]).astype({"ability": "category", "metric": "category"})
    assert only(compare(a, rows([0, 1, 1]))).difference == 0


# -- what it refuses ---------------------------------------------------------------------------------------------------

REFUSED = {
    "item": (rows([0, 1, 1]), rows([0, 1]), "both sides score the same items; got 'the second without ability recall, "
             "metric exact_match, seed 0, item 2'. Score all."),
    "ability": (rows([0, 1]), pd.concat([rows([0, 1]), rows([1], "shift")]), "got 'the first without ability shift"),
    "nan": (rows([0, np.nan]), rows([0, 1]), "every value is finite; got 'the first: .* item 1'. Measure it again."),
    "duplicate": (rows([0, 1]), pd.concat([rows([0, 1])] * 2), "an item is scored once; got 'the second, twice: .*0'"),
    "chance": (rows([0, 1]), rows([0, 1], chance=0.2), "same items, at the same chance; got .* Evaluate with one n"),
    "seeds": (seeded(np.ones((2, 3))), seeded(np.ones((3, 3))),
              "the same training seeds, or one each; got '0, 1 and 0, 1, 2'. Select those in common."),
    "ragged": (*[pd.concat([rows([0, 1], seed=0), rows([0], seed=1)])] * 2, "every seed scores the same items"),
    "empty": (rows([]), rows([1]), "rows on both sides; got 'the first without rows'. Evaluate it first."),
    "column": (rows([1]), rows([1]).drop(columns="item"), "columns of ItemRow; got 'rows without item'. Add them."),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_pair_is_refused(case):
    a, b, message = REFUSED[case]
    with pytest.raises(LabkitError, match=message):
        compare(a, b)


# -- who has more ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "shift", "spread"),
    [("more", 0.3, 0.1), ("less", -0.3, 0.1), ("as much", 0.0, 0.01), ("as much", 0.02, 0.001), ("undecided", 0.1, 0.3)],
)
@pytest.mark.parametrize(("metric", "sign"), [("exact_match", 1), ("nll_nats", -1)])
def test_who_has_more_of_an_ability(answer, shift, spread, metric, sign):
    first = np.random.default_rng(0).uniform(size=(5, 40))
    by_seed = np.array([[-1.0, -0.5, 0.0, 0.5, 1.0]]).T * spread
    second = first + sign * (shift + by_seed)
    a, b = (seeded(table, metric=metric, chance=0.1 if sign > 0 else 3.0) for table in (first, second))
    (row,) = has_more(a, b).itertuples()
    assert row.answer == answer and answer in ANSWERS
    (plain,) = compare(a, b).itertuples()
    assert (row.difference, row.low, row.high, row.p) == (plain.difference, plain.low, plain.high, plain.p)
    (few,) = has_more(a[a.seed < 4], b[b.seed < 4]).itertuples()
    assert few.answer == "undecided"


def test_an_ability_is_compared_in_the_metric_it_is_judged_by():
    table = np.random.default_rng(0).integers(0, 2, (5, 30)).astype(float)
    kinds = [("shift", "exact_match"), ("shift", "nll_nats"), ("markov", "token_accuracy"), ("markov", "nll_nats")]
    parts = [seeded(table, ability=ability, metric=metric) for ability, metric in kinds]
    asked = seeded(table, ability="shift", metric="answer_given", chance=np.nan)
    a = pd.concat([*parts, asked], ignore_index=True)
    frame = has_more(a, a.assign(value=1.0))
    assert list(zip(frame.ability, frame.metric, strict=True)) == [kinds[2], kinds[0]]
    assert frame.p_adjusted.to_list() == pytest.approx(stats.false_discovery_control(frame.p))
    with pytest.raises(LabkitError, match="a margin is positive; got 0"):
        has_more(a, a, margin=0)


@pytest.mark.parametrize(("scores", "answer"), [((0.11, 0.25), "neither"), ((0.11, 0.30), "more"), ((0.29, 0.30), "as much")])
def test_what_neither_side_has_nobody_has_as_much_of(scores, answer):
    """Chance is 0.1, so that the gate lies at 0.28."""
    a, b = (seeded(score + 1e-3 * np.random.default_rng(0).normal(size=(5, 40))) for score in scores)
    (row,) = has_more(a, b, margin=0.06).itertuples()
    assert row.answer == answer and answer in SIDES
    assert has_more(a, b, margin=0.06, gate=0.9).answer.tolist() == ["neither"]


# -- two stores --------------------------------------------------------------------------------------------------------


def test_conditions_in_common_are_compared_each_by_itself_and_by_size():
    generator = np.random.default_rng(6)
    tables = generator.random((6, 2, 30))
    a = pd.concat([
        stored(tables[0], "64x2", params=100), stored(tables[1], "16x1", params=5),
        stored(tables[2], "64x2", "drop-layers 1", params=3), stored(tables[2], "96x3"),
    ])  # fmt: skip
    b = pd.concat([
        stored(tables[3], "64x2", params=100), stored(tables[4], "16x1", params=5),
        stored(tables[5], "64x2", "drop-layers 1", params=3), stored(tables[5], "64x2", "wanda"),
    ])  # fmt: skip
    frame = compare_conditions(a, b)
    assert tuple(frame.columns) == (*CONDITION, *COLUMNS)
    assert list(frame["rung"] + " " + frame["compression"]) == ["16x1 dense", "64x2 dense", "64x2 drop-layers 1"]
    assert np.allclose(frame["difference"], [(tables[3 + i] - tables[i]).mean() for i in (1, 0, 2)])
    alone = compare(stored(tables[0]), stored(tables[3]))
    told = [name for name in COLUMNS if name != "p_adjusted"]  # that one is over all rows of a frame
    pd.testing.assert_frame_equal(frame.loc[[1], told].reset_index(drop=True), alone[told])
    assert np.allclose(frame["p_adjusted"], stats.false_discovery_control(frame["p"]))


def test_of_stores_with_more_or_fewer_items_those_are_compared_that_both_have():
    tables = np.random.default_rng(7).random((2, 3, 30))
    a = pd.concat([stored(tables[0]), stored(tables[0], ability="shift")])
    b = stored(tables[1][:, :20])
    with pytest.warns(UserWarning, match="of 60 and 20 items .*, the 20 that both have are compared"):
        frame = compare_conditions(a, b)
    told = compare(stored(tables[0][:, :20]), b)
    pd.testing.assert_frame_equal(frame[list(COLUMNS)], told)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare_conditions(b, b)


def test_stores_with_nothing_in_common_are_refused():
    with pytest.raises(LabkitError, match="two stores share some items; got 'recall and shift'. Run studies with an abi"):
        compare_conditions(stored([[1, 0]]), stored([[1, 0]], ability="shift"))
    with pytest.raises(LabkitError, match="share a rung and compression; got '64x2 dense 0.0 and 16x1 dense 0.0'"):
        compare_conditions(stored([[1]]), stored([[1]], "16x1"))
    with pytest.raises(LabkitError, match="rows without rung, compression, sparsity, params"):
        compare_conditions(rows([1]), rows([1]))


def test_items_may_have_names():
    a = rows([1, 0, 0, 1]).assign(item=list("abcd"))
    assert only(compare(a, a.assign(value=1.0))).difference == 0.5


def test_a_gate_is_a_fraction():
    a = seeded(np.full((5, 4), 0.5))
    with pytest.raises(LabkitError, match="gate lies in"):
        has_more(a, a, gate=0)
