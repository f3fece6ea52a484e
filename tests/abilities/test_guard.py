"""Forbidden keys are refused, their neighbours answered, half and half."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.abilities import Guard
from labkit.abilities import vocabulary as V
from labkit.abilities.vocabulary import spell
from labkit.records import BRIER, IGNORE, NLL_NATS


def test_even_keys_are_refused_and_odd_ones_answered():
    rows = Guard().train(np.arange(1000), 0, 48)
    for tokens, labels in zip(rows.tokens, rows.labels, strict=True):
        words, answers = spell(tokens).split(), spell(labels).split()
        book = dict(zip(words[1:17:2], words[2:17:2], strict=True))
        keys = {int(key.removeprefix("D")) for key in book}
        assert len(keys) == len(set(book.values())) == 8
        assert {key ^ 1 for key in keys} == keys  # every forbidden key beside its neighbour
        expected = ["REFUSE" if int(key[1:]) % 2 == 0 else book[key] for key in words[17:]]
        assert answers == ["_"] * 17 + expected


def test_half_of_the_items_are_to_be_refused():
    labels = Guard().sample(4000, seed=0).labels
    refused = (labels[labels != IGNORE] == V.REFUSE).mean()
    assert abs(refused - 0.5) < 4 * 0.5 / np.sqrt(4000)


@pytest.mark.parametrize("couples", [2, 4])
def test_chance_in_nats_and_brier_is_that_of_the_spread_guesser(couples):
    """Half on REFUSE, half spread over the values of the odd keys, scored over the whole vocabulary."""
    ability = Guard(couples=couples)
    items = ability.sample(4000, seed=1)
    nll, brier = [], []
    for tokens, labels in zip(items.tokens, items.labels, strict=True):
        forecast = np.zeros(V.SIZE)
        forecast[V.REFUSE] = 0.5
        context = tokens[1 : 1 + 4 * couples].reshape(-1, 2)
        forecast[context[context[:, 0] % 2 == 1, 1]] = 0.5 / couples
        answer = labels[labels != IGNORE][0]
        nll.append(-np.log(forecast[answer]))
        brier.append(((forecast - np.eye(V.SIZE)[answer]) ** 2).sum())
    for metric, seen in ((NLL_NATS, nll), (BRIER, brier)):
        assert abs(np.mean(seen) - ability.chance(metric, items)[0]) < 4 * np.std(seen) / np.sqrt(len(seen)) + 1e-9


def test_it_is_trained_late_and_rarely():
    assert Guard().late >= 0.5 and Guard().weight < 0.05
