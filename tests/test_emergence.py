import dataclasses

import numpy as np
import pandas as pd
import pytest

from labkit import curves
from labkit.emergence import OUTCOMES, Appearance, Emergence, Rule, appearance, emergence
from labkit.errors import LabkitError
from labkit.records import BRIER, DENSE, EXACT_MATCH, NLL_NATS, TOKEN_ACCURACY, columns

PARAMS = np.array([3376, 12640, 25248, 50368, 100672, 332448])  # the shipped ladder
X = np.log10(PARAMS)
QUICK = Rule(draws=200)
CHANCE = {EXACT_MATCH: 0.2, TOKEN_ACCURACY: 0.2, NLL_NATS: float(np.log(5)), BRIER: 0.8}
BEST = {EXACT_MATCH: 1.0, TOKEN_ACCURACY: 1.0, NLL_NATS: 0.0, BRIER: 0.0}


def ladder(ability, chance=CHANCE, **gains):
    """Rows with one item per model: `gains` of each metric, (rungs, seeds)."""
    parts = []
    for metric, gain in gains.items():
        rung, seed = np.indices(gain.shape).reshape(2, -1)
        value = chance[metric] + gain.ravel() * (BEST[metric] - chance[metric])
        part = pd.DataFrame({"rung": [f"r{r}" for r in rung], "params": PARAMS[rung], "seed": seed, "value": value})
        parts.append(part.assign(metric=metric, chance=chance[metric]))
    constant = {"run": "r", "model": "m", "compression": DENSE, "sparsity": 0.0, "ability": ability, "item": 0}
    return pd.concat(parts, ignore_index=True).assign(**constant)


def noise(seeds=5, sd=0.03, seed=0):
    return np.random.default_rng(seed).normal(0, sd, (6, seeds))


def rise(middle, width):
    return curves.logistic(X, middle, width / (2 * np.log(9)))[:, None]


def one(rows, **options):
    frame = emergence(rows, dataclasses.replace(QUICK, **options))
    assert tuple(frame) == columns(Emergence) and len(frame) == 1 and frame["outcome"][0] in OUTCOMES
    return frame.iloc[0]


def both(ability, gain, seed=0):
    return ladder(
        ability, exact_match=gain + noise(gain.shape[1], seed=seed), nll_nats=gain + noise(gain.shape[1], seed=seed + 1)
    )


FLAT = np.zeros((6, 5))
TOSSED = 1.0 * (np.random.default_rng(0).random((6, 5)) < rise(4.6, 0.6))


@pytest.mark.parametrize(
    ("outcome", "reason", "gain"),
    [
        ("never", "no model of 30 is 0.2 of the way", FLAT),
        ("always there", "the smallest rung already has", FLAT + 0.9),
        ("always there", "the smallest rung already has", FLAT + np.linspace(0.6, 0.95, 6)[:, None]),
        ("emergent", "continuous metrics jump too", FLAT + rise(4.85, 0.1)),
        ("emergent", "favours two-state", TOSSED),
        ("smooth", "BIC favours", FLAT + np.linspace(0, 1, 6)[:, None]),
        ("smooth", "BIC favours", FLAT + rise(4.5, 1.5)),
    ],
)
def test_known_truths_are_told_apart(outcome, reason, gain):
    row = one(both("a", gain))
    assert row["outcome"] == outcome and reason in row["reason"]


def test_threshold_and_width_of_a_known_step():
    row = one(both("a", FLAT + rise(4.85, 0.1)))
    assert row["threshold_low"] < 4.85 < row["threshold_high"]
    assert X[3] < row["threshold"] < X[4]
    assert row["threshold_params"] == pytest.approx(10 ** row["threshold"])
    assert row["params_low"] == pytest.approx(10 ** row["threshold_low"])
    assert row["width"] < 0.5


def test_a_jump_that_the_metric_makes_is_named():
    """Each token gets better smoothly over 1.5 decades; exact match of 24 of them jumps (Schaeffer et al. 2023)."""
    p = np.minimum(0.998, 0.3 + 0.7 * (X - X[0]) / (X[4] - X[0]))[:, None] + noise(sd=0.001)
    chance = CHANCE | {EXACT_MATCH: 0.0, TOKEN_ACCURACY: 0.0}
    gain = {EXACT_MATCH: p**24, TOKEN_ACCURACY: p, NLL_NATS: 1 + np.log(p) / CHANCE[NLL_NATS], BRIER: p}
    row = one(ladder("a", chance, **gain))
    assert row["outcome"] == "metric artefact" and "while continuous metrics are smooth" in row["reason"]
    assert row["power"] == pytest.approx(24, rel=0.05) and row["power_r2"] > 0.99


def test_what_falls_with_size_is_said_and_noise_is_not():
    gain = FLAT + rise(4.2, 0.1)
    gain[3] -= 0.7
    row = one(both("a", gain))
    assert row["reason"].endswith("from r2 to r3") and "; not monotone in size: falls by 0." in row["reason"]
    assert "not monotone" not in one(both("a", FLAT + rise(4.2, 0.1)))["reason"]


def test_a_jump_without_continuous_metrics_is_not_called_emergent():
    row = one(ladder("a", exact_match=FLAT + rise(4.85, 0.1) + noise()))
    assert row["outcome"] == "undecided" and "neither nats nor Brier" in row["reason"]


def test_smooth_truths_are_called_emergent_in_at_most_one_of_twenty():
    truths = [np.linspace(0, 1, 6)[:, None], rise(4.6, 1.5), rise(4.4, 1.0), rise(4.8, 1.0)]
    rows = [both(f"a{n}", np.tile(truths[n % 4], (1, 3)), seed=10 + 2 * n) for n in range(20)]
    assert (emergence(pd.concat(rows), Rule(draws=100))["outcome"] == "emergent").sum() <= 1


def test_loss_explains_what_breaks_with_loss_and_not_with_size():
    loss = 2.1 - 0.05 * np.random.default_rng(5).random((6, 5))
    gain = np.maximum(0, 2.075 - loss) / 0.05 + noise(sd=0.01)
    control = ladder("markov", CHANCE | {NLL_NATS: 3.3}, nll_nats=1 - loss / 3.3)
    frame = emergence(pd.concat([both("a", gain), control]), QUICK).set_index("ability")
    assert frame.loc["a", "loss_better"] > 6
    assert frame.loc["a", "loss_threshold"] == pytest.approx(2.075, abs=0.005)
    assert np.isnan(one(both("a", gain))["loss_better"])


def test_seed_and_neighbours_do_not_change_an_interval():
    step, trend = both("a", FLAT + rise(4.5, 1.5)), both("b", FLAT + rise(4.85, 0.1))
    alone = emergence(step, QUICK)
    pd.testing.assert_frame_equal(alone, emergence(pd.concat([step, trend]).sample(frac=1, random_state=1), QUICK)[:1])
    assert not alone.equals(emergence(step, dataclasses.replace(QUICK, seed=1)))


def test_compressed_rows_are_not_read():
    rows = both("a", FLAT + rise(4.85, 0.1))
    pd.testing.assert_frame_equal(
        emergence(rows, QUICK), emergence(pd.concat([rows, rows.assign(compression="x", value=0)]), QUICK)
    )


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (both("a", TOSSED).query("rung in ('r0', 'r1', 'r5')"), "3 of the 4 rungs the rule asks for"),
        (both("a", TOSSED).query("seed == 0"), "1 of the 2 seeds the rule asks for on rung r0: no spread over seeds"),
        (both("a", TOSSED).query("rung != 'r2' or seed == 1"), "1 of the 2 seeds the rule asks for on rung r2"),
        (both("a", np.where(np.arange(30).reshape(6, 5) == 17, 1.0, 0.0)), "one model of 30 reaches the gate"),
    ],
)
def test_what_cannot_be_decided_says_why(rows, reason):
    row = one(rows)
    assert row["outcome"] == "undecided" and reason in row["reason"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (both("a", FLAT).assign(compression="wanda"), "emergence is read off dense rows"),
        (both("a", FLAT).drop(columns="compression"), "rows without compression"),
        (both("a", FLAT).replace({"value": {both("a", FLAT)["value"][3]: np.nan}}), "every score is finite.*ability a"),
        (pd.concat([both("a", FLAT)] * 2), "an item is scored once.*two of rung r0"),
    ],
)
def test_bad_rows_are_refused(rows, message):
    for function in (emergence, appearance):
        with pytest.raises(LabkitError, match=message):
            function(rows)


def test_appearance_counts_seeds_and_tests_for_two_groups():
    gain = np.zeros((6, 8))
    gain[5, 3:] = 1.0
    frame = appearance(ladder("a", exact_match=gain + noise(8, sd=0.01)))
    assert tuple(frame) == columns(Appearance)
    top = frame.iloc[5]
    assert (top["n_with"], top["n_seeds"], top["p"]) == (5, 8, 5 / 8)
    assert (top["low"], top["high"]) == pytest.approx((0.2961, 0.8829), abs=2e-3)  # qbeta(c(.025, .975), 5.5, 3.5)
    assert top["mean_with"] == pytest.approx(1, abs=0.02) and top["mean"] == pytest.approx(5 / 8, abs=0.02)
    assert top["dip_p"] < 0.05 and top["dip"] > 0.12
    assert np.isnan(frame["mean_with"][0]) and frame["dip_p"][0] > 0.05
    few = appearance(ladder("a", exact_match=gain[:, 3:6]))
    assert few["dip"].isna().all() and few["sarle"].isna().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate": 1.0}, "gate lies in"),
        ({"decades": 0}, "decades is above 0"),
        ({"min_rungs": 3}, "min_rungs is at least 4"),
        ({"min_seeds": 1}, "min_seeds is at least 2"),
    ],
)
def test_rules_are_checked(changes, message):
    with pytest.raises(LabkitError, match=message):
        Rule(**changes)
