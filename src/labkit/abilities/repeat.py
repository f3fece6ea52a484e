"""Copying a random string: it forms the copying heads that the other in-context abilities are built on."""

from __future__ import annotations

import dataclasses

import numpy as np

from labkit.abilities import vocabulary as V
from labkit.abilities.base import Ability, Draws, Rows
from labkit.records import IGNORE


@dataclasses.dataclass(frozen=True)
class Repeat(Ability):
    """A string of 8–15 different letters, repeated to the end of the row; every later letter is asked.

    An item asks for one whole repetition after the first letter; the guesser picks a letter of the string.

    >>> from labkit.abilities import draw
    >>> print(draw(Repeat(shortest=4, longest=4), length=14))
    [repeat] z a s t z a s t z a s t z
    _ _ _ _ _ a s t z a s t z a
    """

    shortest: int = 8
    longest: int = 15
    weight: float = dataclasses.field(default=0.15, kw_only=True)

    @property
    def name(self) -> str:
        return "repeat"

    def rows(self, draws: Draws, length: int, test: bool) -> Rows:
        n = len(draws)
        size = self.shortest + draws.integers(self.longest - self.shortest + 1, 1)
        string = draws.distinct(len(V.LETTERS), self.longest) + V.LETTERS.start
        line = np.take_along_axis(string, np.arange(length) % size, axis=1)
        tokens = np.concatenate([np.full((n, 1), V.task("repeat")), line[:, :-1]], axis=1)
        # The first letter of the first repetition cannot be told (the string's length is not announced).
        labels = np.where(np.arange(length) > size, line, IGNORE)
        start = size[:, 0] + 1
        return Rows(tokens, labels, start, start + size[:, 0] - 1, size[:, 0].astype(float))
