"""Writing a string backwards."""

from __future__ import annotations

import dataclasses

import numpy as np

from labkit.abilities import vocabulary as V
from labkit.abilities.base import Ability, Draws, Rows
from labkit.records import IGNORE


@dataclasses.dataclass(frozen=True)
class Reverse(Ability):
    """A string of 6–19 different letters, a separator, and the string backwards; a row holds one string.

    >>> from labkit.abilities import draw
    >>> print(draw(Reverse(shortest=4, longest=4), length=10))
    [reverse] g i ã c | c ã i g
    _ _ _ _ _ c ã i g _
    """

    shortest: int = 6
    longest: int = 19
    weight: float = dataclasses.field(default=0.10, kw_only=True)

    @property
    def name(self) -> str:
        return "reverse"

    def rows(self, draws: Draws, length: int, test: bool) -> Rows:
        size = self.shortest + draws.integers(self.longest - self.shortest + 1, 1)  # (rows, 1)
        string = draws.distinct(len(V.LETTERS), self.longest) + V.LETTERS.start
        place = np.arange(length)
        back = 2 * size + 1 - place  # index into the string once the separator, at size + 1, has passed
        forward = np.take_along_axis(string, np.clip(place - 1, 0, self.longest - 1) + 0 * size, axis=1)
        backward = np.take_along_axis(string, np.clip(back, 0, self.longest - 1), axis=1)
        tokens = np.where(place <= size, forward, np.where(place == size + 1, V.SEPARATOR, backward))
        tokens[:, 0] = V.task("reverse")
        tokens = np.where(place <= 2 * size + 1, tokens, V.PAD)
        answering = (place >= size + 1) & (place <= 2 * size)
        labels = np.where(answering, np.take_along_axis(string, np.clip(back - 1, 0, self.longest - 1), axis=1), IGNORE)
        start = size[:, 0] + 1
        return Rows(tokens, labels, start, start + size[:, 0], size[:, 0].astype(float))

