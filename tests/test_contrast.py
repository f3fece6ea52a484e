import dataclasses

import numpy as np
import pandas as pd
import pytest

from labkit.contrast import (
    ANSWERS,
    EffectiveScale,
    Rule,
    SeedQuestion,
    SizeMatched,
    effective_scale,
    seed_question,
    size_matched,
)
from labkit.errors import LabkitError
from labkit.records import DENSE, EXACT_MATCH, NLL_NATS, columns

PARAMS = {f"r{n}": round(10 ** (4 + n / 2)) for n in range(5)}  # half a decade apart
OUTCOMES = pd.DataFrame(
    {"ability": ["chain", "facts", "markov"], "outcome": ["emergent", "always there", "always there"]}
)
QUICK = Rule(draws=300)
CHAIN, FACTS, NATS = (0.0, 0.0, 0.5, 1.0, 1.0), (0.6, 0.7, 0.8, 0.9, 1.0), (2.5, 2.4, 2.3, 2.2, 2.1)


def rows(ability, gains, compression=DENSE, seeds=5, metric=EXACT_MATCH, spread=0.0):
    """Rows with one item per model, `gains`: rung -> mean gain. Nats are given as they are."""
    cells = []
    for rung, gain in gains.items():
        offsets = spread * np.random.default_rng(len(ability)).normal(size=seeds)
        cells += [(rung, PARAMS[rung], seed, gain + offsets[seed]) for seed in range(seeds)]
    frame = pd.DataFrame(cells, columns=["rung", "params", "seed", "value"])
    constant = {"run": "r", "model": "m", "compression": compression, "sparsity": 0.5 * (compression != DENSE)}
    return frame.assign(
        ability=ability, metric=metric, item=0, chance=0.0 if metric == EXACT_MATCH else 3.3, **constant
    )


def dense(**options):
    curves = {"chain": CHAIN, "facts": FACTS}
    parts = [rows(ability, dict(zip(PARAMS, curve)), **options) for ability, curve in curves.items()]
    return pd.concat([*parts, rows("markov", dict(zip(PARAMS, NATS)), metric=NLL_NATS, **options)], ignore_index=True)


def compressed(chain, facts, nats, rung="r4", **options):
    parts = [rows("chain", {rung: chain}, "wanda", **options), rows("facts", {rung: facts}, "wanda", **options)]
    return pd.concat([*parts, rows("markov", {rung: nats}, "wanda", metric=NLL_NATS, **options)], ignore_index=True)


def scale(rule=QUICK, rung="r4", **gains):
    frame = effective_scale(dense(), compressed(**({"chain": 1.0, "facts": 1.0, "nats": 2.1} | gains), rung=rung), rule)
    assert tuple(frame) == columns(EffectiveScale)
    return frame.set_index("ability")


def question(chain, facts, nats, outcomes=OUTCOMES, seeds=5, spread=0.01):
    options = {"seeds": seeds, "spread": spread}
    frame = seed_question(pd.concat([dense(**options), compressed(chain, facts, nats, **options)]), outcomes, QUICK)
    assert tuple(frame) == columns(SeedQuestion) and len(frame) == 1 and frame["answer"][0] in ANSWERS
    return frame.iloc[0]


@pytest.mark.parametrize(("gain", "decades"), [(0.65, 4.25), (0.8, 5.0), (0.975, 5.875), (1.0, 6.0)])
def test_effective_scale_is_exact_on_a_rising_curve(gain, decades):
    row = scale(facts=gain).loc["facts"]
    assert row["effective"] == pytest.approx(10**decades, rel=1e-3) and row["bounded"] == ""
    assert (row["low"], row["high"]) == (pytest.approx(row["effective"]), pytest.approx(row["effective"]))
    assert row["share"] == pytest.approx(10 ** (decades - 6), rel=1e-3)


def test_effective_scale_of_nats_counts_what_is_lower_as_better():
    assert scale(nats=2.25).loc["markov", "effective"] == pytest.approx(10**5.25, rel=1e-3)


def test_beyond_the_ladder_only_a_bound_is_given():
    below, above = scale(facts=0.5).loc["facts"], scale(facts=1.2).loc["facts"]
    assert (below["bounded"], below["effective"]) == ("at most", pytest.approx(PARAMS["r0"]))
    assert (above["bounded"], above["effective"]) == ("at least", pytest.approx(PARAMS["r4"]))


def test_on_a_level_stretch_the_size_nearest_to_the_parent_is_given():
    assert scale(chain=1.0).loc["chain", "effective"] == pytest.approx(PARAMS["r4"])
    assert scale(chain=0.995).loc["chain", "effective"] == pytest.approx(PARAMS["r4"])  # within the resolution
    exact = scale(Rule(draws=100, resolution=0.0), chain=0.995).loc["chain", "effective"]
    assert exact == pytest.approx(10 ** (5 + 0.5 * 0.99), rel=1e-3)
    assert scale(chain=0.0).loc["chain", "effective"] == pytest.approx(PARAMS["r1"], rel=1e-3)


def test_what_the_parent_lacks_has_no_effective_scale():
    row = scale(rung="r1", chain=0.3).loc["chain"]
    assert np.isnan(row["effective"]) and "gain 0.00 is below the gate 0.2" in row["reason"]


def test_one_seed_gives_a_size_without_an_interval():
    frame = effective_scale(dense(), compressed(0.5, 0.8, 2.2, seeds=1), QUICK).set_index("ability")
    row = frame.loc["facts"]
    assert row["effective"] == pytest.approx(1e5, rel=1e-3)
    assert np.isnan([row["low"], row["high"]]).all() and row["reason"] == "one seed gives no interval"


def test_the_interval_of_a_size_holds_the_truth_and_narrows_with_seeds():
    def width(seeds):
        noisy = [rows("facts", dict(zip(PARAMS, FACTS)), seeds=seeds, spread=0.02)]
        frame = effective_scale(pd.concat(noisy), rows("facts", {"r4": 0.8}, "wanda", seeds=seeds, spread=0.02), QUICK)
        assert frame["low"][0] < 1e5 < frame["high"][0] or seeds > 3
        return np.log(frame["high"][0] / frame["low"][0])

    assert width(40) < width(3)


@pytest.mark.parametrize(
    ("answer", "reason", "chain", "facts"),
    [
        ("emergence lost", "is above 0.1", 0.2, 0.98),
        ("redundancy stripped", "emergent abilities are kept", 1.0, 1.0),
        ("undecided", "nor shows that emergent abilities are kept", 0.5, 0.5),  # both alike: damage, not this one
        ("undecided", "emergent abilities lose less than always-there ones", 0.98, 0.5),
    ],
)
def test_known_losses_are_answered(answer, reason, chain, facts):
    row = question(chain, facts, 2.1)
    assert row["answer"] == answer and reason in row["reason"]
    assert row["contrast"] == pytest.approx(facts - chain, abs=0.02)
    assert row["low"] <= row["contrast"] <= row["high"]
    assert row["abilities"] == "chain | facts"


def test_a_model_compressed_to_a_smaller_dense_one_is_not_beyond_it():
    row = question(0.5, 0.8, 2.3)
    assert row["matched_params"] == pytest.approx(1e5, rel=0.1)
    assert row["contrast"] == pytest.approx(0.3, abs=0.02) and row["matched_contrast"] == pytest.approx(0.3, abs=0.05)
    assert row["beyond_low"] < 0 < row["beyond_high"] and abs(row["beyond"]) < 0.05


def test_identical_models_have_a_contrast_that_covers_zero():
    row = question(1.0, 1.0, 2.1)
    assert row["low"] <= 0 <= row["high"] and row["contrast"] == pytest.approx(0, abs=1e-9)
    assert row["matched_params"] == pytest.approx(PARAMS["r4"])
    assert row["matched_low"] <= 0 <= row["matched_high"] or row["matched_contrast"] == pytest.approx(0, abs=0.02)


def test_below_chance_nothing_more_is_lost():
    assert question(-0.4, 0.0, 9.0)["emergent"] == pytest.approx(1.0)


def test_no_dense_model_with_that_loss_is_said():
    row = question(0.2, 0.9, 5.0)
    assert row["matched_bounded"] == "at most" and np.isnan(row["beyond"])
    assert "no dense rung has the language-model loss 5.0" in row["reason"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"seeds": 3}, "3 of the 5 seeds the rule asks for"),
        ({"outcomes": OUTCOMES[1:]}, "the dense parents have no emergent ability"),
        ({"outcomes": OUTCOMES[:1]}, "the dense parents have no always-there ability"),
    ],
)
def test_what_cannot_be_answered_says_why(options, reason):
    row = question(0.2, 0.98, 2.1, **options)
    assert row["answer"] == "undecided" and reason in row["reason"]


def test_bad_outcomes_and_rules_are_refused():
    for outcomes, message in (
        (OUTCOMES.drop(columns="outcome"), "no outcome"),
        (pd.concat([OUTCOMES, OUTCOMES]), "two of chain"),
    ):
        with pytest.raises(LabkitError, match=message):
            question(0.2, 0.9, 2.1, outcomes)
    for changes, message in (
        ({"gate": 0}, "gate"),
        ({"min_seeds": 1}, "min_seeds"),
        ({"resolution": -1}, "resolution"),
    ):
        with pytest.raises(LabkitError, match=message):
            dataclasses.replace(QUICK, **changes)


# -- the dense model of equal size ------------------------------------------------------------------------------------


def test_the_smaller_rung_is_the_one_nearest_to_the_share_and_the_ratio_is_of_means():
    frame = size_matched(dense(spread=0.01), share=0.3)
    assert tuple(frame) == columns(SizeMatched) and list(frame["rung"].unique()) == ["r1", "r2", "r3", "r4"]
    row = frame[(frame.rung == "r3") & (frame.ability == "facts")].iloc[0]
    assert (row.control, row.params, row.control_params, row.n_seeds) == ("r2", PARAMS["r3"], PARAMS["r2"], 5)
    assert row.ratio == pytest.approx(0.8 / 0.9, abs=0.02) and row.low < row.ratio < row.high
    assert frame[(frame.rung == "r1") & (frame.ability == "chain")].ratio.isna().all()  # r1 has none of it
    whole = frame[(frame.rung == "r4") & (frame.ability == "chain")].iloc[0]
    assert whole.low < 1 < whole.high  # r3 is as able as r4
    with pytest.raises(LabkitError, match="lies in \\(0, 1\\); got 1.5"):
        size_matched(dense(), share=1.5)


@pytest.mark.parametrize(("have", "answered"), [(8, True), (5, True), (4, False), (1, False)])
def test_an_ability_counts_if_enough_parents_have_it(have, answered):
    frame = pd.concat([dense(seeds=8), compressed(0.0, 1.0, 2.1, seeds=8)], ignore_index=True)
    frame.loc[(frame["ability"] == "chain") & (frame["seed"] >= have), "value"] = 0.0
    row = seed_question(frame, OUTCOMES, QUICK).iloc[0]
    if answered:
        assert (row["answer"], row["n_seeds"], row["abilities"]) == ("emergence lost", have, "chain | facts")
    else:
        assert row["answer"] == "undecided" and np.isnan(row["low"]) and row["abilities"] == " | facts"
        assert f"without chain ({have} parents have it)" in row["reason"]


def test_the_interval_of_a_size_holds_the_truth_as_often_as_it_says():
    generator, hits = np.random.default_rng(0), 0
    for _ in range(200):
        frame = rows("facts", dict(zip(PARAMS, FACTS)))
        frame["value"] += 0.03 * generator.normal(size=len(frame))
        parent = frame.loc[frame["rung"] == "r4", "value"].to_numpy()
        after = rows("facts", {"r4": 0.0}, "wanda").assign(value=parent - 0.2 + 0.03 * generator.normal(size=5))
        row = effective_scale(frame, after, Rule(draws=100)).iloc[0]
        hits += row["low"] <= 1e5 <= row["high"]
    assert 0.91 <= hits / 200 <= 0.99


def test_seeds_that_were_not_compressed_leave_the_interval_and_the_parents_own_score():
    before, after = dense(seeds=20, spread=0.02), compressed(1.0, 0.8, 2.2, seeds=3, spread=0.02)
    after.loc[after["ability"] == "chain", "value"] = before.loc[(before["rung"] == "r4") & (before["ability"] == "chain"), "value"].to_numpy()[:3]
    before.loc[(before["rung"] == "r4") & (before["seed"] >= 3) & (before["ability"] == "chain"), "value"] = 0.0
    frame = effective_scale(before, after, QUICK).set_index("ability")
    assert (frame["low"] <= frame["effective"]).all() and (frame["effective"] <= frame["high"]).all()
    assert frame["low"].min() >= PARAMS["r0"] * 0.999 and frame["high"].max() <= PARAMS["r4"] * 1.001
    assert frame.loc["chain", "effective"] == pytest.approx(PARAMS["r4"]) and frame.loc["chain", "bounded"] == ""
    few = effective_scale(before, after[after["seed"] == 0], QUICK).set_index("ability").loc["facts"]
    assert np.isnan(few["low"]) and few["reason"] == "one seed gives no interval"


def test_what_the_smallest_model_can_as_well_has_a_bound_for_a_size():
    assert scale(chain=0.0).loc["chain", "bounded"] == "at most"  # the two smallest rungs are at chance, too
    level = rows("chain", dict.fromkeys(PARAMS, 0.9))
    assert effective_scale(level, rows("chain", {"r4": 0.9}, "wanda"), QUICK)["bounded"].tolist() == [""]  # nothing was lost
    assert scale(chain=0.5).loc["chain", "bounded"] == "" == scale(facts=0.62).loc["facts", "bounded"]


def test_rungs_of_equal_size_have_no_smaller_one():
    frame = dense().assign(params=lambda f: f["params"].mask(f["rung"] == "r1", PARAMS["r0"]))
    assert set(size_matched(frame)["rung"]) == {"r2", "r3", "r4"}


@pytest.mark.parametrize("ask", [size_matched, lambda f: effective_scale(f, f), lambda f: seed_question(f, OUTCOMES)])
def test_rows_that_are_not_whole_are_refused(ask):
    frame = pd.concat([dense(), compressed(0.5, 0.8, 2.2)], ignore_index=True)
    for given, message in (
        (frame.drop(columns="compression"), "rows without compression"),
        (frame.assign(value="x"), "the column value holds numbers; got 'x'"),
        (frame.assign(seed=frame["seed"].astype(str)), "the column seed holds numbers; got '0'"),
    ):
        with pytest.raises(LabkitError, match=message):
            ask(given)


def test_a_compressed_model_that_scored_other_items_is_refused():
    with pytest.raises(LabkitError, match="score the same items; got 'rung r4, seed 0, compression wanda"):
        effective_scale(dense(), compressed(0.5, 0.8, 2.2).assign(item=1), QUICK)
