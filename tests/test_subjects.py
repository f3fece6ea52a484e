"""Models by their names, and conditions under which no two runs of a study may stand together."""

from __future__ import annotations

import pytest

from labkit.compression import Compression
from labkit.errors import LabkitError
from labkit.pairs import Pair
from labkit.study import Study
from labkit.subjects import check_distinct, check_pairs, condition

WANDA = Compression.parse({"prune": {"criterion": "wanda", "sparsity": 0.5}})


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (("ladder/64x2/seed-3", None), ("64x2", 3, "dense", 0.0)),
        (("mine/final", WANDA), ("final", 0, "wanda", 0.5)),
        (("o/small", None), ("large", 0, "distilled", 0.0)),
        (("o/small", WANDA), ("large", 0, "distilled + wanda", 0.5)),  # of the small one, and not of its dense model
    ],
)
def test_where_the_rows_of_a_run_stand(job, expected):
    assert condition(job, [Pair("o/large", "o/small", "distilled")]) == expected


@pytest.mark.parametrize(
    ("jobs", "told"),
    [
        ([("a/final", None), ("b/final", None)], "a/final dense and b/final dense, both rung final, seed 0, dense, sparsity 0"),
        ([("ladder/16x1/seed-0", None), ("own/16x1/seed-0", None)], "both rung 16x1, seed 0, dense"),
        ([("m", Compression.parse({"train": {"student": "16x1", "tokens": n}})) for n in (6144, 6500)], "16x1 scratch 6k"),
        ([("m", WANDA), ("m", Compression.parse({"prune": {"sparsity": 0.5, "criterion": "wanda", "pattern": None}}))], "m wanda and m wanda"),
    ],
)
def test_runs_that_could_not_be_told_apart_are_refused(jobs, told):
    with pytest.raises(LabkitError) as error:
        check_distinct(jobs)
    assert "the runs of a study differ in rung, seed or compression" in str(error.value) and told in str(error.value)
    check_distinct(jobs[:1] * 2)  # the same run twice is one


def test_a_study_says_so_before_it_makes_a_folder(tmp_path):
    ways = tuple(Compression.parse({"prune": {"criterion": c, "sparsity": 0.5}}) for c in ("wanda", "wanda"))
    study = Study("s", "?", ("ladder/16x1/seed-0",), ("ladder/16x1/seed-0",), ways)
    assert len(study.run(tmp_path / "same", progress=False).runs()) == 2
    ways = tuple(Compression.parse({"train": {"student": "16x1", "tokens": n}}) for n in (6144, 6500))
    with pytest.raises(LabkitError, match="the runs of a study differ"):
        Study("s", "?", ("ladder/16x1/seed-0",), ("ladder/16x1/seed-0",), ways).run(tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ([Pair("a", "b", "x"), Pair("c", "b", "y")], "a model is the smaller one of one pair; got 'b'"),
        ([Pair("a", "b", "x"), Pair("b", "c", "y")], "the dense model of a pair is nobody's smaller one; got 'b'"),
    ],
)
def test_pairs_that_are_no_pairs(pairs, told):
    with pytest.raises(LabkitError) as error:
        Study("s", "?", pairs=tuple(pairs))
    assert told in str(error.value)
    check_pairs(pairs[:1])
