import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.inter_rater import cohens_kappa

from labkit.errors import LabkitError
from labkit.imitation import ANSWER_GIVEN, ANSWERS, ImitationRow, imitation, kappa
from labkit.records import EXACT_MATCH, columns

TAUGHT, ALONE = "64x2 distil sequence 3M", "64x2 scratch 3M"


def answered(compression, given, right=0, ability="recall"):
    """Rows of exact match and of the answer, from (seeds, items) answers; the right one is `right`."""
    given = np.asarray(given)
    seed, item = np.divmod(np.arange(given.size), given.shape[1])
    frame = pd.DataFrame({"seed": seed, "item": item, "run": [f"{compression} {k}" for k in seed]})
    params = 332_448 if compression == "dense" else 100_672
    frame = frame.assign(model="m", rung="96x3", params=params, compression=compression, sparsity=0.0, ability=ability)
    scores = frame.assign(metric=EXACT_MATCH, value=(given == right).ravel() * 1.0, chance=0.1)
    return pd.concat([scores, frame.assign(metric=ANSWER_GIVEN, value=given.ravel() * 1.0, chance=np.nan)])


def study(copied, alone=0.05, seeds=5, items=300, errs=0.4, seed=0):
    """Teachers err on a share of items; students repeat their wrong answers at these rates, else err in their own way."""
    generator = np.random.default_rng(seed)
    teacher = np.where(generator.random((seeds, items)) < errs, generator.integers(1, 1000, (seeds, items)), 0)
    parts = {"dense": teacher}
    for name, rate in {TAUGHT: copied, ALONE: alone}.items():
        if rate is not None:
            own = np.where(generator.random((seeds, items)) < 0.3, generator.integers(1000, 2000, (seeds, items)), 0)
            rates = np.reshape(np.broadcast_to(rate, seeds), (-1, 1))
            parts[name] = np.where((teacher > 0) & (generator.random((seeds, items)) < rates), teacher, own)
    return pd.concat([answered(*part) for part in parts.items()], ignore_index=True)


def of(rows):
    frame = imitation(rows)
    assert list(frame.columns) == list(columns(ImitationRow)) and len(frame) == 1
    return frame.iloc[0]


# --- kappa -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.95])
def test_kappa_agrees_with_statsmodels(p):
    generator = np.random.default_rng(0)
    one = generator.random((4, 200)) < p
    other = np.where(generator.random((4, 200)) < 0.5, one, generator.random((4, 200)) < 0.7)
    tables = [[[np.sum((a == i) & (b == j)) for j in (0, 1)] for i in (0, 1)] for a, b in zip(one, other, strict=True)]
    assert kappa(one, other) == pytest.approx([cohens_kappa(np.array(table)).kappa for table in tables])


def test_kappa_of_the_same_of_opposites_and_of_those_without_errors():
    right = np.array([1, 0, 1, 0])
    assert (kappa(right, right), kappa(right, 1 - right)) == (1, -1)
    assert np.isnan(kappa(np.ones(4), np.ones(4)))  # nothing but agreement was possible
    assert kappa(np.ones(4), right) == 0


# --- the very same mistakes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason", "rows"),
    [
        ("copy", "is above 0", study(0.4)),
        ("learner", "ends below 0.05", study(0.05)),
        ("learner", "ends below 0.05", study(0.0, alone=0.3)),  # less like its teacher than one who never met it
        ("undecided", "neither lies above 0 nor ends below 0.05", study([0.0, 0.0, 0.0, 0.1, 0.9])),
        ("undecided", "4 of the 5 seeds", study(0.4, seeds=4)),
        ("no errors", "cannot be told from 0", study(0.4, errs=0.0)),
        ("no control", "nothing was trained from scratch", study(0.4, alone=None)),
    ],
)
def test_every_answer_and_its_reason(answer, reason, rows):
    row = of(rows)
    assert row["answer"] == answer and answer in ANSWERS
    assert reason in row["reason"]


def test_rates_by_hand():
    teacher = np.tile([0, 0, 5, 6, 7, 8], (5, 1))
    student = np.tile([0, 9, 5, 6, 1, 0], (5, 1))  # two of the teacher's four errors
    control = np.tile([0, 0, 5, 1, 0, 0], (5, 1))  # one of them
    rows = pd.concat([answered("dense", teacher), answered(TAUGHT, student), answered(ALONE, control)])
    row = of(rows.reset_index(drop=True))
    assert (row["errors"], row["same"], row["alone"], row["excess"]) == pytest.approx((4 / 6, 1 / 2, 1 / 4, 1 / 4))
    right = [[1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 1], [1, 1, 0, 0, 1, 1]]
    assert row[["kappa", "kappa_alone"]].tolist() == pytest.approx([float(kappa(one, right[0])) for one in right[1:]])
    assert (row["n_seeds"], row["n_kappa"], row["n_items"]) == (5, 5, 6)


def test_consistency_has_a_t_interval_over_seeds():
    rows = study([0.1, 0.2, 0.3, 0.4, 0.5])
    right = rows[rows["metric"] == EXACT_MATCH].pivot(index=["compression", "seed"], columns="item", values="value")
    each = np.array([kappa(right.loc[TAUGHT].to_numpy(), right.loc["dense"]), kappa(right.loc[ALONE], right.loc["dense"])])
    row = of(rows)
    for name, values in (("kappa", each[0]), ("kappa_excess", each[0] - each[1])):
        expected = stats.ttest_1samp(values, 0).confidence_interval()
        assert row[name] == pytest.approx(values.mean())
        assert row[[f"{name}_low", f"{name}_high"]].tolist() == pytest.approx([*expected])


def test_seeds_without_any_error_have_no_consistency_and_are_counted():
    rows = study(0.4)
    rows.loc[(rows["seed"] == 2) & (rows["metric"] == EXACT_MATCH), "value"] = 1.0
    row = of(rows)
    assert (row["n_seeds"], row["n_kappa"]) == (5, 4)


def test_the_same_number_without_a_teacher_is_no_imitation():
    """Simulated: where nothing is copied, "copy" is hardly ever the answer, and the interval holds the true excess."""
    frames = [study([0.1, 0.2, 0.3, 0.4, 0.5], [0.3, 0.4, 0.2, 0.5, 0.1], items=150, seed=n) for n in range(40)]
    rows = pd.concat([frame.assign(ability=f"{n}") for n, frame in enumerate(frames)], ignore_index=True)
    frame = imitation(rows)
    assert (frame["answer"] == "copy").mean() <= 0.1
    assert ((frame["excess_low"] < 0) & (frame["excess_high"] > 0)).mean() >= 0.9


def test_abilities_without_right_and_wrong_and_controls_themselves_are_left_out():
    rows = study(0.4)
    walk = rows[rows["metric"] == ANSWER_GIVEN].assign(ability="markov")
    nats = rows[rows["metric"] == EXACT_MATCH].assign(ability="markov", metric="nll_nats")
    frame = imitation(pd.concat([rows, walk, nats], ignore_index=True))
    assert frame[["ability", "way"]].values.tolist() == [["recall", "sequence"]]


def test_rows_without_answers_are_refused_with_what_to_do():
    rows = study(0.4)
    with pytest.raises(LabkitError) as error:
        imitation(rows[rows["metric"] == EXACT_MATCH])
    assert 'got \'no metric answer_given\'. Measure with metrics = ["answer_given"] in the study.' in str(error.value)


def test_other_items_are_refused():
    rows = study(0.4)
    rows.loc[rows["compression"] == TAUGHT, "item"] += 1
    with pytest.raises(LabkitError, match="answer the same items; got 'rung 96x3, 64x2 distil sequence 3M, recall'"):
        imitation(rows)
