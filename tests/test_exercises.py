"""The checks of exercises: they accept the right answer, and name each case that a usual wrong one gets wrong."""

from __future__ import annotations

import pytest

from labkit.exercises import check, check_decide


def right(low, high, low90, high90):
    if low90 >= 0.95 and high90 <= 1.05:
        return "kept"
    return "lost" if high < 0.20 else "degraded" if high < 0.95 else "undecided"


def test_the_notebooks_solution_is_accepted(capsys):
    check_decide(right)
    assert capsys.readouterr().out.endswith("9 of 9 right. Well done.\n")


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
