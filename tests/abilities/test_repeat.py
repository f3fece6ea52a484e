"""The string comes again and again; everything after the first letter of the first repetition is asked."""

from __future__ import annotations

import numpy as np

from labkit.abilities import Repeat
from labkit.abilities import vocabulary as V
from labkit.records import IGNORE


def period(line: list[int]) -> int:
    """Distance after which the first letter comes again."""
    return line.index(line[0], 1)


def test_rows_repeat_a_string_of_different_letters():
    rows = Repeat().train(np.arange(1000), 0, 48)
    sizes = []
    for tokens, labels in zip(rows.tokens.tolist(), rows.labels.tolist(), strict=True):
        line = tokens[1:]
        size = period(line)
        sizes.append(size)
        assert len(set(line[:size])) == size and set(line) <= set(V.LETTERS)
        assert line == (line[:size] * 6)[:47]
        assert labels[: size + 1] == [IGNORE] * (size + 1)
        following = (line[:size] * 7)[size + 1 : 48]
        assert labels[size + 1 :] == following
    assert set(sizes) == set(range(8, 16))


def test_an_item_asks_for_one_whole_repetition_but_its_first_letter():
    items = Repeat().sample(300, seed=0)
    for tokens, labels, length, options in zip(items.tokens, items.labels, items.lengths, items.options, strict=True):
        line = tokens[1:length].tolist()
        size = period(line)
        assert options == size and length == 2 * size
        assert labels[labels != IGNORE].tolist() == line[1:size]
