"""Checks of the notebooks' exercises: a reader's function is run on cases whose answer the library knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from labkit.verdict import Rule, outcomes


def check_decide(function: Callable, rule: Rule = Rule()) -> None:
    """Check the exercise ``decide(low, high, low90, high90)``: a verdict from the 95 % and 90 % bounds of retention.

    The cases are those where readers go wrong; the expected answers are those of `labkit.verdict.outcomes`, which
    judges real rows, with nats that raise no objection.
    """
    bounds = {
        "all of it within the margin": (0.97, 1.03, 0.98, 1.02),
        "kept is asked of the 90 % interval, not of the 95 %": (0.94, 1.04, 0.955, 1.03),
        "an interval that holds 1 does not show equality": (0.88, 1.06, 0.90, 1.04),
        "clearly gone": (-0.10, 0.05, -0.08, 0.03),
        "lost is asked of the upper bound": (-0.20, 0.30, -0.15, 0.25),
        "lost is asked of the 95 % interval": (-0.10, 0.25, -0.05, 0.15),
        "degraded is, too": (0.60, 0.97, 0.65, 0.93),
        "below dense, with something left": (0.55, 0.80, 0.58, 0.77),
        "nobody can say": (0.60, 1.10, 0.65, 1.05),
        "better than dense by more than the margin": (1.10, 1.30, 1.12, 1.28),
        "no interval": (np.nan, np.nan, np.nan, np.nan),
    }
    fine = np.array([1.0, 1.0])
    cases = {name: (b, str(outcomes(np.array(b[:2]), np.array(b[2:]), fine, rule))) for name, b in bounds.items()}
    check(function, cases, lambda got, expected: got == expected)


def check_power(function: Callable) -> None:
    """Check the exercise ``power(token, exact)``: the k for which exact = token^k; NaN where token says nothing of it."""
    cases = {
        "one token an answer": ((0.7, 0.7), 1.0),
        "two tokens": ((0.5, 0.25), 2.0),
        "k need not be whole": ((0.25, 0.125), 1.5),
        "perfect tokens say nothing about k": ((1.0, 1.0), np.nan),
    }
    check(function, cases, lambda got, right: got is not None and np.isclose(got, right, equal_nan=True))


def check_excess(function: Callable) -> None:
    """Check the exercise ``excess(teacher, student, control, truth)``, each (items,) answers given, or right.

    Of the items that the teacher gets wrong: the share on which the student gives the teacher's answer, less the share
    on which the control does; NaN if the teacher gets none wrong. `labkit.imitation` estimates it over seeds.
    """
    answers = {
        "mistakes of the teacher's alone are copied": ("1200", "1203", "0000", 1.0),
        "mistakes that the control makes, too, say nothing": ("1200", "1200", "1200", 0.0),
        "half of them are explained by the control": ("1200", "1200", "1000", 0.5),
        "wrong in another way is no copy": ("1200", "3400", "0000", 0.0),
        "what the teacher gets right does not count": ("0001", "0002", "5552", 0.0),
        "less like the teacher than who never met it": ("1200", "1000", "1200", -0.5),
        "a teacher without errors": ("0000", "0000", "1111", np.nan),
    }
    cases = {}
    for name, (*given, expected) in answers.items():
        cases[name] = tuple(np.array(list(map(int, digits))) for digits in (*given, "0000")), expected
    check(function, cases, lambda got, right: got is not None and np.isclose(got, right, equal_nan=True))


def check_training_bytes(function: Callable) -> None:
    """Check the exercise ``training_bytes(parameters, trained)``: 2 bytes for each, and 16 more where it trains.

    The 16 are a copy in float32, its gradient and Adam's two moments, 4 bytes each.
    """
    cases = {
        "nothing is trained": ((1000, 0), 2000),
        "all of it": ((1000, 1000), 18000),
        "adapters: 1 % beside it": ((1000, 10), 2160),
    }
    check(function, cases, lambda got, right: got == right)


def check(function: Callable, cases: Mapping[str, tuple[tuple, object]], right: Callable[..., bool]) -> None:
    """Run a reader's function on every case, ``name -> (arguments, expected)``, and print how each went."""
    done = 0
    for name, (arguments, expected) in cases.items():
        try:
            received = function(*arguments)
            verdict = right(received, expected)
            correct = bool(np.ndim(verdict) == 0 and verdict)  # an array is no answer
        except Exception as error:  # the reader's code may raise anything, and deserves to be told what
            received, correct = f"{type(error).__name__}: {error}", False
        done += correct
        print(f"[{'OK' if correct else 'not yet'}] {name}")
        if not correct:
            print(f"    called with {_brief(arguments)}\n    expected {_brief(expected)}, received {_brief(received)}")
    print(f"{done} of {len(cases)} right." + (" Well done." if done == len(cases) else ""))


def _brief(value: object) -> str:
    """A value on one line; tensors as lists, since their repr breaks lines."""
    if isinstance(value, tuple):
        return ", ".join(map(_brief, value))
    return str(value.tolist() if hasattr(value, "tolist") else value)
