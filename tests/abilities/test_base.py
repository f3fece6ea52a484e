"""Random numbers addressed by (stream, row): uniform, independent of company, never the same in two streams."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from labkit.abilities import Draws
from labkit.abilities.base import pairs, queries, shuffled
from labkit.records import IGNORE

LEAST_P = 1e-4


def draws(rows: int = 20_000, stream: str = "test") -> Draws:
    return Draws(stream, np.arange(rows))


def test_a_row_does_not_depend_on_its_company():
    many, one = draws(100), Draws("test", np.array([17]))
    for call in (lambda d: d.bits(3), lambda d: d.integers(10, 5), lambda d: d.uniform(2), lambda d: d.distinct(20, 4)):
        np.testing.assert_array_equal(call(many)[17:18], call(one))


def test_streams_rows_and_calls_share_no_number():
    a, b = draws(2000), draws(2000, "another stream")
    numbers = np.concatenate([a.bits(5), a.bits(5), b.bits(10)], axis=1)
    assert len(np.unique(numbers)) == numbers.size


@pytest.mark.parametrize("high", [2, 7, 10, 32, 97])
def test_integers_are_uniform(high):
    drawn = draws().integers(high, 5)
    assert drawn.dtype == np.int64 and drawn.min() == 0 and drawn.max() == high - 1
    for column in drawn.T:
        assert scipy.stats.chisquare(np.bincount(column, minlength=high)).pvalue > LEAST_P
    together = np.bincount(drawn[:, 0] * high + drawn[:, 1], minlength=high * high)
    assert scipy.stats.chisquare(together).pvalue > LEAST_P


def test_integers_take_a_bound_for_every_number():
    high = np.array([[1, 2, 5], [3, 1, 100]]).repeat(5000, axis=0)
    drawn = draws(10_000).integers(high, 3)
    assert (drawn >= 0).all() and (drawn < high).all()
    for half in (slice(0, 5000), slice(5000, None)):
        np.testing.assert_array_equal(drawn[half].max(axis=0), high[half][0] - 1)


def test_uniform_lies_in_the_unit_interval_and_is_flat():
    drawn = draws().uniform(3)
    assert drawn.min() >= 0 and drawn.max() < 1
    for column in drawn.T:
        assert scipy.stats.kstest(column, "uniform").pvalue > LEAST_P


def test_distinct_numbers_are_distinct_and_every_order_is_equally_likely():
    drawn = draws().distinct(5, 3)
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    number = {order: k for k, order in enumerate(itertools.permutations(range(5), 3))}
    counts = np.bincount([number[tuple(row)] for row in drawn.tolist()], minlength=len(number))
    assert scipy.stats.chisquare(counts).pvalue > LEAST_P


def test_distinct_can_take_all_there_are():
    np.testing.assert_array_equal(np.sort(draws(50).distinct(32, 32)), np.tile(np.arange(32), (50, 1)))


def test_answers_of_queries_stand_at_the_last_token_of_their_question_and_are_cut_with_it():
    context, questions = np.array([[1, 2]]), np.array([[[3, 4], [5, 6], [7, 8]]])
    rows = queries(context, questions, np.array([[10, 11, 12]]), options=4, length=7)
    assert rows.tokens.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert rows.labels.tolist() == [[IGNORE, IGNORE, IGNORE, 10, IGNORE, 11, IGNORE]]
    assert (rows.start[0], rows.stop[0], rows.options[0]) == (3, 4, 4.0)


def test_pairs_interleave():
    assert pairs(np.array([[1, 2]]), np.array([[3, 4]])).tolist() == [[1, 3, 2, 4]]


def test_shuffled_moves_columns_as_a_whole_and_each_row_on_its_own():
    values = np.tile(np.arange(4)[:, None] * [1, 10], (1000, 1, 1))
    mixed = shuffled(draws(1000), values)
    np.testing.assert_array_equal(mixed[..., 1], 10 * mixed[..., 0])
    np.testing.assert_array_equal(np.sort(mixed[..., 0], axis=1), values[..., 0])
    assert len(np.unique(mixed[..., 0], axis=0)) == 24
