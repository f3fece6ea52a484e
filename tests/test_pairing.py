from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from labkit.errors import LabkitError
from labkit.pairing import Group, gains, having, paired, pooled, primary, tables
from labkit.records import BRIER, EXACT_MATCH, NLL_NATS, TOKEN_ACCURACY, ItemRow

ROW = ItemRow("run", "m", "64x2", 99_000, 0, "dense", 0.01, "recall", EXACT_MATCH, 0, 0.0, 0.25)
GROUP = Group("64x2", "wanda", 0.5, "recall", EXACT_MATCH)


def rows(table, **others):
    seed, item = np.divmod(np.arange(np.size(table)), np.shape(table)[1])
    given = {"seed": seed, "item": item, "value": np.ravel(table) * 1.0, **others}
    return pd.DataFrame({**dataclasses.asdict(ROW), **given})


WANDA = {"compression": "wanda", "sparsity": 0.5}
SCORES = np.random.default_rng(0).random((2, 3, 4))
BOTH = pd.concat([rows(SCORES[0]), rows(SCORES[1], **WANDA)], ignore_index=True)


def test_tables_are_the_pivot_of_the_rows_in_any_order():
    metrics = tables(BOTH.sample(frac=1, random_state=0))["64x2", "recall"]
    assert primary(metrics) == EXACT_MATCH
    compressed, dense = paired(metrics, GROUP)
    np.testing.assert_array_equal(dense.value, SCORES[0])
    np.testing.assert_array_equal(compressed.value, SCORES[1])
    np.testing.assert_array_equal(compressed.at(np.array([2])).value, SCORES[1][2:])


def test_dense_rows_pair_by_the_seeds_that_were_compressed():
    _, dense = paired(tables(BOTH.query("compression == 'dense' or seed != 1"))["64x2", "recall"], GROUP)
    np.testing.assert_array_equal(dense.value, SCORES[0][[0, 2]])


def test_gains_point_upwards_in_every_metric():
    block = paired(tables(BOTH)["64x2", "recall"], GROUP)
    np.testing.assert_allclose(gains(EXACT_MATCH, np.arange(3), *block), SCORES[::-1] - 0.25)
    np.testing.assert_allclose(gains(NLL_NATS, np.arange(3), *block), 0.25 - SCORES[::-1])


def test_seeds_have_an_ability_from_the_gate_on():
    table = np.array([[0.39], [0.41], [0.9]])
    _, dense = paired(tables(pd.concat([rows(table), rows(table, **WANDA)]))["64x2", "recall"], GROUP)
    have, least = having(dense, EXACT_MATCH, 0.2)
    assert list(have) == [1, 2] and least == pytest.approx(0.15)


def test_the_first_primary_metric_is_judged():
    every = pd.concat([rows(SCORES[0], metric=metric) for metric in (BRIER, NLL_NATS, TOKEN_ACCURACY)])
    assert primary(tables(every)["64x2", "recall"]) == TOKEN_ACCURACY


def test_metrics_asked_in_addition_are_passed_over():
    asked = pd.concat([BOTH, BOTH.assign(metric="answer_given", chance=np.nan)], ignore_index=True)
    ((ability, metrics),) = tables(asked).items()
    assert ability == ("64x2", "recall") and list(metrics) == [EXACT_MATCH]
    np.testing.assert_array_equal(paired(metrics, GROUP)[0].value, SCORES[1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (BOTH.assign(chance=np.nan), "every row is complete and finite"),
        (BOTH.drop(columns="chance"), "rows without chance"),
        (BOTH.assign(value=BOTH["value"].where(BOTH.index != 2)), "seed 0, item 2'. Measure it again."),
        (pd.concat([BOTH, BOTH[:1]]), "an item is scored once; got 'two of rung 64x2"),
        (BOTH.drop(index=0), "every seed scores the same items"),
        (BOTH.assign(metric=BRIER), "judged by one of exact_match, token_accuracy, choice_accuracy, nll_nats; got 'rung 64x2"),
    ],
)
def test_rows_that_are_not_whole_are_refused(wrong, message):
    with pytest.raises(LabkitError) as error:
        tables(wrong)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("compression == 'dense'", "recall is judged on one metric; got 'no rows for rung 64x2, compression wanda"),
        ("compression == 'wanda' or seed != 1", "no dense rows for rung 64x2, compression wanda, sparsity 0.5"),
        ("compression == 'wanda' or item < 2", "score the same items, at the same chance; got 'rung 64x2"),
    ],
)
def test_rows_that_do_not_pair_are_refused(wrong, message):
    with pytest.raises(LabkitError) as error:
        paired(tables(BOTH.query(wrong))["64x2", "recall"], GROUP)
    assert message in str(error.value)


# --- studies as one --------------------------------------------------------------------------------------------------


def test_studies_are_pooled_over_the_items_that_both_scored_and_a_model_counts_once():
    first, second = BOTH[BOTH["item"] < 3], pd.concat([rows(SCORES[0]), rows(SCORES[1] / 2, compression="random")])
    facts = rows(SCORES[0], ability="facts")  # only the second has it
    pool = pooled(first, pd.concat([second, facts], ignore_index=True))
    recall = pool[pool["ability"] == "recall"]
    assert set(recall["item"]) == {0, 1, 2} and set(pool.loc[pool["ability"] == "facts", "item"]) == {0, 1, 2, 3}
    assert recall["compression"].value_counts().to_dict() == {"dense": 9, "wanda": 9, "random": 9}
    for compression, table in (("wanda", SCORES[1]), ("random", SCORES[1] / 2)):
        found, dense = paired(
            tables(recall)["64x2", "recall"],
            GROUP._replace(compression=compression, sparsity=recall.query("compression == @compression").sparsity.iloc[0]),
        )
        np.testing.assert_array_equal(found.value, table[:, :3])
        np.testing.assert_array_equal(dense.value, SCORES[0][:, :3])


def test_one_study_is_its_own_pool_and_the_order_of_studies_adds_no_rows():
    assert pooled(BOTH).drop(columns="sparsity").equals(BOTH.drop(columns="sparsity"))
    given = BOTH.assign(metric="answer_given", chance=np.nan)  # asked in addition: judges nothing
    assert pooled(pd.concat([BOTH, given])).equals(pooled(BOTH))
    rounded = pooled(BOTH, rows(SCORES[0] + 5e-5))  # as on another number of threads
    assert rounded.equals(pooled(BOTH))
    turned = pooled(rows(SCORES[0]), BOTH)
    keys = ["compression", "seed", "item"]
    assert turned.sort_values(keys)["value"].to_list() == BOTH.sort_values(keys)["value"].to_list()


def test_studies_that_disagree_on_a_model_are_not_pooled():
    other = BOTH.assign(value=BOTH["value"].where(BOTH.index != 5, 0.5))
    message = "agree on a model; got 'rung 64x2, ability recall, metric exact_match, compression dense, sparsity 0.0, seed 1"
    with pytest.raises(LabkitError, match=message):
        pooled(BOTH, other)
    with pytest.raises(LabkitError, match="a pool holds at least one study; got 'none'. Give the frames"):
        pooled()
    with pytest.raises(LabkitError, match="every row is complete and finite"):
        pooled(BOTH, BOTH.assign(value=np.nan))
