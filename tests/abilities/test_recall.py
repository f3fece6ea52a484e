"""Every answer is found by looking the key up in a dictionary."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.abilities import Recall
from labkit.abilities import vocabulary as V
from labkit.records import IGNORE


@pytest.mark.parametrize("pairs", [3, 8])
def test_answers_by_dictionary(pairs):
    rows = Recall(pairs=pairs).train(np.arange(1000), 0, 48)
    for tokens, labels in zip(rows.tokens.tolist(), rows.labels.tolist(), strict=True):
        context, asked = tokens[1 : 1 + 2 * pairs], tokens[1 + 2 * pairs :]
        book = dict(zip(context[::2], context[1::2], strict=True))
        assert len(book) == len(set(book.values())) == pairs
        assert set(book) <= set(V.LETTERS) and set(book.values()) <= set(V.VALUES)
        assert labels[1 + 2 * pairs :] == [book[key] for key in asked]
        assert set(labels[: 1 + 2 * pairs]) == {IGNORE}
