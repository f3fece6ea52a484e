"""A rule given by example only: add a hidden number modulo 7."""

from __future__ import annotations

import dataclasses

import numpy as np

from labkit.abilities import vocabulary as V
from labkit.abilities.base import Ability, Draws, Rows, pairs, queries

MODULUS, FREE = 7, 5  # FREE digits are left to ask once two are shown


@dataclasses.dataclass(frozen=True)
class Shift(Ability):
    """Two example pairs x, x + b mod 7 with b hidden, then many x of which the shifted digit is asked.

    The examples never contain an asked digit, so copying does not help; the guesser picks a digit that was not shown as
    a result, 1 in 5. There are only 7 · 7 · 6 beginnings, so the
    (b, x, x′) whose sum is divisible by 5 are kept for the test.

    >>> from labkit.abilities import draw
    >>> print(draw(Shift(), length=10, index=1))
    [shift] 1 4 0 3 | 2 3 3 4
    _ _ _ _ _ _ 5 6 6 0
    """

    weight: float = dataclasses.field(default=0.10, kw_only=True)

    @property
    def name(self) -> str:
        return "shift"

    @property
    def space(self) -> int:
        return FREE * len(beginnings(test=True))

    def rows(self, draws: Draws, length: int, test: bool) -> Rows:
        n, side = len(draws), beginnings(test)
        begin = side[draws.index // FREE if test else draws.integers(len(side), 1)[:, 0]]  # (rows, 3)
        hidden, examples = begin[:, :1], begin[:, 1:]
        shown = pairs(examples, (examples + hidden) % MODULUS) + V.DIGITS.start
        context = np.concatenate(
            [np.full((n, 1), V.task("shift")), shown, np.full((n, 1), V.SEPARATOR)], axis=1
        )
        digits = np.broadcast_to(np.arange(MODULUS), (n, MODULUS))
        others = digits[(digits[:, :, None] != examples[:, None, :]).all(2)].reshape(n, FREE)
        which = draws.integers(FREE, max(length - context.shape[1], 1))
        if test:
            which[:, 0] = draws.index % FREE
        asked = np.take_along_axis(others, which, axis=1)
        answers = (asked + hidden) % MODULUS + V.DIGITS.start
        return queries(context, asked[:, :, None] + V.DIGITS.start, answers, FREE, length)


def beginnings(test: bool) -> np.ndarray:
    """(k, 3) all (b, x, x′) with x ≠ x′ of the training or of the test side."""
    b, x, y = np.indices((MODULUS,) * 3).reshape(3, -1)
    side = (b + x + y) % 5 == 0
    return np.stack([b, x, y], axis=1)[(x != y) & (side == test)]
