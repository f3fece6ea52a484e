import numpy as np
import pandas as pd
import pytest

from labkit.dense_curve import Draws, arranged, conditions, dense_curve, paired_scores
from labkit.errors import LabkitError
from labkit.records import DENSE, EXACT_MATCH

PARAMS = {"a": 1_000, "b": 10_000, "c": 100_000}


def rows(gains, compression=DENSE, ability="recall"):
    """Rows with one item per model; `gains`: rung -> one gain per seed. Chance is 0, so that a value is a gain."""
    cells = [(rung, PARAMS[rung], seed, gain) for rung, each in gains.items() for seed, gain in enumerate(each)]
    constant = {"run": "r", "model": "m", "compression": compression, "sparsity": 0.0, "item": 0, "chance": 0.0}
    frame = pd.DataFrame(cells, columns=["rung", "params", "seed", "value"])
    return frame.assign(ability=ability, metric=EXACT_MATCH, **constant)


DENSE_ROWS = rows({"a": [0.1, 0.1], "b": [0.6, 0.4], "c": [0.3, 0.5]})


def test_the_curve_never_falls_and_weighs_seeds():
    means = paired_scores(DENSE_ROWS, DENSE_ROWS)
    x, curve = dense_curve(arranged(means), Draws(means, 10, 0), "recall")
    np.testing.assert_allclose(x, [3, 4, 5])
    np.testing.assert_allclose(curve[0], [0.1, 0.45, 0.45])
    assert (np.diff(curve, axis=1) >= -1e-12).all()


def test_a_draw_takes_a_compressed_model_together_with_its_parent():
    means = paired_scores(DENSE_ROWS, rows({"b": [0.3, 0.2]}, "wanda"))
    ladder, draws = arranged(means), Draws(means, 500, 0)
    own, parent = (draws.means("b", ladder.gains["b", name, 0.0, "recall"]) for name in ("wanda", DENSE))
    np.testing.assert_allclose(own / parent, 0.5)
    assert own[0] == pytest.approx(0.25) and set(np.round(own, 6)) == {0.2, 0.25, 0.3}


def test_a_seed_that_was_not_measured_is_left_out_of_every_draw():
    means = paired_scores(DENSE_ROWS, rows({"b": [0.3]}, "wanda"))
    ladder, draws = arranged(means), Draws(means, 500, 0)
    own = draws.means("b", ladder.gains["b", "wanda", 0.0, "recall"])
    assert set(own[~np.isnan(own)]) == {0.3} and 0.15 < np.isnan(own).mean() < 0.35  # drawn twice: the other seed
    assert conditions(means) == {("b", "wanda", 0.0): {"recall": 1}}


@pytest.mark.parametrize(
    ("dense", "compressed", "message"),
    [
        (rows({"a": [0.1]}), rows({"a": [0.1]}, "wanda"), "a dense curve has at least two rungs.*1"),
        (DENSE_ROWS, rows({"b": [0.1, 0.1, 0.1]}, "wanda"), "rung b, seed 2, recall, exact_match without"),
        (DENSE_ROWS, rows({"b": [0.1]}, "wanda", "facts"), "rung b, seed 0, facts, exact_match without"),
        (DENSE_ROWS, DENSE_ROWS.drop(columns="compression"), "rows without compression"),
        (DENSE_ROWS, pd.concat([rows({"b": [0.1]}, "wanda")] * 2), "an item is scored once"),
    ],
)
def test_what_has_no_parent_or_no_curve_is_refused(dense, compressed, message):
    with pytest.raises(LabkitError, match=message):
        paired_scores(dense, compressed)
