"""Composition: follow typed links A→B→C→D given in the context."""

from __future__ import annotations

import dataclasses

import numpy as np

from labkit.abilities import vocabulary as V
from labkit.abilities.base import Ability, Draws, Rows, pairs, queries, shuffled


@dataclasses.dataclass(frozen=True)
class Chain(Ability):
    """`width` links from each type to the next, then questions "so many hops from here".

    The context has max(hops, 2) segments (A→B, B→C, …), each in an order of its own. The first question takes `hops`
    hops; of the others half do, and the rest ask fewer from any segment, so that the single hop is practised in the
    same context. The guesser picks a symbol of the right type: 1 in `width`.

    >>> from labkit.abilities import draw
    >>> print(draw(Chain(hops=2, width=2), length=15))
    [chain] A14 B6 A1 B9 B6 C9 B9 C4 ?2 A1 ?1 A14 ?2 A1
    _ _ _ _ _ _ _ _ _ _ C4 _ B6 _ C4
    """

    hops: int = 1
    width: int = 5

    @property
    def name(self) -> str:
        return f"chain-{self.hops}"

    def rows(self, draws: Draws, length: int, test: bool) -> Rows:
        n, segments = len(draws), max(self.hops, 2)
        # (rows, width, types): line j of the second axis is one chain of symbols.
        chains = np.stack([draws.distinct(V.TYPE_SIZE, self.width) for _ in range(segments + 1)], axis=2)
        chains += V.SYMBOLS.start + V.TYPE_SIZE * np.arange(segments + 1)
        links = [shuffled(draws, chains[:, :, k : k + 2]) for k in range(segments)]
        context = np.concatenate(
            [np.full((n, 1), V.task("chain")), *(pairs(link[:, :, 0], link[:, :, 1]) for link in links)], axis=1
        )
        count = max((length - context.shape[1] + 1) // 2, 1)
        hops = np.where(draws.integers(2, count) == 0, self.hops, 1 + draws.integers(self.hops, count))
        hops[:, 0] = self.hops
        begin = draws.integers(segments + 1 - hops, count)
        which = draws.integers(self.width, count)
        row = np.arange(n)[:, None]
        question = np.stack([hops - 1 + V.HOPS.start, chains[row, which, begin]], axis=2)
        return queries(context, question, chains[row, which, begin + hops], self.width, length)
