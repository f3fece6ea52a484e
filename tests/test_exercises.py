"""The checks of exercises: they accept the right answer, and name each case that a usual wrong one gets wrong."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from labkit.exercises import check, check_decide, check_excess, check_power, check_training_bytes
from labkit.imitation import ANSWER_GIVEN, imitation
from labkit.records import EXACT_MATCH


def right(low, high, low90, high90):
    if low90 >= 0.95 and high90 <= 1.05:
        return "kept"
    return "lost" if high < 0.20 else "degraded" if high < 0.95 else "undecided"


def test_the_notebooks_solution_is_accepted(capsys):
    check_decide(right)
    assert capsys.readouterr().out.endswith("11 of 11 right. Well done.\n")


@pytest.mark.parametrize(
    ("wrong", "case"),
    [
        (lambda low, high, *_: right(low, high, low, high), "kept is asked of the 90 % interval, not of the 95 %"),
        (lambda low, high, *_: "kept" if low <= 1 <= high else right(low, high, 0, 2),
         "an interval that holds 1 does not show equality"),
        (lambda low, high, *_: "lost" if (low + high) / 2 < 0.20 else right(low, high, *_),
         "lost is asked of the upper bound"),
        (lambda low, high, *_: "kept" if low > 0.95 else right(low, high, *_),
         "better than dense by more than the margin"),
        (lambda low, high, *_: right(low, high, *_) if high == high else "absent", "no interval"),
    ],
)  # fmt: skip
def test_usual_mistakes_are_named(wrong, case, capsys):
    check_decide(wrong)
    said = capsys.readouterr().out
    assert f"[not yet] {case}" in said and "Well done" not in said


def test_what_a_reader_raises_is_told_and_the_rest_is_run(capsys):
    check(lambda a, b: a / b, {"by zero": ((1, 0), 1), "half": ((1, 2), 0.5)}, lambda got, expected: got == expected)
    assert capsys.readouterr().out == (
        "[not yet] by zero\n    called with 1, 0\n    expected 1, received ZeroDivisionError: division by zero\n"
        "[OK] half\n1 of 2 right.\n"
    )


@pytest.mark.parametrize(
    ("wrong", "case"),
    [
        (lambda parameters, trained: 18 * parameters, "nothing is trained"),
        (lambda parameters, trained: 2 * (parameters - trained) + 16 * trained, "all of it"),
        (lambda parameters, trained: 18 * trained or 2 * parameters, "adapters: 1 % beside it"),
    ],
)
def test_bytes_of_training_counted_wrongly_are_named(wrong, case, capsys):
    check_training_bytes(wrong)
    said = capsys.readouterr().out
    assert f"[not yet] {case}" in said and "Well done" not in said


# --- excess ------------------------------------------------------------------------------------------------------------


def excess(teacher, student, control, truth):
    wrong = teacher != truth
    same = [np.mean(answers[wrong] == teacher[wrong]) for answers in (student, control)] if wrong.any() else [np.nan, 0]
    return same[0] - same[1]


def test_the_solution_is_accepted_and_usual_mistakes_are_named(capsys):
    check_excess(excess)
    assert capsys.readouterr().out.endswith("7 of 7 right. Well done.\n")
    for wrong, case in (
        (lambda t, s, c, truth: np.mean(s == t) - np.mean(c == t), "what the teacher gets right does not count"),
        (lambda t, s, c, truth: excess(t, s, truth, truth), "mistakes that the control makes, too, say nothing"),
        (lambda t, s, c, truth: np.mean((s != truth)[t != truth]), "wrong in another way is no copy"),
        (lambda t, s, c, truth: max(0.0, excess(t, s, c, truth)), "less like the teacher than who never met it"),
    ):
        check_excess(wrong)
        assert f"[not yet] {case}" in capsys.readouterr().out


def test_it_is_what_the_library_estimates():
    generator = np.random.default_rng(3)
    given = {"dense": generator.integers(0, 3, 60), "64x2 distil sequence 3M": generator.integers(0, 3, 60)}
    given["64x2 scratch 3M"] = generator.integers(0, 3, 60)
    rows = []
    for name, answers in given.items():
        frame = pd.DataFrame({"item": range(60), "seed": 0, "run": name, "model": "m", "rung": "96x3", "sparsity": 0.0})
        frame = frame.assign(params=1 if name == "dense" else 2, compression=name, ability="recall", chance=0.3)
        rows += [frame.assign(metric=EXACT_MATCH, value=(answers == 0) * 1.0), frame.assign(metric=ANSWER_GIVEN, value=answers * 1.0)]
    (row,) = imitation(pd.concat(rows, ignore_index=True)).itertuples()
    assert row.excess == pytest.approx(excess(*given.values(), np.zeros(60, int)))


def test_the_90_percent_interval_alone_does_not_decide(capsys):
    def decide(low, high, low90, high90):
        if low90 >= 0.95 and high90 <= 1.05:
            return "kept"
        return "lost" if high90 < 0.20 else "degraded" if high90 < 0.95 else "undecided"

    check_decide(decide)
    assert "9 of 11 right" in capsys.readouterr().out


def test_an_array_for_an_answer_is_not_right_and_no_error(capsys):
    check_power(lambda token, exact: np.array([1.0, 2.0]))
    assert "0 of 4 right" in capsys.readouterr().out
