import dataclasses

import numpy as np
import pandas as pd
import pytest

from labkit.errors import LabkitError
from labkit.records import BRIER, DENSE, EXACT_MATCH, NLL_NATS, TOKEN_ACCURACY, ItemRow
from labkit.scores import primary, scores

ROW = ItemRow("run", "m", "64x2", 100_672, 0, DENSE, 0.0, "recall", EXACT_MATCH, 0, 1.0, 0.2)


def rows(*changes):
    return pd.DataFrame([dataclasses.asdict(dataclasses.replace(ROW, **change)) for change in changes])


def test_a_score_is_the_mean_over_items_and_gain_is_the_way_from_chance_to_perfect():
    frame = scores(
        rows({"item": 0, "value": 1.0}, {"item": 1, "value": 0.2}, {"metric": NLL_NATS, "value": 0.5, "chance": 2.0})
    )
    exact, nats = (frame[frame["metric"] == metric].iloc[0] for metric in (EXACT_MATCH, NLL_NATS))
    assert (exact["value"], exact["n_items"], exact["params"]) == (pytest.approx(0.6), 2, 100_672)
    assert (exact["gain"], nats["gain"]) == (pytest.approx(0.5), pytest.approx(0.75))


def test_a_guesser_gains_nothing_and_a_perfect_model_all():
    perfect = {EXACT_MATCH: (1.0, 0.2), NLL_NATS: (0.0, 1.6), BRIER: (0.0, 0.8), TOKEN_ACCURACY: (1.0, 0.2)}
    for value, gain in ((0, 1.0), (1, 0.0)):
        frame = scores(rows(*({"metric": m, "value": pair[value], "chance": pair[1]} for m, pair in perfect.items())))
        np.testing.assert_allclose(frame["gain"], gain, atol=1e-12)


def test_every_ability_in_the_first_metric_it_has():
    frame = scores(
        rows(
            *({"metric": m} for m in (BRIER, TOKEN_ACCURACY, EXACT_MATCH)),
            {"ability": "markov", "metric": NLL_NATS, "chance": 3.0},
        )
    )
    assert dict(primary(frame)[["ability", "metric"]].to_numpy()) == {"recall": EXACT_MATCH, "markov": NLL_NATS}


def test_metrics_asked_in_addition_are_passed_over_and_a_missing_chance_is_not():
    plain = rows({"item": 0}, {"item": 1, "value": 0.0})
    asked = pd.concat([plain, plain.assign(metric="answer_given", value=7.0, chance=np.nan)], ignore_index=True)
    pd.testing.assert_frame_equal(scores(asked), scores(plain))
    with pytest.raises(LabkitError, match="every score is finite"):
        scores(plain.assign(chance=np.nan))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (rows({}).drop(columns="chance"), "rows without chance"),
        (rows({}).iloc[:0], "no rows"),
        (rows({"value": np.nan, "item": 7}), "rung 64x2, seed 0, compression dense.*item 7"),
        (rows({"item": 3}, {"item": 4}, {"item": 3}), "two of rung 64x2.*item 3"),
        (rows({"chance": 1.0}), "recall, exact_match"),
        (rows({"metric": "bleu"}), "recall, bleu"),
    ],
)
def test_rows_that_have_no_mean_are_named(frame, message):
    with pytest.raises(LabkitError, match=message):
        scores(frame)


@pytest.mark.parametrize("column", ["params", "sparsity", "value", "chance", "seed", "item"])
@pytest.mark.parametrize("kind", ["category", "datetime64[ns]", str])
def test_what_is_computed_with_is_a_number(column, kind):
    if kind == "category" and column in ("seed", "item"):
        return  # see below
    with pytest.raises(LabkitError, match=f"the column {column} holds numbers"):
        scores(rows({}).astype({column: kind}))


@pytest.mark.parametrize("kind", [object, "category"])
def test_numbers_among_objects_are_numbers(kind):
    frame = rows({"item": 0}, {"item": 1, "value": 0.0}, {"seed": 1})
    pd.testing.assert_frame_equal(scores(frame.astype({"seed": kind, "item": kind})).astype({"seed": int}), scores(frame))
