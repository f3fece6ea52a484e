"""The chain is a stochastic matrix, the walks follow it, and its scores are bounds."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from labkit.abilities import Markov
from labkit.abilities import vocabulary as V
from labkit.abilities.markov import STATES, chain
from labkit.records import BRIER, IGNORE, NLL_NATS, TOKEN_ACCURACY

ITEMS = Markov().sample(2000, seed=0)
BEFORE = ITEMS.tokens[:, 1:] - V.LETTERS.start  # the letter each asked one follows
ASKED = ITEMS.labels[:, 1:] - V.LETTERS.start


def test_the_matrix_is_stochastic_and_the_law_stationary():
    table, matrix, law = chain()
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    np.testing.assert_allclose(law @ matrix, law, atol=1e-12)
    assert law.sum() == pytest.approx(1) and (law > 0).all()
    for state in range(STATES):
        np.testing.assert_array_equal(np.bincount(table[state], minlength=STATES) / table.shape[1], matrix[state])


def test_the_next_letter_is_asked_everywhere():
    rows = Markov().train(np.arange(50), 0, 48)
    np.testing.assert_array_equal(rows.labels[:, :-1], rows.tokens[:, 1:])


def test_walks_follow_the_chain():
    _, matrix, law = chain()
    seen = np.zeros((STATES, STATES))
    np.add.at(seen, (BEFORE, ASKED), 1)
    assert (seen[matrix == 0] == 0).all()
    for state in np.argsort(law)[-8:]:
        expected = seen[state].sum() * matrix[state]
        likely = expected >= 5
        observed = np.append(seen[state, likely], seen[state, ~likely].sum())
        wanted = np.append(expected[likely], expected[~likely].sum())
        keep = wanted > 0
        assert scipy.stats.chisquare(observed[keep], wanted[keep]).pvalue > 1e-4
    first = np.bincount(BEFORE[:, 0], minlength=STATES)
    assert scipy.stats.chisquare(first, law * len(ITEMS)).pvalue > 1e-4


def _scores(forecast: np.ndarray) -> dict[str, np.ndarray]:
    """Per item, from the probabilities (items, time, states) given to each next letter."""
    truth = np.eye(STATES)[ASKED]
    return {
        TOKEN_ACCURACY: (forecast.argmax(-1) == ASKED).mean(axis=1),
        NLL_NATS: -np.log((forecast * truth).sum(-1)).mean(axis=1),
        BRIER: ((forecast - truth) ** 2).sum(-1).mean(axis=1),
    }


@pytest.mark.parametrize("metric", Markov.metrics)
def test_chance_is_the_score_of_knowing_the_frequencies_and_best_that_of_knowing_the_chain(metric):
    _, matrix, law = chain()
    chance, best = Markov().chance(metric, ITEMS)[0], Markov.best()[metric]
    for forecast, declared in ((np.broadcast_to(law, (*ASKED.shape, STATES)), chance), (matrix[BEFORE], best)):
        seen = _scores(forecast)[metric]
        assert abs(seen.mean() - declared) < 4 * seen.std() / np.sqrt(len(seen))
    assert best > chance if metric == TOKEN_ACCURACY else best < chance


@pytest.mark.parametrize("mix", [0.1, 0.5])
def test_no_other_forecast_beats_the_best(mix):
    _, matrix, law = chain()
    other = _scores((1 - mix) * matrix[BEFORE] + mix * law)
    assert other[NLL_NATS].mean() > Markov.best()[NLL_NATS]
    assert other[BRIER].mean() > Markov.best()[BRIER]


def test_every_item_asks_the_whole_walk():
    assert ((ITEMS.labels != IGNORE).sum(axis=1) == 47).all()
