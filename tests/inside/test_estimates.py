"""Estimates agree with scipy's paired t over items, with the judge over seeds, and with numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from labkit.errors import LabkitError
from labkit.inside.estimates import DONOR, INTACT, earliest, effects, looks, ranking
from labkit.inside.sites import Part
from labkit.verdict import judge


def table(ability: str, metric: str, chance: float, **values: list[float]) -> pd.DataFrame:
    """Rows of one model; part with _ for a space -> the value of each item."""
    frames = [
        pd.DataFrame({"part": part.replace("_", " "), "layer": pd.NA, "head": pd.NA, "ability": ability,
                      "metric": metric, "item": range(len(of)), "value": of, "chance": chance})
        for part, of in values.items()
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def test_what_is_left_after_ablation():
    rows = table("recall", "exact_match", 0.2, none=[1, 1, 1, 0] * 25, head_1=[1, 0, 0, 0] * 25, mlp=[1, 1, 1, 0] * 25)
    head, mlp = effects(rows).to_dict("records")
    assert (head["part"], head["value"], head["intact"], head["change"]) == ("head 1", 0.25, 0.75, -0.5)
    assert head["share"] == pytest.approx(0.05 / 0.55) and head["low"] < -0.5 < head["high"] < 0
    assert head["share_low"] < head["share"] < head["share_high"] < 0.5
    assert (mlp["change"], mlp["share"]) == (0, 1) and mlp["low"] < 0 < mlp["high"]  # no item differs, yet
    assert (head["n_seeds"], head["n_items"], head["resampled"]) == (1, 100, "items")


def test_what_comes_back_after_a_patch_also_in_nats():
    values = {INTACT: [3.0, 2.0] * 20, DONOR: [0.0, 1.0] * 20, "head": [1.0, 1.5] * 20}
    donor, head = effects(table("facts", "nll_nats", 3.4, **values)).to_dict("records")
    assert (donor["part"], donor["share"], head["share"]) == (DONOR, 1, (2 + 0.5) / (3 + 1))
    assert head["change"] == -1.25


def test_of_one_model_the_interval_is_a_paired_t_over_items():
    before, change = np.linspace(1, 2, 30), np.tile([-1, -0.5, 0.5, 1, 0.25, -0.25], 5)  # even: no skew to correct
    (row,) = effects(table("facts", "nll_nats", 3.4, none=before, head=before + change)).to_dict("records")
    low, high = stats.t.interval(0.95, 29, loc=change.mean(), scale=stats.sem(change))
    assert (row["low"], row["high"]) == (pytest.approx(low), pytest.approx(high))


def test_of_several_models_what_is_left_is_the_retention_of_the_judge():
    generator, frames = np.random.default_rng(0), []
    for seed in range(5):
        values = {INTACT: generator.random(50) < 0.9, "copying": generator.random(50) < 0.5 + 0.05 * seed}
        frames.append(table("recall", "exact_match", 0.125, **values).assign(seed=seed))
    rows = pd.concat(frames)
    judged = rows.assign(compression=rows["part"].replace(INTACT, "dense"), rung="64x2", sparsity=0.0,
                         params=1, run=rows["part"], model="")  # fmt: skip
    (verdict,), (effect,) = judge(judged).to_dict("records"), effects(rows).to_dict("records")
    assert [effect["share"], effect["share_low"], effect["share_high"]] == pytest.approx(
        [verdict["retention"], verdict["low"], verdict["high"]]
    )
    assert (effect["n_seeds"], effect["n_items"], effect["resampled"]) == (5, 50, "seeds and items")


def test_what_the_model_never_had_has_no_share():
    rows = table("recall", "exact_match", 0.5, none=[1, 0] * 20, head=[0, 0] * 20)
    assert effects(rows)[["share", "share_low", "share_high"]].isna().all(axis=None)


def test_a_place_that_differs_between_models_is_none():
    rows = table("recall", "exact_match", 0.1, none=[1, 0], head=[1, 0])
    rows = pd.concat([rows.assign(seed=s, layer=1, head=s) for s in (0, 1)])
    row = effects(rows).iloc[0]
    assert row["layer"] == 1 and row["head"] is pd.NA


def test_rows_that_do_not_match_are_refused():
    rows = table("recall", "exact_match", 0.1, none=[1, 0], head=[1, 0])
    with pytest.raises(LabkitError, match="effects are told from rows of part 'none'; got 'head'. Keep the rows"):
        effects(rows[rows["part"] == "head"])
    rule = "scored once on the same items; got '3 rows of recall, exact_match: 2 parts, 1 seeds, 2 items'. Use the same"
    with pytest.raises(LabkitError, match=rule):
        effects(rows[1:])
    with pytest.raises(LabkitError, match="got '8 rows of recall"):
        effects(pd.concat([rows, rows]))


# --- from where on damage is mended -----------------------------------------------------------------------------------


def patched(ability: str, metric: str = "exact_match", donor: float = 1.0, **shares: float) -> pd.DataFrame:
    """Effects of patches into a model that scores 0; each share known to ± 0.1."""
    told = [(part.replace("_", " "), share) for part, share in {DONOR: 1.0, **shares}.items()]
    frame = pd.DataFrame(told, columns=["part", "share"]).assign(ability=ability, metric=metric, intact=0.0, n_seeds=5)
    frame["value"] = frame["change"] = frame["share"] * donor
    ends = {name: frame["change"] + end for name, end in (("low", -0.1), ("high", 0.1))}
    return frame.assign(**ends, share_low=frame["share"] - 0.1, share_high=frame["share"] + 0.1)


def test_the_first_part_that_surely_brings_back_half():
    effects = pd.concat([
        patched("recall", attention_0=0.55, mlp_0=0.7, attention_1=1.0),  # 0.55 may be less than half
        patched("facts", attention_0=0.1, mlp_0=0.2, attention_1=0.3),
        patched("shift", donor=0.05, attention_0=0.9),  # 0.05 ± 0.1: nothing is lost for sure
        patched("markov", "nll_nats", donor=-1.0, attention_0=0.9),  # less nats is better
        patched("guard", "nll_nats", donor=1.0, attention_0=0.9),  # the donor is worse
    ])  # fmt: skip
    told = earliest(effects).set_index("ability")
    assert told["outcome"].to_dict() == {
        "recall": "mended", "facts": "by no part", "shift": "nothing lost", "markov": "mended", "guard": "nothing lost"
    }  # fmt: skip
    assert told["part"].to_dict() == {"recall": "mlp 0", "facts": "", "shift": "", "markov": "attention 0", "guard": ""}
    assert told.loc["recall", ["broken", "donor", "share", "n_seeds"]].to_list() == [0, 1, 0.7, 5]
    assert np.isnan(told.loc["facts", "share"])
    assert earliest(effects, least=0.4).set_index("ability").loc["recall", "part"] == "attention 0"


def test_damage_without_a_donor_or_with_another_share_is_refused():
    effects = patched("recall", mlp_0=0.7)
    with pytest.raises(LabkitError, match="mended by a donor, part 'everything'; got 'mlp 0'. Take effects of a patch"):
        earliest(effects[effects["part"] != DONOR])
    with pytest.raises(LabkitError, match=r"least is a share of what was lost, in \(0, 1\); got 1.5"):
        earliest(effects, least=1.5)


# --- heads -----------------------------------------------------------------------------------------------------------


def scores(**values: list[float]) -> pd.DataFrame:
    frames = [
        pd.DataFrame({"part": f"head 1.{head}", "layer": 1, "head": head, "score": score.replace("_", " "),
                      "item": range(len(of)), "value": np.array(of) / (head + 1), "even": 0.1})
        for score, of in values.items() for head in (0, 1)
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def test_scores_are_averaged_within_0_and_1_and_compared_in_pairs():
    before, after = scores(induction=[0.9, 1.0, 0.8]), scores(induction=[0.5, 0.6, 0.4])
    told = looks(after, before).set_index("part")
    assert told["value"].to_list() == pytest.approx([0.5, 0.25]) and told["even"].to_list() == pytest.approx([0.1] * 2)
    assert told["change"].to_list() == pytest.approx([-0.4, -0.2])
    assert (told["low"] >= 0).all() and (told["high"] <= 1).all() and (told["low"] < told["value"]).all()
    assert told.loc["head 1.0", ["change_low", "change_high"]].mean() == pytest.approx(-0.4)
    assert set(told["n_items"]) == {3} and "change" not in looks(after)


def test_heads_are_ranked_by_each_score():
    first, second = Part("head", 1, 0), Part("head", 1, 1)
    rows = scores(induction=[0.9, 1.0], previous_token=[0.0, 0.0])
    assert list(ranking(rows, "induction").items()) == [(first, pytest.approx(0.95)), (second, pytest.approx(0.475))]
    rows["value"] *= rows["head"]
    assert list(ranking(rows, "induction")) == [second, first]
    assert list(ranking(rows, "previous token")) == [first, second]  # equals
    with pytest.raises(LabkitError, match="a known score of heads is needed; got 'inductive'. Nearest: induction."):
        ranking(rows, "inductive")


def test_scores_of_other_sequences_are_refused():
    rows = scores(induction=[0.9, 1.0, 0.8])
    received = "induction: 2 heads of 1 seeds on 3 sequences and 2 heads of 1 seeds on 2 sequences"
    with pytest.raises(LabkitError, match=f"the same heads, seeds and sequences; got '{received}, or other ones'. Score both"):
        looks(rows, rows[rows["item"] < 2])


@pytest.mark.parametrize("change", [{"item": 5}, {"seed": 3}])
def test_sequences_and_seeds_before_are_those_of_after(change):
    rows = scores(induction=[0.9, 1.0, 0.8]).assign(seed=0)
    before = rows.assign(**{column: rows[column] + by for column, by in change.items()})
    with pytest.raises(LabkitError, match="the same heads, seeds and sequences"):
        looks(rows, before)
    with pytest.raises(LabkitError, match="and none"):
        looks(rows, rows.assign(score="backward"))
