import numpy as np
import pandas as pd
import pytest

from labkit.compression import Compression
from labkit.errors import LabkitError
from labkit.records import EXACT_MATCH
from labkit.students import FRESH, PRACTICE, SCRATCH, UNASKED, WHOLE, Student, students

ONE = np.ones((2, 3))
CUT = "keep-layers 2 + shrink heads 4 ffn 176 width 64"
SIZES = {"64x2": 100_672, "32x2": 25_248, "96x3": 332_448}


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


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"train": {"student": "64x2", "tokens": 3_000_000}}, Student(FRESH, "64x2", SCRATCH, 3_000_000)),
        ({"train": {"student": "64x2", "tokens": 12_165_120}}, Student(FRESH, "64x2", SCRATCH, 12_200_000)),
        ({"distill": {"student": "64x2", "divergence": "sequence", "tokens": 1_500_000}},
         Student(FRESH, "64x2", "sequence", 1_500_000)),
        ({"distill": {"student": "64x2", "divergence": "reverse-kl", "on_policy": 0.5, "tokens": 6_000_000}},
         Student(FRESH, "64x2", "reverse-kl on_policy 0.5", 6_000_000)),
        ({"drop_layers": {"keep": 2}, "shrink": {"width": 64, "heads": 4, "ffn": 176},
          "distill": {"divergence": "forward-kl", "tokens": 6_000_000}}, Student(CUT, "", "forward-kl", 6_000_000)),
        ({"drop_layers": {"keep": 2}, "train": {"tokens": 6_000_000}}, Student("keep-layers 2", "", PRACTICE, 6_000_000)),
        ({"distill": {"tokens": 500_000}}, Student(WHOLE, "", "forward-kl", 500_000)),
        ({"prune": {"criterion": "wanda", "sparsity": 0.5}, "recover": {"method": "distil", "tokens": 200_000}}, None),
        ({"prune": {"criterion": "wanda", "sparsity": 0.5}, "recover": {"method": "full", "tokens": 200_000}}, None),
        ({"drop_layers": {"drop": 1}}, None),
    ],
)  # fmt: skip
def test_a_student_is_read_from_the_name_that_a_study_gives_it(written, expected):
    assert Student.parse(Compression.parse(written).name) == expected


@pytest.mark.parametrize(
    ("start", "way", "seen"),
    [
        (FRESH, SCRATCH, "nothing"),
        (FRESH, "sequence", "text"),
        (FRESH, "hidden-state alpha 0.5", "hidden states"),
        (FRESH, "jsd", "logits"),
        (WHOLE, PRACTICE, "weights"),
        ("keep-layers 2", PRACTICE, "weights"),
        ("keep-layers 2", "jsd", "logits and weights"),
    ],
)
def test_what_a_student_sees(start, way, seen):
    made = Student(start, "64x2", way, 1)
    assert made.seen == seen and (seen in UNASKED) == (way in (SCRATCH, PRACTICE))


def test_all_kinds_of_students_with_what_they_cost():
    names = ["64x2 distil sequence 3M", f"{CUT} + distil forward-kl 3M", "64x2 scratch 3M", "64x2 scratch 500k"]
    rows = pd.concat([scored(name, ONE) for name in ["dense", "wanda", *names]], ignore_index=True)
    frame = students(rows, spent(rows, **{names[0].replace(" ", "_"): 2e9}))
    assert list(frame["compression"]) == [names[3], names[2], names[0], names[1]]  # controls first, short before long
    assert list(frame["size"]) == ["64x2"] * 4  # of the cut one, too: it has as many parameters
    assert list(frame["start"]) == [FRESH] * 3 + [CUT]
    assert list(frame["tokens"]) == [500_000, 3_000_000, 3_000_000, 3_000_000]
    assert list(frame["trained"]) == [2_400_000] * 4
    assert list(frame["flops"]) == [1e9, 1e9, 2e9, 1e9] and set(frame["teacher_flops"]) == {1e8}
    assert students(rows)["flops"].isna().all()


def test_costs_of_every_step_are_added():
    rows = scored("64x2 scratch 3M", ONE)
    twice = spent(rows).assign(lineage=lambda f: [2 * entry for entry in f["lineage"]])
    assert students(rows, twice)[["trained", "flops"]].iloc[0].tolist() == [4_800_000, 2e9]


def test_a_study_without_students_has_none():
    assert students(scored("wanda", ONE)).empty


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda known: known.drop(columns="lineage"), "a provenance has lineages; got ['run']"),
        (lambda known: known[1:], "a provenance knows every run of the rows; got '96x3, 64x2 scratch 3M, 0'"),
    ],
)
def test_a_provenance_of_another_store_is_refused(change, message):
    rows = scored("64x2 scratch 3M", ONE)
    with pytest.raises(LabkitError) as error:
        students(rows, change(spent(rows)))
    assert message in str(error.value)
