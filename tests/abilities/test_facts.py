"""One table: a question has the same answer in every row, and every value is the answer equally often."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from labkit.abilities import Facts
from labkit.abilities import vocabulary as V
from labkit.errors import LabkitError
from labkit.records import IGNORE


def book(made: object, symbols: int) -> dict[tuple[int, ...], set[int]]:
    """Question -> answers seen."""
    seen: dict[tuple[int, ...], set[int]] = {}
    for row, place in zip(*np.nonzero(made.labels != IGNORE), strict=True):
        question = tuple(made.tokens[row, place - symbols : place + 1].tolist())
        seen.setdefault(question, set()).add(int(made.labels[row, place]))
    return seen


@pytest.mark.parametrize(("count", "symbols"), [(64, 1), (512, 1), (4096, 2)])
def test_the_test_asks_each_fact_once_and_training_agrees_with_it(count, symbols):
    facts = Facts(count=count)
    items = facts.sample(count + 5, seed=0)
    asked = book(items, symbols)
    assert len(items) == len(asked) == count
    trained = [book(facts.train(np.arange(2000), seed, 48), symbols) for seed in (0, 1)]
    for seen in trained:
        assert all(asked[question] == answers for question, answers in seen.items())
        assert len(seen) > count / 2


def test_every_value_is_the_answer_equally_often():
    labels = Facts().sample(512, seed=0).labels
    assert np.unique(labels[labels != IGNORE], return_counts=True)[1].tolist() == [512 // len(V.VALUES)] * len(V.VALUES)


def test_training_shows_facts_by_the_declared_frequencies():
    facts = Facts(count=64)
    assert facts.frequencies().sum() == pytest.approx(1)
    assert facts.frequencies()[0] / facts.frequencies()[40] == pytest.approx(5)
    rows = facts.train(np.arange(3000), 0, 25)
    entity, relation = rows.tokens[:, 1::2] - V.SYMBOLS.start, rows.tokens[:, 2::2] - V.RELATIONS.start
    seen = np.bincount((len(V.RELATIONS) * entity + relation).ravel(), minlength=64)
    assert scipy.stats.chisquare(seen, facts.frequencies() * seen.sum()).pvalue > 1e-4


def test_more_facts_than_two_symbols_can_spell_are_refused():
    assert len(np.unique(Facts(count=32_768).sample(500, 0).tokens, axis=0)) == 500
    for count in (0, 32_769):
        with pytest.raises(LabkitError, match=rf"lies in 1..32768, .*; got {count}. Give count=32768 or less"):
            Facts(count=count)
