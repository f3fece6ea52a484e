"""The rule is told by either example; no beginning of the test is ever trained on."""

from __future__ import annotations

import numpy as np

from labkit.abilities import Shift
from labkit.abilities import vocabulary as V
from labkit.abilities.shift import beginnings
from labkit.records import IGNORE


def digits(tokens: np.ndarray) -> list[int]:
    return [int(t) - V.DIGITS.start for t in tokens]


def test_answers_by_arithmetic():
    rows = Shift().train(np.arange(2000), 0, 48)
    for tokens, labels in zip(rows.tokens, rows.labels, strict=True):
        x, fx, y, fy = digits(tokens[1:5])
        hidden = (fx - x) % 7
        assert x != y and (fy - y) % 7 == hidden and tokens[5] == V.SEPARATOR
        asked = digits(tokens[6:])
        assert not {x, y} & set(asked)
        assert digits(labels[6:]) == [(a + hidden) % 7 for a in asked]
        assert set(labels[:6].tolist()) == {IGNORE}


def test_the_two_sides_are_all_beginnings_and_share_none():
    train, test = ({tuple(b) for b in beginnings(side).tolist()} for side in (False, True))
    assert not train & test and len(train | test) == 7 * 7 * 6
    assert 0.1 < len(test) / (7 * 7 * 6) < 0.3


def test_no_beginning_of_the_test_is_trained_on():
    trained = {tuple(row) for row in Shift().train(np.arange(20_000), 0, 48).tokens[:, 1:5].tolist()}
    tested = {tuple(row) for row in Shift().sample(1000, 0).tokens[:, 1:5].tolist()}
    assert trained and tested and not trained & tested
    assert len(trained) + len(tested) == 7 * 7 * 6
