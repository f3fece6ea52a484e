"""Pointer chasing in one string: go back to the last occurrence of this letter, step to what followed it, again and again."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from labkit.abilities import vocabulary as V
from labkit.abilities.base import Ability, Draws, Items, Rows
from labkit.records import BRIER, IGNORE, NLL_NATS

ALPHABET = 4


@dataclasses.dataclass(frozen=True)
class PHop(Ability):
    """p-hop induction (Sanford, Hsu & Telgarsky 2024, arXiv 2402.09268): h hops back through a string of four letters.

    One hop from place i leads to the place after the last earlier occurrence of its letter; asked is the letter found
    after h hops, at every place where it exists. Training rows draw h among 1, 2, 4, … up to `hops`; a test item takes
    `hops` and is scored at the row's last place with an answer. No letter stands twice in a row (a hop would then lead
    back to where it began), yet short hops often end close by: the guesser copies from the best fixed distance.

    >>> from labkit.abilities import draw
    >>> print(draw(PHop(hops=2), length=14, index=3))
    [p-hop] ?2 b d b c a c a c d a b a
    _ _ _ _ _ _ _ _ a c d a _ c
    """

    hops: int = 2
    weight: float = dataclasses.field(default=0.05, kw_only=True)

    @property
    def name(self) -> str:
        return f"p-hop-{self.hops}"

    def rows(self, draws: Draws, length: int, test: bool) -> Rows:
        n, time = len(draws), max(length - 2, 1)
        allowed = [h for h in V.HOP_COUNTS if h <= self.hops]
        which = draws.integers(len(allowed), 1)
        if test:
            which[:] = len(allowed) - 1
        steps = np.concatenate([draws.integers(ALPHABET, 1), 1 + draws.integers(ALPHABET - 1, time - 1)], axis=1)
        string = np.cumsum(steps, axis=1) % ALPHABET
        hop = one_hop(string)
        places = [np.broadcast_to(np.arange(time), (n, time))]
        for _ in range(allowed[-1]):
            here = places[-1]
            places.append(np.where(here >= 0, np.take_along_axis(hop, np.maximum(here, 0), axis=1), -1))
        found = np.stack([places[h] for h in allowed])[which[:, 0], np.arange(n)]  # (rows, time), −1 where there is none
        answer = np.take_along_axis(string, np.maximum(found, 0), axis=1) + V.LETTERS.start
        head = np.concatenate([np.full((n, 1), V.task("p-hop")), which + V.HOPS.start], axis=1)
        tokens = np.concatenate([head, string + V.LETTERS.start], axis=1)[:, :length]
        labels = np.concatenate([np.full((n, 2), IGNORE), np.where(found >= 0, answer, IGNORE)], axis=1)[:, :length]
        asked = labels[:, ::-1] != IGNORE
        stop = np.where(asked.any(axis=1), length - asked.argmax(axis=1), length + 1)  # no answer: the row is too short
        return Rows(tokens, labels, stop - 1, stop, np.full(n, float(ALPHABET)))

    def chance(self, metric: str, items: Items) -> np.ndarray:
        """Score of a guesser who copies the letter at the best fixed distance, with just as much confidence as is due."""
        hit, others = shortcut(self.hops), (1 - shortcut(self.hops)) / (ALPHABET - 1)
        right = (1 - hit) ** 2 + (ALPHABET - 1) * others**2
        wrong = hit**2 + (1 - others) ** 2 + (ALPHABET - 2) * others**2
        value = {
            NLL_NATS: -hit * np.log(hit) - (1 - hit) * np.log(others),
            BRIER: hit * right + (1 - hit) * wrong,
        }.get(metric, hit)
        return np.full(len(items), value)


@functools.cache
def shortcut(hops: int) -> float:
    """How often the answer equals the letter at the best fixed distance, over 20,000 rows kept apart for this."""
    rows = PHop(hops=hops).rows(Draws("p-hop/shortcut", np.arange(20_000)), length=48, test=True)
    place = np.arange(20_000), rows.stop - 1
    answer = rows.labels[place]
    return max(float((rows.tokens[place[0], place[1] - back] == answer).mean()) for back in range(16))


def one_hop(string: np.ndarray) -> np.ndarray:
    """(rows, time) place after the last earlier occurrence of each place's letter; −1 where there is none."""
    n, time = string.shape
    last = np.full((n, ALPHABET), -1)
    hop = np.empty((n, time), dtype=np.int64)
    row = np.arange(n)
    for t in range(time):
        seen = last[row, string[:, t]]
        hop[:, t] = np.where(seen >= 0, seen + 1, -1)
        last[row, string[:, t]] = t
    return hop
