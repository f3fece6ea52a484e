"""Labels by direct search, chance by an independent count over test items."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.abilities import PHop
from labkit.abilities import vocabulary as V
from labkit.abilities.p_hop import ALPHABET, one_hop
from labkit.records import BRIER, EXACT_MATCH, IGNORE, NLL_NATS, TOKEN_ACCURACY


def search(string: list[int], place: int, hops: int) -> int:
    """The letter found after so many hops from `place`, or IGNORE."""
    for _ in range(hops):
        earlier = [j for j in range(place) if string[j] == string[place]]
        if not earlier:
            return IGNORE
        place = earlier[-1] + 1
    return string[place]


@pytest.mark.parametrize("hops", [1, 2, 8])
def test_labels_by_direct_search(hops):
    rows = PHop(hops=hops).train(np.arange(150), 0, 48)
    asked = []
    for tokens, labels in zip(rows.tokens.tolist(), rows.labels.tolist(), strict=True):
        count, string = V.HOP_COUNTS[tokens[1] - V.HOPS.start], tokens[2:]
        asked.append(count)
        assert all(a != b for a, b in zip(string, string[1:], strict=False))
        assert labels == [IGNORE, IGNORE, *(search(string, place, count) for place in range(len(string)))]
    assert set(asked) == {h for h in V.HOP_COUNTS if h <= hops}


def test_an_item_takes_all_hops_and_is_scored_at_the_last_place_with_an_answer():
    items = PHop(hops=4).sample(200, seed=0)
    for tokens, labels, length in zip(items.tokens.tolist(), items.labels.tolist(), items.lengths, strict=True):
        assert V.HOP_COUNTS[tokens[1] - V.HOPS.start] == 4
        assert labels[length - 1] == search(tokens[2:length], length - 3, 4)


def test_one_hop_of_a_string_done_by_hand():
    assert one_hop(np.array([[0, 1, 0, 2, 1]])).tolist() == [[-1, -1, 1, -1, 2]]


@pytest.mark.parametrize("hops", [1, 2, 4])
def test_chance_is_copying_from_the_best_fixed_distance(hops):
    ability = PHop(hops=hops)
    items = ability.sample(8000, seed=5)
    row, last = np.arange(len(items)), items.lengths - 1
    answer = items.labels[row, last]
    hits = np.stack([items.tokens[row, last - back] == answer for back in range(16)], axis=1)
    hit = hits[:, hits.mean(axis=0).argmax()]
    p = ability.chance(EXACT_MATCH, items)[0]  # the confidence of the declared guesser
    forecast = np.where(hit, p, (1 - p) / (ALPHABET - 1))
    brier = np.where(
        hit,
        (1 - p) ** 2 + (ALPHABET - 1) * ((1 - p) / (ALPHABET - 1)) ** 2,
        p**2 + (1 - (1 - p) / (ALPHABET - 1)) ** 2 + (ALPHABET - 2) * ((1 - p) / (ALPHABET - 1)) ** 2,
    )
    for metric, seen in ((EXACT_MATCH, hit), (TOKEN_ACCURACY, hit), (NLL_NATS, -np.log(forecast)), (BRIER, brier)):
        error = np.std(seen) * np.sqrt(1 / len(items) + 1 / 20_000)  # of the simulation and of the declared value
        assert abs(np.mean(seen) - ability.chance(metric, items)[0]) < 4 * error
    assert p > 1 / ALPHABET
