"""What is asked after the separator is the string, read backwards."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.abilities import Reverse
from labkit.abilities import vocabulary as V
from labkit.records import IGNORE


@pytest.mark.parametrize("length", [40, 48, 96])
def test_the_answer_is_the_string_backwards(length):
    rows = Reverse().train(np.arange(1000), 0, length)
    sizes = []
    for tokens, labels in zip(rows.tokens.tolist(), rows.labels.tolist(), strict=True):
        at = tokens.index(V.SEPARATOR)
        string = tokens[1:at]
        sizes.append(len(string))
        assert len(set(string)) == len(string) and set(string) <= set(V.LETTERS)
        assert [label for label in labels if label != IGNORE] == string[::-1]
        assert labels[at : at + len(string)] == string[::-1]
        assert tokens[at + 1 : at + 1 + len(string)] == string[::-1]  # each letter is shown once it has been asked
        assert set(tokens[at + 1 + len(string) :]) <= {V.PAD}
    assert set(sizes) == set(range(6, 20))


def test_the_longest_string_fits_a_row_that_ends_with_its_answer():
    items = Reverse(shortest=19).sample(20, seed=0, length=39)
    assert (items.labels[:, -1] == items.tokens[:, 1]).all()
