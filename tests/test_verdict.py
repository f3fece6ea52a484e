import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from labkit.errors import LabkitError
from labkit.records import BRIER, DENSE, EXACT_MATCH, NLL_NATS, TOKEN_ACCURACY, ItemRow, columns
from labkit.statistics import Spread
from labkit.verdict import VERDICTS, Rule, VerdictRow, judge

QUICK = Rule()
CHANCE = {EXACT_MATCH: 0.25, TOKEN_ACCURACY: 0.25, NLL_NATS: 1.4, BRIER: 0.75}


def table(metric, means, compression=DENSE, items=200, ability="recall", rung="64x2", first=0):
    """Rows of one metric: seed k scores about ``means[k]``, exact match by tosses that every compression shares."""
    toss = np.random.default_rng(7).random((len(means), items))
    score = toss < np.reshape(means, (-1, 1)) if CHANCE[metric] == 0.25 else np.reshape(means, (-1, 1)) + 0.1 * toss
    seed, item = np.divmod(np.arange(score.size), items)
    row = ItemRow("run", "m", rung, 99_000, 0, compression, 0.5, ability, metric, 0, 0.0, CHANCE[metric])
    return pd.DataFrame({**dataclasses.asdict(row), "seed": seed + first, "item": item, "value": score.ravel() * 1.0})


def case(dense, compressed, nats=0.2, **options):
    """Dense and compressed rows, in exact match and in nats."""
    return pd.concat(
        [
            table(EXACT_MATCH, dense, **options),
            table(EXACT_MATCH, compressed, "wanda", **options),
            table(NLL_NATS, [0.2] * len(dense), **options),
            table(NLL_NATS, [nats] * len(compressed), "wanda", **options),
        ],
        ignore_index=True,
    )


def one(rows, **options):
    frame = judge(rows, **{"rule": QUICK, **options})
    assert len(frame) == 1
    return frame.iloc[0]


DENSE_SEEDS = [0.9, 0.92, 0.94, 0.91, 0.93]
KEPT = case(DENSE_SEEDS, DENSE_SEEDS)
BARELY = KEPT.assign(value=(KEPT["item"] % 100 < 41) * 1.0)  # every seed's score passes the gate, the bound does not


@pytest.mark.parametrize(
    ("verdict", "reason", "rows"),
    [
        ("kept", "90 % intervals 0.996 to 1.004, and on nats 1.000 to 1.000, lie within 0.95 to 1.05", KEPT),
        ("degraded", "is below 0.95", case(DENSE_SEEDS, [0.6] * 5)),
        ("lost", "is below 0.2", case(DENSE_SEEDS, [0.26] * 5)),
        ("undecided", "neither shows retention of 0.95 to 1.05 nor excludes it", case(DENSE_SEEDS, [0.9] * 4 + [0.6])),
        ("undecided", "but on nats 0.", case(DENSE_SEEDS, DENSE_SEEDS, nats=0.5)),
        ("undecided", "but on nats there is none", KEPT[KEPT["metric"] == EXACT_MATCH]),
        ("undecided", "but on nats there is none", KEPT.drop(KEPT.query("metric == 'nll_nats' and seed == 2").index)),
        ("undecided", "3 of the 5 seeds the rule asks for", case(DENSE_SEEDS[:3], DENSE_SEEDS[:3])),
        ("absent", "dense score 0.25", case([0.25] * 5, [0.4] * 5)),
        ("absent", "dense score 0.41 is not reliably 0.15 better than chance 0.25", BARELY),
    ],
)
def test_every_verdict_and_its_reason(verdict, reason, rows):
    row = one(rows)
    assert row["verdict"] == verdict and verdict in VERDICTS
    assert reason in row["reason"]


def test_columns_and_counts():
    row = one(KEPT)
    assert list(row.index) == list(columns(VerdictRow))
    keys = ["rung", "compression", "sparsity", "ability", "metric"]
    assert list(row[keys]) == ["64x2", "wanda", 0.5, "recall", EXACT_MATCH]
    assert tuple(row[["n_seeds", "n_items", "seeds_with", "seeds_all"]]) == (5, 200, 5, 5)


def test_retention_by_hand():
    rows = case([0.9] * 2, [0.5] * 2, nats=0.5, items=8)
    exact, dense = rows["metric"] == EXACT_MATCH, rows["compression"] == DENSE
    rows.loc[exact & dense, "value"] = [1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]  # 7/8 each
    rows.loc[exact & ~dense, "value"] = [1, 0, 1, 1, 1, 1, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0]  # 8/16
    rows.loc[~exact & dense, "value"] = 0.4
    rows.loc[~exact & ~dense, "value"] = 0.9
    row = one(rows)
    assert (row["dense"], row["compressed"], row["chance"]) == (0.875, 0.5, 0.25)
    assert row["retention"] == pytest.approx((0.5 - 0.25) / (0.875 - 0.25))
    assert row["nats_retention"] == pytest.approx((1.4 - 0.9) / (1.4 - 0.4))
    assert tuple(row[["right_to_wrong", "wrong_to_right"]]) == (7 / 16, 1 / 16)
    assert row["p_flips"] == pytest.approx(stats.binomtest(1, 8).pvalue)


def test_the_interval_is_that_of_fieller_over_seeds():
    """One item per seed leaves only seeds; the closed form is written out with scipy's t."""
    generator = np.random.default_rng(0)
    n = 40  # answers enough to show that the dense models are above chance
    dense, compressed = 0.8 + 0.05 * generator.standard_normal((2, n))
    rows = case([0.5] * n, [0.5] * n, items=1)
    for compression, scores in ((DENSE, dense), ("wanda", compressed)):
        where = (rows["metric"] == EXACT_MATCH) & (rows["compression"] == compression)
        rows.loc[where, "value"] = scores
    x, y = compressed - 0.25, dense - 0.25
    covariance, t = np.cov(x, y) / n, stats.t.ppf(0.975, n - 1)
    allowance = -np.log(0.025) / n  # of one item, per seed
    a = y.mean() ** 2 - t**2 * covariance[1, 1]
    b = x.mean() * y.mean() - t**2 * covariance[0, 1]
    c = x.mean() ** 2 - t**2 * covariance[0, 0] - allowance**2
    row, spread = one(rows, rule=Rule(gate=1e-9)), Spread.of(np.stack([x, y])[:, :, None])
    assert row["verdict"] != "absent"
    shift = spread.shift((1, -x.mean() / y.mean()), 0.95) / y.mean()
    assert (row["low"] - shift, row["high"] - shift) == pytest.approx(np.sort(np.roots([a, -2 * b, c])))


def test_p_of_kept_and_of_lost_agree_with_the_intervals():
    """p < .05 for kept where the 90 % interval lies within, p < .025 for lost where the 95 % one lies below."""
    generator, pieces = np.random.default_rng(5), []
    for number, centre in enumerate((*np.linspace(0.84, 0.9, 12), *np.linspace(0.3, 0.45, 12))):
        compressed = centre + 0.02 * generator.standard_normal(6)
        pieces.append(case([0.9] * 6, compressed, items=400, ability=f"a{number:02d}"))
    frame = judge(pd.concat(pieces))
    inner = (frame["low90"] >= 0.95) & (frame["high90"] <= 1.05)
    np.testing.assert_array_equal(frame["p_kept"] < 0.05, inner & (frame["nats_low90"] > 0.95))
    np.testing.assert_array_equal(frame["p_lost"] < 0.025, frame["high"] < 0.20)
    assert 2 < inner.sum() < 22 and 2 < (frame["high"] < 0.20).sum() < 22


def test_dense_seeds_that_were_not_compressed_are_named():
    rows = KEPT.query("compression == 'dense' or seed < 3")
    row = one(rows)
    assert tuple(row[["verdict", "n_seeds", "seeds_with"]]) == ("undecided", 3, 5)
    assert "dense seeds 3, 4 have it and were not compressed" in row["reason"]


def test_scores_that_are_all_the_same_are_named():
    exact = KEPT["metric"] == EXACT_MATCH
    row = one(KEPT.assign(value=KEPT["value"].mask(exact & (KEPT["compression"] == "wanda"), 0.0)))
    assert row["verdict"] == "lost" and row["reason"].endswith("all compressed scores are 0")
    assert row["low"] < row["retention"] < row["high"]
    perfect = one(KEPT.assign(value=np.where(KEPT["metric"] == EXACT_MATCH, 1.0, KEPT["value"])))
    assert perfect["reason"].endswith("all dense scores are 1; all compressed scores are 1")
    assert perfect["low"] < 1 < perfect["high"]


def test_nats_have_no_flips():
    assert one(KEPT[KEPT["metric"] == NLL_NATS])[["right_to_wrong", "wrong_to_right", "p_flips"]].isna().all()


def test_order_of_rows_does_not_matter():
    rows = pd.concat([KEPT, case(DENSE_SEEDS, [0.6] * 5, ability="facts"), case([0.25] * 5, [0.3] * 5, rung="16x1")])
    shuffled = rows.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(judge(rows, rule=QUICK), judge(shuffled, rule=QUICK))


def test_a_group_is_judged_alike_alone_and_among_others():
    others = pd.concat([KEPT, case(DENSE_SEEDS, [0.6] * 5, ability="facts")])
    frame = judge(others, rule=QUICK)
    pd.testing.assert_series_equal(frame[frame["ability"] == "recall"].iloc[0], one(KEPT), check_names=False)


def test_rungs_are_sorted_by_size_not_by_name():
    small = case(DENSE_SEEDS, DENSE_SEEDS, rung="9x1").assign(params=9)
    large = case(DENSE_SEEDS, DENSE_SEEDS, rung="128x2").assign(params=400_000)
    assert list(judge(pd.concat([large, small]), rule=QUICK)["rung"]) == ["9x1", "128x2"]


def test_one_seed_has_an_estimate_but_no_bounds():
    row = one(case([0.9], [0.8]))
    assert 0 < row["retention"] < 1
    bounds = row[["low", "high", "low90", "high90", "nats_low90", "nats_high90"]].astype(float)
    assert bounds.isna().all()
    assert row["verdict"] == "undecided"
    assert row["reason"] == "1 of the 5 seeds the rule asks for, and one seed gives no interval"


def test_seeds_without_the_ability_are_left_aside_and_counted():
    """Four seeds have it, one is at chance and stays there: its noise must not enter the ratio."""
    rows = case([0.9, 0.25, 0.9, 0.9, 0.9], [0.9, 0.1, 0.9, 0.9, 0.9])
    row = one(rows, rule=dataclasses.replace(QUICK, min_seeds=4))
    assert tuple(row[["verdict", "n_seeds", "seeds_with", "seeds_all"]]) == ("kept", 4, 4, 5)
    assert "4 of 5 dense seeds have it (95 % interval 0.37 to 0.98)" in row["reason"]
    pd.testing.assert_series_equal(
        row[:16], one(rows[rows["seed"] != 1], rule=dataclasses.replace(QUICK, min_seeds=4))[:16]
    )
    assert one(rows)["verdict"] == "undecided"


def test_an_absent_ability_has_no_retention():
    row = one(case([0.25] * 5, [0.4] * 5))
    assert row[["retention", "low", "high", "nats_retention"]].isna().all()
    assert tuple(row[["n_seeds", "seeds_with", "seeds_all"]]) == (0, 0, 5)
    assert row["dense"] < row["compressed"]


def test_scores_equal_to_chance_are_absent_also_where_chance_is_perfect():
    assert one(KEPT.assign(value=KEPT["chance"]))["verdict"] == "absent"
    assert one(KEPT.assign(value=1.0, chance=1.0).query("metric == 'exact_match'"))["verdict"] == "absent"


def test_token_accuracy_stands_in_for_exact_match_only_where_there_is_none():
    tokens = [table(TOKEN_ACCURACY, DENSE_SEEDS), table(TOKEN_ACCURACY, [0.5] * 5, "wanda")]
    assert one(pd.concat([KEPT, *tokens]))["metric"] == EXACT_MATCH
    assert one(pd.concat([*tokens, KEPT[KEPT["metric"] == NLL_NATS]]))["metric"] == TOKEN_ACCURACY


def test_an_ability_in_nats_alone_is_judged_with_less_being_better():
    nats = KEPT[KEPT["metric"] == NLL_NATS]
    assert one(nats)["verdict"] == "kept"
    worse = one(pd.concat([table(NLL_NATS, [0.2] * 5), table(NLL_NATS, [0.9] * 5, "wanda")]))
    assert worse["verdict"] == "degraded" and worse["compressed"] > worse["dense"]
    assert worse["retention"] == worse["nats_retention"]
    assert one(pd.concat([table(NLL_NATS, [1.4] * 5), table(NLL_NATS, [0.2] * 5, "wanda")]))["verdict"] == "absent"


def test_the_margin_can_be_changed_only_openly():
    rows = case(DENSE_SEEDS, np.subtract(DENSE_SEEDS, 0.04))
    assert one(rows)["verdict"] != "kept"
    wide = one(rows, margin=0.2)
    assert wide["verdict"] == "kept" and "within 0.8 to 1.2" in wide["reason"]


def test_nothing_to_judge_is_an_empty_frame():
    for rows in (KEPT[:0], KEPT[KEPT["compression"] == DENSE]):
        frame = judge(rows)
        assert frame.empty and list(frame.columns) == list(columns(VerdictRow))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": 0}, "margin lies in (0, 1); got 0"),
        ({"margin": 1.0}, "margin lies in (0, 1); got 1.0"),
        ({"gate": -0.1}, "gate lies in (0, 1); got -0.1"),
        ({"margin": 0.5, "lost": 0.5}, "lost lies below 1 - margin; got 0.5. Give less than 0.5."),
        ({"min_seeds": 1}, "min_seeds is at least 2; got 1"),
    ],
)
def test_rules_that_make_no_sense(options, message):
    with pytest.raises(LabkitError) as error:
        Rule(**options)
    assert message in str(error.value)


def test_a_margin_given_to_judge_is_checked_too():
    with pytest.raises(LabkitError, match="margin lies in"):
        judge(KEPT, margin=1.5)


SECOND = "rung 64x2, ability recall, metric exact_match, compression dense, sparsity 0.5, seed 0, item 1"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (KEPT.drop(columns=["item", "chance"]), "rows without item, chance"),
        (KEPT.assign(value=KEPT["value"].where(KEPT.index != 1)), f"complete and finite; got '{SECOND}'"),
        (KEPT.assign(chance=KEPT["chance"].where(KEPT.index != 1, np.inf)), f"complete and finite; got '{SECOND}'"),
        (KEPT.assign(model=KEPT["model"].where(KEPT.index != 1)), f"complete and finite; got '{SECOND}'"),
        (pd.concat([KEPT, KEPT[1:2]]), f"an item is scored once; got 'two of {SECOND.replace('0.5', '0.0')}'"),
        (KEPT.drop(index=1), "every seed scores the same items"),
        (KEPT.assign(item=KEPT["item"].where(KEPT.index != 199, 500)), "every seed scores the same items"),
        (KEPT.query("compression == 'wanda' or seed != 3"), "no dense rows for rung 64x2, compression wanda"),
        (KEPT.query("compression == 'wanda'"), "metric exact_match, seed 0"),
        (KEPT.query("compression == 'wanda' or item < 100"), "score the same items, at the same chance"),
        (KEPT.assign(chance=np.where(KEPT["compression"] == DENSE, 0.1, 0.2)), "at the same chance; got 'rung 64x2"),
        (KEPT.query("metric == 'exact_match' or item < 100"), "all metrics of an ability score the same items"),
        (KEPT.query("metric == 'nll_nats' or compression == 'dense'"), "recall is judged on one metric; got 'no rows"),
        (KEPT.assign(metric=BRIER).drop_duplicates(["seed", "item", "compression"]), "judged by one of exact_match"),
    ],
)
def test_bad_rows_are_named_and_never_averaged_over(rows, message):
    with pytest.raises(LabkitError) as error:
        judge(rows, rule=QUICK)
    assert message in str(error.value)
