import numpy as np
import pandas as pd
import pytest
from scipy import stats

from labkit.inheritance import COMPARED, OUTCOMES, InheritanceRow, inheritance
from labkit.records import EXACT_MATCH, NLL_NATS, columns
from labkit.verdict import Rule, judge

TAUGHT, ALONE, LONGER = "64x2 distil forward-kl 3M", "64x2 scratch 3M", "64x2 scratch 6M"
TEACHERS = [0.9, 0.92, 0.94, 0.91, 0.93]
SIZES = {"64x2": 100_672, "32x2": 25_248, "96x3": 332_448, "128x4": 787_584}


def scored(compression, values, ability="recall", metric=EXACT_MATCH, chance=0.25, size="64x2", rung="96x3"):
    """Rows of one metric under one compression, from (seeds, items) values."""
    values = np.asarray(values, float)
    seed, item = np.divmod(np.arange(values.size), values.shape[1])
    frame = pd.DataFrame({"seed": seed, "item": item, "value": values.ravel(), "chance": chance, "ability": ability})
    frame["run"] = [f"{rung}, {compression}, {each}" for each in seed]
    params = SIZES[rung if compression == "dense" else size]
    return frame.assign(
        model="m", rung=rung, params=params, compression=compression, sparsity=0.0, metric=metric
    )


def tossed(means, items=400):
    """(seeds, items) of right and wrong: seed k scores about means[k], by tosses that all compressions share."""
    return np.random.default_rng(7).random((len(means), items)) < np.reshape(means, (-1, 1))


def learned(compression, means, nats=0.2, **options):
    """Exact match about `means`, one per seed, and nats."""
    values = tossed(means)
    return pd.concat(
        [scored(compression, values, **options),
         scored(compression, np.full(values.shape, nats), **{**options, "metric": NLL_NATS, "chance": 1.4})],
        ignore_index=True,
    )  # fmt: skip


def spent(rows, **flops):
    """A provenance of these rows: {compression with _ for a space: FLOPs}; tokens are 2,400,000 in every run."""
    flops = {name.replace("_", " "): value for name, value in flops.items()}
    runs = rows[["run", "compression"]].drop_duplicates()
    lineage = [
        [] if name == "dense" else
        [{"verb": "train", "tokens": 2_400_000, "flops": flops.get(name, 1e9), "teacher_flops": 1e8}]
        for name in runs["compression"]
    ]  # fmt: skip
    return pd.DataFrame({"run": runs["run"].to_list(), "lineage": lineage})


def study(taught=TEACHERS, alone=(0.6,) * 5, longer=(0.7,) * 5, teachers=TEACHERS, nats=0.2, **options):
    parts = {"dense": teachers, TAUGHT: taught, ALONE: alone, LONGER: longer}
    made = [
        learned(name, means, **{**options, "nats": nats if name == TAUGHT else 0.2})
        for name, means in parts.items() if means is not None
    ]  # fmt: skip
    return pd.concat(made, ignore_index=True)


def known(rows, ratio=1.0):
    """A provenance in which the longer control has `ratio` of the FLOPs of the student, and the other one half."""
    return spent(rows, **{TAUGHT.replace(" ", "_"): 2e9, ALONE.replace(" ", "_"): 1e9, LONGER.replace(" ", "_"): ratio * 2e9})


def of(rows, provenance=None, name="forward-kl", rule=Rule()):
    frame = inheritance(rows, provenance, rule)
    assert list(frame.columns) == list(columns(InheritanceRow))
    return frame[frame["way"] == name].iloc[0]


@pytest.mark.parametrize(
    ("outcome", "reason", "rows"),
    [
        ("inherited", "lie within 0.95 to 1.05", study()),
        ("better", "is above 1.05", study([0.97] * 5, teachers=[0.7, 0.72, 0.68, 0.71, 0.69])),
        ("partially", "is below 0.95", study([0.6] * 5)),
        ("not inherited", "is below 0.2", study([0.26] * 5)),
        ("undecided", "does not show that anything was inherited", study([0.25] * 4 + [0.8])),
        ("undecided", "but on nats", study(nats=0.5)),
        ("undecided", "3 of the 5 seeds", study(TEACHERS[:3], (0.6,) * 3, (0.7,) * 3, TEACHERS[:3])),
        ("undecided", "3 of the 5 seeds", study([0.97] * 3, None, None, [0.7] * 3)),  # better, but few
        ("absent", "is not reliably", study([0.9] * 5, teachers=[0.25] * 5)),
    ],
)
def test_every_outcome_and_its_reason(outcome, reason, rows):
    row = of(rows)
    assert row["outcome"] == outcome and outcome in OUTCOMES
    assert reason in row["reason"]


def test_retention_is_that_of_the_judge():
    rows = study([0.6] * 5)
    verdict = judge(rows).set_index("compression").loc[TAUGHT]
    row = of(rows)
    shared = ["retention", "low", "high", "n_seeds", "seeds_with", "seeds_all", "chance"]
    assert row[shared].tolist() == verdict[shared].tolist()
    assert (row["teacher"], row["student"]) == (verdict["dense"], verdict["compressed"])


@pytest.mark.parametrize(
    ("at_tokens", "taught", "alone"),
    [
        ("more", [0.9] * 5, [0.6] * 5),
        ("less", [0.5] * 5, [0.8] * 5),
        ("as much", [0.8] * 5, [0.8] * 5),
        ("as much", [0.81] * 5, [0.8] * 5),  # surely more, and too little to matter
        ("undecided", [0.9] * 4 + [0.3], [0.8] * 5),
        ("undecided", [0.9] * 5, [0.6] * 4),
        ("no control", [0.9] * 5, None),
    ],
)
def test_against_practice_on_equal_tokens(at_tokens, taught, alone):
    row = of(study(taught, alone))
    assert row["at_tokens"] == at_tokens and at_tokens in COMPARED
    assert row["at_flops"] == "no control" and not row["counts"]  # without a provenance nothing is known of FLOPs


def test_the_excess_is_the_difference_of_two_retentions_and_turns_round_with_them():
    one = study([0.8, 0.7, 0.75, 0.9, 0.6], [0.5, 0.6, 0.4, 0.7, 0.5])
    names = {TAUGHT: ALONE, ALONE: TAUGHT}
    other = one.assign(compression=one["compression"].replace(names), run=one["run"].replace(names, regex=True))
    row, turned = of(one), of(other)
    retention = judge(one).set_index("compression")["retention"]
    assert row["excess"] == pytest.approx(retention[TAUGHT] - retention[ALONE])
    assert row["practice"] == pytest.approx(retention[ALONE])
    bounds = [-turned["excess"], -turned["excess_high"], -turned["excess_low"]]
    assert row[["excess", "excess_low", "excess_high"]].tolist() == pytest.approx(bounds)


def test_its_interval_is_that_of_paired_differences():
    """With a teacher that is always right and one item per seed, Fieller's interval is Student's, by scipy."""
    apart = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    values = {"dense": np.ones(5), TAUGHT: 0.4 + apart, ALONE: np.full(5, 0.4)}
    rows = pd.concat([scored(name, v[:, None], chance=0.0) for name, v in values.items()], ignore_index=True)
    frame = inheritance(rows, rule=Rule(gate=1e-6))
    if frame["outcome"].eq("absent").any():  # five answers alone do not show that the teachers have it: thirty do
        rows = pd.concat([rows.assign(item=n) for n in range(30)], ignore_index=True)
        frame = inheritance(rows)
    row = frame[frame["way"] == "forward-kl"].iloc[0]
    items = rows["item"].nunique()
    half = np.hypot(stats.t.ppf(0.975, 4) * stats.sem(apart), -np.log(0.025) / (5 * items))
    # The teacher's own mean is known up to the allowance for items that none has shown, which is in `half` already.
    assert row[["excess_low", "excess_high"]].tolist() == pytest.approx([0.3 - half, 0.3 + half], abs=2e-4)


@pytest.mark.parametrize(
    ("ratio", "longer", "at_flops"),
    [
        (1.0, 0.7, "more"), (1.0, 0.93, "as much"), (1.2, 0.93, "as much"), (0.81, 0.7, "more"),
        (0.7, 0.7, "no control"),  # too cheap to be a control
        (2.0, 0.7, "more"),  # better than one that had more FLOPs
        (2.0, 0.93, "undecided"),  # as good as one that had more says nothing
    ],
)  # fmt: skip
def test_against_practice_on_equal_flops(ratio, longer, at_flops):
    taught = [0.93] * 5
    rows = study(taught, [0.6] * 5, [longer] * 5, teachers=taught)
    row = of(rows, known(rows, ratio))
    assert row["at_flops"] == at_flops
    assert np.isnan(row["flops_ratio"]) if at_flops == "no control" else row["flops_ratio"] == pytest.approx(ratio)
    assert row["counts"] == (at_flops == "more")


def test_less_than_practice_on_the_same_tokens_counts_whatever_the_flops():
    rows = study([0.5] * 5, [0.8] * 5)
    assert of(rows, known(rows, 2.0))["at_tokens"] == "less"


def test_what_is_partial_does_not_count():
    rows = study([0.8] * 5, [0.4] * 5, [0.5] * 5)
    row = of(rows, known(rows))
    assert (row["outcome"], row["at_tokens"], row["at_flops"], row["counts"]) == ("partially", "more", "more", False)


def test_a_control_is_compared_with_nothing_and_an_absent_ability_neither():
    frame = inheritance(study())
    assert set(frame.loc[frame["way"] == "scratch", "at_tokens"]) == {""}
    assert of(study(teachers=[0.25] * 5))[["at_tokens", "at_flops"]].tolist() == ["", ""]


def test_controls_of_another_size_or_teacher_are_no_controls():
    rows = study(alone=None)
    small = learned("32x2 scratch 3M", [0.5] * 5, size="32x2")
    elsewhere = [learned(name, [0.9] * 5, rung="128x4") for name in ("dense", ALONE)]
    for others in ([small], elsewhere):
        assert of(pd.concat([rows, *others], ignore_index=True))["at_tokens"] == "no control"


def test_answers_and_other_compressions_are_passed_over():
    rows = study()
    answers = scored("dense", np.full((5, 400), 7.0), metric="answer_given", chance=np.nan)
    more = pd.concat([rows, answers, learned("wanda", [0.5] * 5)], ignore_index=True)
    pd.testing.assert_frame_equal(inheritance(more), inheritance(rows))


def test_truth_is_found_where_seeds_differ():
    """Simulated: students have .7 of their teachers' ability, controls .5; the intervals hold it about as stated."""
    generator, parts = np.random.default_rng(3), []
    for name, (mean, spread) in {"dense": (0.9, 0), TAUGHT: (0.63, 0.05), ALONE: (0.45, 0.05)}.items():
        for number in range(60):
            right = generator.random((6, 100)) < generator.normal(mean, spread, (6, 1))
            parts.append(scored(name, right, ability=f"{number}", chance=0.0))
    frame = inheritance(pd.concat(parts, ignore_index=True))
    taught = frame[frame["way"] == "forward-kl"]
    for truth, low, high in ((0.7, "low", "high"), (0.2, "excess_low", "excess_high")):
        assert taught[low].lt(truth).mul(taught[high].gt(truth)).mean() > 0.88
