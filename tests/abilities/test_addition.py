"""Sums, read as a person would; no pair of the test is ever trained on."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.abilities import Addition
from labkit.abilities import vocabulary as V
from labkit.abilities.addition import held_out
from labkit.abilities.vocabulary import spell
from labkit.errors import LabkitError
from labkit.records import BRIER, EXACT_MATCH, IGNORE, NLL_NATS, TOKEN_ACCURACY


def number(words: list[str]) -> int:
    """Digits, lowest first."""
    return int("".join(reversed(words)))


def summands(addition: Addition, test: bool, n: int) -> np.ndarray:
    """(n · sums, 2): read from the tokens, after checking every answer that fits into a row."""
    d = addition.digits
    block, made = 3 * d + 2, []
    rows = addition.sample(n, 0) if test else addition.train(np.arange(n), 0, 48)
    for tokens, labels in zip(rows.tokens, rows.labels, strict=True):
        words, answers = spell(tokens).split()[1:], spell(labels).split()[1:]
        for k in range(len(words) // block):
            sum_, asked = words[k * block : (k + 1) * block], answers[k * block : (k + 1) * block]
            a, b = number(sum_[:d]), number(sum_[d + 1 : 2 * d + 1])
            assert (sum_[d], sum_[2 * d + 1]) == ("+", "=")
            assert set(asked[: 2 * d + 1]) == {"_"}
            assert number(asked[2 * d + 1 :]) == a + b
            assert sum_[2 * d + 2 :] == asked[2 * d + 1 : -1]  # all but the last digit are shown once asked
            made.append((a, b))
    return np.array(made)


@pytest.mark.parametrize("digits", [2, 3, 4])
def test_sums_are_right_and_the_sides_share_no_pair(digits):
    addition = Addition(digits=digits)
    trained, tested = summands(addition, False, 3000), summands(addition, True, 1000)
    assert not held_out(*trained.T).any() and held_out(*tested.T).all()
    for side in (trained, tested):
        assert side.min() >= 0 and side.max() < 10**digits
        assert side.mean(axis=0) == pytest.approx(10**digits / 2, rel=0.1)


def test_a_tenth_of_all_pairs_is_held_out_evenly():
    a, b = np.indices((1000, 1000)).reshape(2, -1)
    side = held_out(a, b)
    assert side.mean() == pytest.approx(0.1, abs=0.005)
    by_last_digits = np.bincount((a % 10 * 10 + b % 10)[side], minlength=100) / side.sum()
    np.testing.assert_allclose(by_last_digits, 0.01, rtol=0.1)


def test_no_pair_of_the_test_is_in_20_000_training_rows():
    rows = Addition().train(np.arange(20_000), 0, 48).tokens
    trained = {tuple(row[start : start + 7]) for start in (1, 12, 23, 34) for row in rows.tolist()}
    tested = {tuple(row[1:8]) for row in Addition().sample(2000, 0).tokens.tolist()}
    assert not trained & tested


def test_chance_is_that_of_a_spread_guess_digit_by_digit():
    """Ten digits in each of three places and two in the last, as probabilities."""
    items = Addition().sample(4000, seed=0)
    answers = items.labels[items.labels != IGNORE].reshape(-1, 4) - V.DIGITS.start
    forecast = np.zeros((4, 10))
    forecast[:3], forecast[3, :2] = 0.1, 0.5
    p = forecast[np.arange(4), answers]  # (items, 4)
    brier = ((forecast - np.eye(10)[answers]) ** 2).sum(-1).mean(axis=1)
    scores = {NLL_NATS: -np.log(p).mean(1), BRIER: brier, TOKEN_ACCURACY: p.mean(1), EXACT_MATCH: p.prod(1)}
    for metric, seen in scores.items():
        np.testing.assert_allclose(Addition().chance(metric, items), seen, rtol=1e-6)
    carry = answers[:, 3].mean()
    assert abs(carry - 0.5) < 4 * 0.5 / np.sqrt(len(items))


def test_one_digit_is_refused():
    with pytest.raises(LabkitError, match="at least two digits; got 1. Give digits=2"):
        Addition(digits=1)
