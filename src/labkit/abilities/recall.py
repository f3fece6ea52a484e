"""Associative recall: which value went with this key, earlier in the same row?"""

from __future__ import annotations

import dataclasses

import numpy as np

from labkit.abilities import vocabulary as V
from labkit.abilities.base import Ability, Draws, Rows, pairs, queries


@dataclasses.dataclass(frozen=True)
class Recall(Ability):
    """Key–value pairs, then keys (multi-query associative recall, Arora et al. 2023, arXiv 2312.04927).

    Keys and values differ within a row, so that a guesser who picks a value of the context is right 1 in `pairs`.

    >>> from labkit.abilities import draw
    >>> print(draw(Recall(pairs=3), length=12))
    [recall] a v7 t v14 å v15 t a å å t
    _ _ _ _ _ _ _ v14 v7 v15 v15 v14
    """

    pairs: int = 8
    weight: float = dataclasses.field(default=0.10, kw_only=True)

    @property
    def name(self) -> str:
        return "recall"

    def rows(self, draws: Draws, length: int, test: bool) -> Rows:
        keys = draws.distinct(len(V.LETTERS), self.pairs) + V.LETTERS.start
        values = draws.distinct(V.TYPE_SIZE, self.pairs) + V.VALUES.start
        context = np.concatenate([np.full((len(draws), 1), V.task("recall")), pairs(keys, values)], axis=1)
        asked = draws.integers(self.pairs, max(length - context.shape[1], 1))
        question = np.take_along_axis(keys, asked, axis=1)[:, :, None]
        return queries(context, question, np.take_along_axis(values, asked, axis=1), self.pairs, length)
