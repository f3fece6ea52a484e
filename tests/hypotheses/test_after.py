"""H3 and H10 on rows whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from labkit.hypotheses import Evidence, examine
from labkit.hypotheses.after import H3, H10
from labkit.records import DENSE, EXACT_MATCH, NLL_NATS

KINDS = pd.DataFrame({"ability": ["addition", "recall", "facts"], "outcome": ["emergent", "emergent", "always there"]})
DOSES = np.array([0.0, 0.5, 0.6, 0.7, 0.8, 0.9])
AMOUNTS = (0, 50, 200, 500, 1000)


def row(ability, metric, compression, sparsity, seed, kept):
    chance, best = (2.0, 0.0) if metric == NLL_NATS else (0.0, 1.0)
    constant = {"run": "r", "model": "m", "rung": "64x2", "params": 100, "item": 0, "chance": chance}
    value = chance + kept * (best - chance)
    told = {"ability": ability, "metric": metric, "compression": compression, "sparsity": sparsity, "seed": seed}
    return {**constant, **told, "value": value}


def one(hypothesis, rows):
    return examine(Evidence(pd.DataFrame(rows), KINDS), [hypothesis]).iloc[0]


def doses(accuracy, nats, seeds=5, sd=0.02, control=True):
    """Retention of three abilities after healing, a curve over the sparsities for each metric."""
    generator, rows = np.random.default_rng(0), []
    for seed in range(seeds):
        for ability in KINDS["ability"]:
            for metric, curve in ((EXACT_MATCH, accuracy), (NLL_NATS, nats)):
                rows.append(row(ability, metric, DENSE, 0.0, seed, 1.0))
                for dose, kept in zip(DOSES, curve + generator.normal(0, sd, len(DOSES)), strict=True):
                    name = "wanda + full 1M" if dose else "full 1M"
                    rows += [row(ability, metric, name, dose, seed, kept)] if dose or control else []
                rows.append(row(ability, metric, "wanda", 0.7, seed, 0.0))  # not healed
                rows += [row(ability, metric, "random + full 1M", dose, seed, 0.0) for dose in DOSES[1:]]
    return rows


LINE = 1 - 0.8 * DOSES
BREAK = 1 - np.maximum(0, DOSES - 0.7) * 4


@pytest.mark.parametrize(
    ("outcome", "accuracy", "nats"),
    [
        ("supported", BREAK, LINE),
        ("refuted", LINE, LINE),  # nothing breaks
        ("refuted", BREAK, BREAK),  # both do
        ("refuted", LINE, BREAK),
    ],
)
def test_a_break_in_accuracy_alone_is_what_h3_claims(outcome, accuracy, nats):
    found = one(H3, doses(accuracy, nats))
    assert found["outcome"] == outcome and found["n_models"] == 5
    assert "wanda + full 1M at 0, 0.5, 0.6, 0.7, 0.8, 0.9: BIC favours a break by" in found["reason"]
    if outcome == "supported":
        assert found["p"] < 0.01 and found["low"] > 0 and found["low"] < found["estimate"]


def test_h3_reads_the_two_curves_as_polyfit_and_a_hinge_do():
    """Without noise the line's squares are polyfit's, and the break is exact, down to the least scatter assumed."""
    found = one(H3, doses(BREAK, LINE, sd=0.0))
    x, y = np.tile(DOSES, 5), np.tile(1 - BREAK, 5)
    left = ((y - np.polyval(np.polyfit(x, y, 1), x)) ** 2).sum()
    variance = max(left / 30, 0.05**2)
    accuracy = 30 * np.log(variance / 0.05**2) + left / variance - np.log(30)
    assert found["estimate"] == pytest.approx(accuracy + np.log(30), rel=1e-3)  # nats: the break costs a parameter


def test_h3_asks_for_five_doses_and_five_dense_models():
    few = one(H3, doses(BREAK, LINE, seeds=3))
    assert few["outcome"] == "undecided" and "3 of the 5 dense models" in few["reason"]
    rows = doses(BREAK, LINE)
    short = one(H3, [r for r in rows if r["sparsity"] != 0.8])
    assert short["outcome"] == "no rows" and "recovery at 5 or more doses" in short["reason"]
    without = one(H3, doses(BREAK, LINE, control=False))
    assert "at 0.5, 0.6, 0.7, 0.8, 0.9" in without["reason"]
    accuracy = one(H3, [r for r in rows if r["metric"] != NLL_NATS])
    assert accuracy["outcome"] == "no rows" and "needs nats and accuracy" in accuracy["reason"]


def returns(times, seeds=5, spread=0.0, **others):
    """Retention that reaches 0.95 after `times` thousand tokens, from 0.3 on in a straight line over log tokens."""
    generator, rows = np.random.default_rng(1), []
    for seed in range(seeds):
        for ability, time in times.items():
            time = time * np.exp(spread * generator.normal())
            rows.append(row(ability, EXACT_MATCH, DENSE, 0.0, seed, 1.0))
            for amount in AMOUNTS:
                kept = min(1.0, 0.3 + 0.65 * np.log1p(amount) / np.log1p(time))
                name = {0: "wanda", 1000: "wanda + full 1M"}.get(amount, f"wanda + full {amount}k")
                rows.append(row(ability, EXACT_MATCH, name, 0.7, seed, kept))
    return rows


ORDER = {"markov": 30, "facts": 120, "addition": 400, "recall": 700}


@pytest.mark.parametrize(
    ("outcome", "times"),
    [
        ("supported", ORDER),
        ("supported", ORDER | {"addition": 5000, "recall": 9000}),  # not back at all: after all that are
        ("refuted", ORDER | {"markov": 700}),
        ("refuted", ORDER | {"facts": 5000}),
        ("undecided", ORDER | {"facts": 5000, "addition": 5000, "recall": 5000}),  # neither is back: no order
    ],
)
def test_the_order_of_return_is_what_h10_claims(outcome, times):
    found = one(H10, returns(times, spread=0.1))
    assert found["outcome"] == outcome and found["n_models"] == 5
    assert "tokens of full after wanda 0.7 until 0.95 of the dense ability is back, medians: markov" in found["reason"]
    assert ("more than 1,000 k" in found["reason"]) == (max(times.values()) > 2000)


def test_times_lie_on_straight_lines_between_the_amounts():
    found = one(H10, returns({"markov": 30, "facts": 120, "addition": 400}))
    expected = []
    for time in (30, 120, 400):
        kept = np.minimum(1.0, 0.3 + 0.65 * np.log1p(AMOUNTS) / np.log1p(time))
        expected.append(np.interp(0.95, kept[: kept.argmax() + 1], AMOUNTS[: kept.argmax() + 1]))
    assert "markov {:.0f} k, facts {:.0f} k, emergent {:.0f} k".format(*expected) in found["reason"]
    assert found["estimate"] == 1 and found["p"] == pytest.approx(1 / 401)


def test_h10_leaves_out_what_was_not_damaged_and_says_what_is_missing():
    rows = returns(ORDER | {"recall": 1000})
    kept = [r | {"value": 1.0} if r["ability"] == "markov" and r["compression"] == "wanda" else r for r in rows]
    found = one(H10, kept)
    assert found["outcome"] == "undecided" and "0 of the 5 dense models" in found["reason"]
    assert found["reason"].endswith("none of markov")
    few = one(H10, returns(ORDER, seeds=4))
    assert few["outcome"] == "undecided" and "4 of the 5 dense models" in few["reason"]
    gone = one(H10, [r for r in rows if r["compression"] not in ("wanda + full 50k", "wanda + full 200k")])
    assert gone["outcome"] == "no rows" and "3 or more points of one recovery" in gone["reason"]
