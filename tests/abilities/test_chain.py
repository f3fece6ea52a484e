"""Every answer is found by walking from dictionary to dictionary."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.abilities import Chain
from labkit.abilities.vocabulary import spell
from labkit.records import IGNORE


@pytest.mark.parametrize("hops", [1, 2, 3])
@pytest.mark.parametrize("width", [2, 5])
def test_answers_by_walking(hops, width):
    chain = Chain(hops=hops, width=width)
    rows = chain.train(np.arange(500), 0, 48)
    segments, first, asked_hops = max(hops, 2), 1 + 2 * width * max(hops, 2), []
    for tokens, labels in zip(rows.tokens, rows.labels, strict=True):
        words, answers = spell(tokens).split(), spell(labels).split()
        links = dict(zip(words[1:first:2], words[2:first:2], strict=True))
        assert len(links) == width * segments
        for source, target in links.items():
            assert "ABCD".index(target[0]) == "ABCD".index(source[0]) + 1
        assert len(set(links.values())) == len(links)
        for question in range(first, len(words) - 1, 2):
            here, count = words[question + 1], int(words[question][1:])
            for _ in range(count):
                here = links[here]
            assert answers[question : question + 2] == ["_", here]
            asked_hops.append((question == first, count))
    assert {count for is_first, count in asked_hops if is_first} == {hops}
    later = [count for is_first, count in asked_hops if not is_first]
    assert set(later) == set(range(1, hops + 1))
    assert np.mean(np.array(later) == hops) == pytest.approx(0.5 + 0.5 / hops, abs=0.03)


def test_links_stand_in_an_order_of_their_own_in_each_segment():
    """Otherwise the place alone would give the answer away."""
    rows = Chain(hops=2).train(np.arange(2000), 0, 48).tokens
    first_targets, second_sources = rows[:, 2:11:2], rows[:, 11:21:2]
    same_place = (first_targets == second_sources).mean()
    assert same_place == pytest.approx(0.2, abs=0.02)
    assert (rows != IGNORE).all()
