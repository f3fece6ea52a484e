import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from labkit import compression
from labkit.errors import LabkitError
from labkit.hypotheses import HYPOTHESES, OUTCOMES, Evidence, HypothesisRow, examine, retained
from labkit.hypotheses.after import _amount
from labkit.hypotheses.base import about, by_criterion, damage, healing
from labkit.records import DENSE, EXACT_MATCH, NLL_NATS, columns

KINDS = pd.DataFrame({"ability": ["recall", "facts"], "outcome": ["emergent", "always there"]})


def rows(ability, gains, compression=DENSE, rung="64x2", items=1, metric=EXACT_MATCH):
    """Rows of one rung; `gains`: one per seed. Chance is 0, so that a value is a gain."""
    seed, item = np.divmod(np.arange(len(gains) * items), items)
    frame = pd.DataFrame({"seed": seed, "item": item, "value": np.repeat(np.asarray(gains, float), items)})
    constant = {"run": "r", "model": "m", "rung": rung, "params": 100, "sparsity": 0.5 * (compression != DENSE)}
    return frame.assign(compression=compression, ability=ability, metric=metric, chance=0.0, **constant)


def evidence(recall, facts, compression="wanda", verdicts=None, dense=1.0):
    n = len(recall)
    parts = [rows("recall", [dense] * n), rows("facts", [1.0] * n)]
    parts += [rows("recall", recall, compression), rows("facts", facts, compression)]
    return Evidence(pd.concat(parts, ignore_index=True), KINDS, verdicts)


def one(name, given):
    frame = examine(given, [hypothesis for hypothesis in HYPOTHESES if hypothesis.name == name])
    assert tuple(frame) == columns(HypothesisRow) and len(frame) == 1 and frame["outcome"][0] in OUTCOMES
    return frame.iloc[0]


JITTER = np.array([-0.02, -0.01, 0.0, 0.01, 0.02])


def test_all_ten_are_there_in_order_with_rule_and_source():
    frame = examine(evidence([0.9] * 5, [0.5] * 5))
    assert list(frame["name"]) == [f"H{n}" for n in range(1, 11)]
    assert (frame[["statement", "rule", "published", "source", "reason"]].map(len) > 5).all().all()


@pytest.mark.parametrize(
    ("name", "outcome", "recall", "facts"),
    [
        ("H1", "supported", 0.9 + JITTER, 0.5 - JITTER),
        ("H1", "refuted", 0.7 + JITTER, 0.7 + 0 * JITTER),  # equal within 0.1
        ("H1", "undecided", 0.7 + 10 * JITTER, 0.7 - 10 * JITTER),
        ("H2", "supported", 0.5 + JITTER, 0.95 - JITTER),
        ("H2", "refuted", 0.99 + JITTER, 0.95 - JITTER),
        ("H2", "undecided", 0.85 + 5 * JITTER, 0.95 + 0 * JITTER),
        ("H2", "no rows", 0.2 + JITTER, 0.5 + JITTER),  # facts do not keep 0.8
        ("H2", "no rows", 0.2 + JITTER, 0.75 + 5 * JITTER),  # one model's do, not those of all on average
    ],
)
def test_known_truths(name, outcome, recall, facts):
    row = one(name, evidence(recall, facts))
    assert row["outcome"] == outcome
    if outcome == "supported":
        v = recall - facts
        expected = stats.ttest_1samp(
            v, 0 if name == "H1" else -0.1, alternative="two-sided" if name == "H1" else "less"
        )
        assert row["p"] == pytest.approx(expected.pvalue)
        assert (row["low"], row["high"]) == pytest.approx(tuple(stats.ttest_1samp(v, 0).confidence_interval()))


def test_few_dense_models_and_healed_or_random_ones_decide_nothing():
    row = one("H1", evidence(0.9 + JITTER[:3], 0.5 - JITTER[:3]))
    assert row["outcome"] == "undecided" and "3 of the 5 dense models" in row["reason"]
    for compression in ("random", "wanda + lora 500k"):
        assert one("H1", evidence(0.9 + JITTER, 0.5 - JITTER, compression))["outcome"] == "no rows"


def test_what_a_dense_model_lacks_it_cannot_keep():
    kept = retained(evidence([0.1] * 2, [0.5] * 2, dense=0.1).rows)
    assert kept.loc[kept["ability"] == "recall", "kept"].isna().all()
    assert kept.loc[(kept["ability"] == "facts") & (kept["compression"] == "wanda"), "kept"].tolist() == [0.5, 0.5]


def test_missing_rows_say_what_is_needed():
    frame = examine(evidence([0.9] * 5, [0.5] * 5)).set_index("name")
    for name, need in (
        ("H3", "recovery"),
        ("H5", "distilled"),
        ("H6", "shrink"),
        ("H9", "quantised"),
        ("H10", "recovery"),
    ):
        assert frame.loc[name, "outcome"] == "no rows" and need in frame.loc[name, "reason"]
    assert "needs a column frequency" in frame.loc["H7", "reason"]
    assert "needs verdicts" in frame.loc["H8", "reason"]


@pytest.mark.parametrize(("slope", "outcome"), [(1.0, "supported"), (-1.0, "refuted")])
def test_rare_facts(slope, outcome):
    frequency = np.arange(1, 31)
    parts = [
        rows("facts", [0.0] * 5, items=30, metric=NLL_NATS),
        rows("facts", [0.0] * 5, "wanda", items=30, metric=NLL_NATS),
    ]
    noise = np.random.default_rng(0).normal(0, 0.3, 150)
    parts[1]["value"] = 3 - slope * np.log(np.tile(frequency, 5)) + noise
    frame = pd.concat(parts, ignore_index=True).assign(chance=5.0)
    frame["frequency"] = frequency[frame["item"]]
    row = one("H7", Evidence(frame, KINDS))
    assert row["outcome"] == outcome and np.sign(row["estimate"]) == slope


def test_flips_are_counted_where_an_ability_is_kept():
    dense, pruned = rows("recall", [1.0] * 5, items=100), rows("recall", [1.0] * 5, "wanda", items=100)
    pruned.loc[pruned["item"] < 3 + pruned["seed"] % 2, "value"] = 0.0
    verdicts = pd.DataFrame(
        [("64x2", "wanda", 0.5, "recall", "kept")], columns=["rung", "compression", "sparsity", "ability", "verdict"]
    )
    given = Evidence(pd.concat([dense, pruned], ignore_index=True), KINDS, verdicts)
    row = one("H8", given)
    assert row["outcome"] == "supported" and row["estimate"] == pytest.approx(0.034)
    same = one(
        "H8", dataclasses.replace(given, rows=pd.concat([dense, dense.assign(compression="wanda", sparsity=0.5)]))
    )
    assert same["outcome"] == "refuted" and same["estimate"] == 0


@pytest.mark.parametrize(("apart", "outcome"), [(0.3, "supported"), (0.0, "undecided")])
def test_profiles_at_equal_nats(apart, outcome):
    generator, parts = np.random.default_rng(1), []
    for compression, rung, shift in ((DENSE, "32x2", 0.0), (DENSE, "64x2", 0.4), ("wanda", "64x2", apart)):
        for ability, sign in (("recall", 1), ("facts", -1)):
            gains = 0.5 + sign * shift + 0.03 * generator.normal(size=8)
            nats = 1.0 + (shift == 0.4) + 0 * gains
            parts += [
                rows(ability, gains, compression, rung),
                rows(ability, nats, compression, rung, metric=NLL_NATS).assign(chance=3.0),
            ]
    row = one("H4", Evidence(pd.concat(parts, ignore_index=True), KINDS))
    assert row["outcome"] == outcome and "dense 32x2" in row["reason"]


def test_support_has_to_survive_the_correction():
    given = evidence(0.7 + JITTER, 0.68 - np.array([0.0, 0.01, 0.02, 0.01, 0.0]))
    alone = one("H1", given)
    first = next(hypothesis for hypothesis in HYPOTHESES if hypothesis.name == "H1")
    many = examine(given, [dataclasses.replace(first, name=f"H1 {n}") for n in range(12)])
    assert alone["outcome"] == "supported" and (many["outcome"] == "undecided").all()
    assert many["reason"].str.endswith("not after Holm's correction").all()


def test_bad_outcomes_are_refused():
    given = evidence([0.9] * 2, [0.5] * 2)
    for outcomes, message in ((KINDS[["ability"]], "no outcome"), (pd.concat([KINDS, KINDS]), "two of recall")):
        with pytest.raises(LabkitError, match=message):
            examine(dataclasses.replace(given, outcomes=outcomes))
    with pytest.raises(LabkitError, match="an item is scored once"):
        examine(dataclasses.replace(given, rows=pd.concat([given.rows, given.rows])))


TOKENS = [200_000, 1_500_000, 12_200_000]


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("steps", [{"recover": {}}, {"train": {}}, {"train": {"student": "64x2"}}, {"distill": {"student": "64x2"}}])
def test_whatever_a_study_calls_training_is_no_pruning(steps, tokens):
    (step, asked), = steps.items()
    pruned = "prune", (("criterion", "wanda"), ("sparsity", 0.5))
    name = compression.Compression((pruned, (step, tuple((asked | {"tokens": tokens}).items())))).name
    alone = name.removeprefix("wanda + ")
    assert (damage(name), healing(name), damage(alone), healing(alone)) == ("wanda", alone, "", alone)
    assert not by_criterion(name) and not by_criterion(alone)
    assert _amount(alone)[1] == tokens


def test_compressed_models_have_scored_the_items_of_their_parents():
    given = evidence(0.5 + JITTER, 0.9 - JITTER)
    wide = pd.concat([given.rows, given.rows.assign(item=1)], ignore_index=True)
    cut = (wide["compression"] == "wanda") & (wide["ability"] == "recall") & (wide["item"] == 1)
    for changed in (wide[~cut], wide.assign(item=wide["item"].mask(cut, 2))):
        with pytest.raises(LabkitError, match="score the same items; got 'rung 64x2, seed 0, compression wanda.*recall"):
            examine(Evidence(changed, KINDS))
    assert one("H1", Evidence(wide, KINDS))["outcome"] == "supported"


def test_conditions_are_picked_by_their_mean_so_that_luck_in_facts_makes_no_difference():
    generator, found = np.random.default_rng(0), []
    for _ in range(40):  # recall and facts keep as much, but for noise of each model
        parts = [rows("recall", [1.0] * 5), rows("facts", [1.0] * 5)]
        for n, mean in enumerate((0.6, 0.7, 0.8, 0.9)):
            parts += [rows(a, mean + 0.15 * generator.normal(size=5), f"wanda{n}") for a in ("recall", "facts")]
        found.append(one("H2", Evidence(pd.concat(parts, ignore_index=True), KINDS))["estimate"])
    assert abs(np.nanmean(found)) < 0.04


def test_profiles_are_compared_where_both_were_measured_and_not_after_random_masks():
    def given(name, abilities=("recall", "facts")):
        parts = [rows(a, 0.5 + JITTER, c, r) for a in ("recall", "facts") for c, r in ((DENSE, "32x2"), (DENSE, "64x2"))]
        parts += [rows(a, 0.5 + JITTER, name) for a in abilities]
        parts += [part.assign(metric=NLL_NATS, chance=3.0) for part in parts]
        addition = [rows("addition", 0.9 + JITTER, DENSE, r) for r in ("32x2", "64x2")]  # never asked after pruning
        return Evidence(pd.concat([*parts, *addition], ignore_index=True), KINDS)

    row = one("H4", given("wanda"))
    assert (row["outcome"], row["estimate"]) == ("undecided", pytest.approx(0)) and row["p"] == 1
    for name in ("random 2:4", "drop-layers 1 by random"):
        assert one("H4", given(name))["outcome"] == "no rows"


def test_flips_are_of_items_and_seeds_that_have_a_dense_answer_and_the_ability():
    dense, pruned = rows("recall", [1.0] * 6, items=100), rows("recall", [1.0] * 6, "wanda", items=100)
    dense.loc[dense["seed"] == 5, "value"] = 0.0  # this one does not have it, and the pruned one answers otherwise
    verdicts = pd.DataFrame([("64x2", "wanda", 0.5, "recall", "kept")], columns=["rung", "compression", "sparsity", "ability", "verdict"])
    row = one("H8", Evidence(pd.concat([dense, pruned], ignore_index=True), KINDS, verdicts))
    assert (row["estimate"], row["n_models"], row["outcome"]) == (0, 5, "refuted")


@pytest.mark.parametrize(("claim", "p"), [("<", 1.0), (">", 1 / 32), ("!=", 1 / 16)])
def test_models_that_agree_to_the_last_digit_are_no_certainty(claim, p):
    found = about(0.25 + np.array([0, 1e-12, 0, 0, 2e-12]), claim, 0.0, "x")
    assert found.p == p and (found.low, found.high) == pytest.approx((0.25, 0.25)) and found.reason == "x; all are equal, p is of a sign test"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: dataclasses.replace(e, rows=e.rows.iloc[:0]), "no rows"),
        (lambda e: dataclasses.replace(e, rows=e.rows.drop(columns="sparsity")), "rows without sparsity"),
        (lambda e: dataclasses.replace(e, rows=e.rows.assign(value="high")), "the column value holds numbers; got 'high'"),
        (lambda e: dataclasses.replace(e, rows=e.rows.assign(compression=None)), "every row tells what was scored"),
        (lambda e: dataclasses.replace(e, verdicts=pd.DataFrame({"ability": ["recall"]})), "no rung, compression, sparsity, verdict"),
    ],
)
def test_evidence_that_is_not_whole_is_refused(change, message):
    with pytest.raises(LabkitError, match=message):
        examine(change(evidence([0.9] * 5, [0.5] * 5)))


def test_profiles_without_an_ability_in_common_are_no_pair():
    parts = [rows(a, 0.5 + JITTER, c, r) for a, c, r in (("recall", DENSE, "32x2"), ("recall", DENSE, "64x2"), ("facts", DENSE, "64x2"))]
    nats = [rows("recall", 0.5 + JITTER, c, r, metric=NLL_NATS).assign(chance=3.0) for c, r in ((DENSE, "32x2"), (DENSE, "64x2"), ("wanda", "64x2"))]
    for more in ([rows("facts", 0.5 + JITTER, "wanda")], []):
        assert one("H4", Evidence(pd.concat([*parts, *nats, *more], ignore_index=True), KINDS))["outcome"] == "no rows"
