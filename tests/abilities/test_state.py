"""The tables are groups, and every label is the product of the permutations before it."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest

from labkit.abilities import State
from labkit.abilities import vocabulary as V
from labkit.abilities.state import PREFIX, beginnings, table
from labkit.errors import LabkitError
from labkit.records import IGNORE


def even(p: tuple[int, ...]) -> bool:
    return sum(a > b for a, b in itertools.combinations(p, 2)) % 2 == 0


ELEMENTS = {
    "s3": list(itertools.permutations(range(3))),
    "a5": [p for p in itertools.permutations(range(5)) if even(p)],
}


def then(g: tuple[int, ...], h: tuple[int, ...]) -> tuple[int, ...]:
    """First g, then h, of permutations written as the images of 0, 1, 2, …"""
    return tuple(h[g[x]] for x in range(len(g)))


@pytest.mark.parametrize(("group", "order"), [("s3", 6), ("a5", 60)])
def test_the_table_is_a_group_of_that_order(group, order):
    product = table(group)
    numbers = np.arange(order)
    assert product.shape == (order, order)
    for line in (*product, *product.T):  # closed, and every equation g·x = h has one solution
        np.testing.assert_array_equal(np.sort(line), numbers)
    (identity,) = (g for g in numbers if (product[g] == numbers).all())
    np.testing.assert_array_equal(product[:, identity], numbers)
    assert (np.sort(np.argwhere(product == identity)[:, 0]) == numbers).all()
    np.testing.assert_array_equal(product[product], product[:, product])  # (g·h)·k = g·(h·k)
    assert (product != product.T).any()


def test_commutators_generate_all_of_a5_but_not_of_s3():
    """Solvable means that commutators generate less than the group; that is what makes a5 hard."""
    for group, share in (("s3", 3), ("a5", 60)):
        product = table(group)
        inverse = np.argmax(product == np.flatnonzero((product == np.arange(len(product))).all(1))[0], axis=1)
        g, h = np.indices(product.shape)
        found = set(product[product[g, h], product[inverse[g], inverse[h]]].ravel().tolist())
        while (larger := found | {int(product[a, b]) for a in found for b in found}) != found:
            found = larger
        assert len(found) == share


@pytest.mark.parametrize("group", ["s3", "a5"])
def test_labels_by_composing_permutations(group):
    elements = ELEMENTS[group]
    rows = State(group=group).train(np.arange(100), 0, 48)
    for tokens, labels in zip(rows.tokens - V.SYMBOLS.start, rows.labels, strict=True):
        so_far = list(itertools.accumulate((elements[t] for t in tokens[1:]), then))
        assert (labels[1:] - V.SYMBOLS.start).tolist() == [elements.index(p) for p in so_far]
        assert labels[0] == IGNORE


@pytest.mark.parametrize("steps", [2, 4, 8, 16])
def test_an_item_asks_the_product_after_so_many_elements(steps):
    items = State(steps=steps).sample(100, seed=0)
    assert (items.lengths == steps + 1).all()
    for tokens, labels in zip(items.tokens, items.labels, strict=True):
        word = [ELEMENTS["s3"][t - V.SYMBOLS.start] for t in tokens[1:]]
        assert ELEMENTS["s3"][labels[-1] - V.SYMBOLS.start] == functools.reduce(then, word)


@pytest.mark.parametrize("group", ["s3", "a5"])
def test_no_beginning_of_the_test_is_trained_on(group):
    trained = {tuple(row) for row in State(group=group).train(np.arange(20_000), 0, 9).tokens[:, 1:5].tolist()}
    tested = {tuple(row) for row in State(16, group).sample(2000, 0).tokens[:, 1:5].tolist()}
    assert trained and tested and not trained & tested


def test_a_quarter_of_all_beginnings_is_kept_for_the_test():
    train, test = beginnings("s3", False), beginnings("s3", True)
    assert len(train) == 3 * len(test) and len(train) + len(test) == 6**PREFIX
    assert len(np.unique(np.concatenate([train, test]), axis=0)) == 6**PREFIX


def test_an_unknown_group():
    with pytest.raises(LabkitError, match="a known group is needed; got 's4'.*All: s3, a5"):
        State(group="s4").sample(1, seed=0)
